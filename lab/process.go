package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"bmc/lab/netns"
)

// stopGrace is how long a child may take to end by itself.
const stopGrace = 15 * time.Second

// process is a daemon of the lab, with its output in a file.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it is reaped
	err  error         // set before done is closed

	launch   launch
	restarts int
}

// spawn starts a program in a namespace.
func spawn(ns *netns.Namespace, name, log string, env []string, program string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{name: name, log: log, cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(childEnv(os.Environ()), env...)
	if err := ns.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// childEnv leaves out what would steer a daemon past its configuration file.
func childEnv(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "BMC_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
			out = append(out, e)
		}
	}
	return out
}

// run runs a program in a namespace to its end, and returns the end of its
// output in the error.
func run(ctx context.Context, ns *netns.Namespace, name, log, program string, args ...string) error {
	p, err := spawn(ns, name, log, nil, program, args...)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s: %w", name, ctx.Err()), p.stop())
	}
	if p.err != nil {
		return &Failure{Part: name, Err: p.err, Tail: tail(log, failureLines)}
	}
	return nil
}

// alive returns a Failure when the process has ended.
func (p *process) alive() error {
	select {
	case <-p.done:
		err := p.err
		if err == nil {
			err = errors.New("ended by itself")
		}
		return &Failure{Part: p.name, Err: err, Tail: tail(p.log, failureLines)}
	default:
		return nil
	}
}

// stop asks the process to end, then makes it end.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	_ = p.cmd.Process.Signal(syscall.SIGCONT) // a stopped one would not notice
	t := time.NewTimer(stopGrace)
	defer t.Stop()
	select {
	case <-p.done:
		return nil
	case <-t.C:
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return fmt.Errorf("%s did not end within %s of SIGTERM and was killed", p.name, stopGrace)
}

// Failure says which part of a lab failed, and how its log ends.
type Failure struct {
	Part string
	Err  error
	Tail string
}

func (f *Failure) Error() string {
	s := f.Part + ": " + f.Err.Error()
	if f.Tail != "" {
		s += "\n" + f.Tail
	}
	return s
}

func (f *Failure) Unwrap() error { return f.Err }

const failureLines = 20

// tail returns the last lines of a file, of its last 64 KiB at most.
func tail(path string, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > 64<<10 {
		if _, err := f.Seek(-64<<10, io.SeekEnd); err != nil {
			return ""
		}
	}
	raw, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return ""
	}
	all := bytes.Split(bytes.TrimRight(raw, "\r\n"), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}
