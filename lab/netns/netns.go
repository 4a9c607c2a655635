// Package netns makes network namespaces that have no name: they live as long as
// the process that made them and the children it started in them, so a crash
// leaves none behind.
package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by Do after Close.
var ErrClosed = errors.New("network namespace is closed")

// Namespace is one OS thread that stays in one network namespace. Sockets made
// in Do belong to it for ever, whichever goroutine uses them later.
type Namespace struct {
	name string
	file *os.File
	jobs chan job
	quit chan struct{}
	done chan struct{}
	once sync.Once
}

type job struct {
	f    func() error
	done chan error
}

// New makes an empty namespace, with its loopback up. Close it after the children
// that were started in it: its thread's end is their end.
func New(name string) (*Namespace, error) {
	return newNamespace(name, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return SetUp("lo")
	})
}

// Current is the namespace of the process, with a thread of its own.
func Current(name string) (*Namespace, error) {
	return newNamespace(name, func() error { return nil })
}

// Join is another thread in n's namespace, for what may block. n must outlive
// the call only.
func (n *Namespace) Join(name string) (*Namespace, error) {
	return newNamespace(name, func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", n.name, err)
		}
		return nil
	})
}

func newNamespace(name string, enter func() error) (*Namespace, error) {
	n := &Namespace{name: name, jobs: make(chan job), quit: make(chan struct{}), done: make(chan struct{})}
	ready := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, so that nobody
		// else runs in the namespace by mistake.
		runtime.LockOSThread()
		defer close(n.done)
		err := enter()
		if err == nil {
			n.file, err = os.Open("/proc/thread-self/ns/net")
		}
		ready <- err
		if err != nil {
			return
		}
		for {
			select {
			case j := <-n.jobs:
				j.done <- j.f()
			case <-n.quit:
				return
			}
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", name, err)
	}
	return n, nil
}

// Name is for people.
func (n *Namespace) Name() string { return n.name }

// File is open on the namespace, to move interfaces into it, and for other
// processes, which reach it as /proc/<pid>/fd/<fd>.
func (n *Namespace) File() *os.File { return n.file }

// Do runs f on the namespace's thread. f must not start goroutines that expect
// to be in the namespace: they are not.
func (n *Namespace) Do(f func() error) error {
	j := job{f, make(chan error, 1)}
	select {
	case <-n.done:
		return fmt.Errorf("%s: %w", n.name, ErrClosed)
	case n.jobs <- j:
		return <-j.done
	}
}

// Start starts cmd in the namespace. The kernel kills the child when this process
// dies, however it dies.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// The signal follows the parent's thread, which lives as long as n.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// A Ctrl-C at the terminal is for the supervisor, who ends children in order.
	cmd.SysProcAttr.Setpgid = true
	return n.Do(cmd.Start)
}

// Close ends the thread; the namespace goes when its last socket and child do.
// A Do that follows fails; one that runs is waited for.
func (n *Namespace) Close() error {
	var err error
	n.once.Do(func() {
		close(n.quit)
		<-n.done
		err = n.file.Close()
	})
	return err
}
