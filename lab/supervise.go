package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A lab lives in a process of its own. Start, in the caller's process, sends it
// its Config on standard input and keeps that pipe open: its end before the lab
// is ready means that the caller is gone or wants no lab. The supervisor answers
// with one message a line on descriptor 3.

type message struct {
	Step    string        `json:"step,omitempty"`
	Took    time.Duration `json:"took_ns,omitempty"`
	Ready   bool          `json:"ready,omitempty"`
	Failure string        `json:"failure,omitempty"`
}

// SuperviseCommand is the hidden subcommand that runs Supervise.
const SuperviseCommand = "supervise"

const messagesFD = 3

// Start brings a lab up in a process of its own, which outlives the caller, and
// returns when it is ready. When ctx ends before, or a part fails, it takes all
// of it down again.
func Start(ctx context.Context, cfg Config, progress Progress) error {
	if err := errors.Join(cfg.complete(), cfg.validate()); err != nil {
		return err
	}
	if err := cfg.requirements(); err != nil {
		return err
	}
	if pid, err := Running(cfg.Dir); err != nil || pid != 0 {
		return errors.Join(err, &RunningError{cfg.Dir, pid})
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	s, err := startSupervisor(&cfg)
	if err != nil {
		return err
	}
	defer s.messages.Close()
	if _, err = s.stdin.Write(append(raw, '\n')); err == nil {
		err = s.follow(ctx, progress)
	}
	if err == nil {
		_, err = s.stdin.Write([]byte("keep\n"))
	}
	if cerr := s.stdin.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		err = errors.Join(err, s.end())
		if ctx.Err() != nil {
			return errors.Join(err, Clean(cfg.Dir))
		}
		return fmt.Errorf("%w\nlogs are in %s", err, cfg.path("logs"))
	}
	// The supervisor goes on; nobody waits for it.
	return s.cmd.Process.Release()
}

type supervisor struct {
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	messages *os.File
}

func startSupervisor(cfg *Config) (*supervisor, error) {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	if err := notSomebodyElses(cfg.Dir); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(filepath.Join(cfg.Dir, superviseLog), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	s := &supervisor{cmd: exec.Command(cfg.Exe, SuperviseCommand), messages: r}
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.ExtraFiles = []*os.File{w}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if !mayMakeNetworks() {
		s.cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER
		s.cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		s.cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if err := s.cmd.Start(); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
			err = fmt.Errorf("%w: this system gives ordinary users no user namespaces; run as root", err)
		}
		return nil, errors.Join(fmt.Errorf("start the lab's supervisor: %w", err), r.Close())
	}
	return s, nil
}

// mayMakeNetworks: root alone is not enough in some containers.
func mayMakeNetworks() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return os.Geteuid() == 0
	}
	want := uint32(1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN)
	return data[0].Effective&want == want
}

// follow passes the supervisor's messages on until it is ready or has failed.
func (s *supervisor) follow(ctx context.Context, progress Progress) error {
	stop := context.AfterFunc(ctx, func() { _ = s.messages.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	dec := json.NewDecoder(s.messages)
	for {
		var m message
		if err := dec.Decode(&m); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("the lab's supervisor ended without a word: %w", err)
		}
		switch {
		case m.Failure != "":
			return errors.New(m.Failure)
		case m.Ready:
			return nil
		default:
			progress(m.Step, m.Took)
		}
	}
}

// end waits until the supervisor has cleaned up, which the closed pipe made it
// do; if it does not, the kernel ends its children with it.
func (s *supervisor) end() error {
	t := time.AfterFunc(downTimeout, func() { _ = s.cmd.Process.Kill() })
	defer t.Stop()
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return nil // it said why before
	}
	return err
}

// Supervise is the other side of Start: it holds a lab until somebody takes it
// down, or a signal ends it.
func Supervise(ctx context.Context) error {
	messages := os.NewFile(messagesFD, "messages")
	unix.CloseOnExec(messagesFD)
	var once sync.Once
	say := func(m message) {
		raw, err := json.Marshal(m)
		if err == nil {
			_, err = messages.Write(append(raw, '\n'))
		}
		if err != nil {
			once.Do(func() { fmt.Fprintln(os.Stderr, "the caller does not listen:", err) })
		}
	}
	in := bufio.NewReader(os.Stdin)
	var cfg Config
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &cfg)
	}
	if err != nil {
		return fmt.Errorf("read the lab's configuration: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	kept := make(chan struct{})
	go func() {
		if word, err := in.ReadString('\n'); err != nil || word != "keep\n" {
			cancel(errors.New("whoever wanted this lab is gone"))
		}
		close(kept)
	}()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	l, err := Up(ctx, cfg, log, func(step string, took time.Duration) { say(message{Step: step, Took: took}) })
	if err != nil {
		say(message{Failure: err.Error()})
		return err
	}
	say(message{Ready: true})
	select {
	case <-kept:
	case <-ctx.Done():
	}
	_ = messages.Close()
	select {
	case <-ctx.Done():
	case <-l.Asked():
	}
	return l.Close()
}
