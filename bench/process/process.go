// Package process runs the programs that a measurement starts, and ends those
// and no others.
package process

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"bmc/internal/freeport"
)

// Child is one program that was started here. It dies with its parent.
type Child struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed when it has ended
	err  error         // of Wait; read after done
}

// Start runs a program with its output appended to a file.
func Start(logFile, program string, args ...string) (*Child, error) {
	if err := os.MkdirAll(filepath.Dir(logFile), 0o700); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	// A terminal's Ctrl-C is for the measurement, which ends its children itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", filepath.Base(program), err), log.Close())
	}
	c := &Child{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = cmd.Wait()
		_ = log.Close()
	}()
	return c, nil
}

// Done is closed when the child has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// PID is the process's ID.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Kill is kill -9; it returns at once, with the moment at which it was sent.
func (c *Child) Kill() (time.Time, error) {
	at := time.Now()
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return at, fmt.Errorf("kill: %w", err)
	}
	return at, nil
}

// End kills the child and waits for its end.
func (c *Child) End() error {
	if _, err := c.Kill(); err != nil {
		return err
	}
	<-c.done
	return nil
}

// Wait bounds the wait for a child that ends by itself.
func (c *Child) Wait(limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-c.done:
		return c.err
	case <-t.C:
		return errors.Join(fmt.Errorf("%s has not ended in %v", filepath.Base(c.cmd.Path), limit), c.End())
	}
}

// FreeAddress is a loopback address that nobody listens on, nor is given by the kernel.
func FreeAddress() (string, error) {
	port, err := freeport.Find()
	if err != nil {
		return "", err
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), nil
}

// Signal sends a signal.
func (c *Child) Signal(s syscall.Signal) error { return c.cmd.Process.Signal(s) }
