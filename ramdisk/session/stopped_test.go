package session

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
)

// stoppable is an agent's address at which bytes pass until it is stopped, as a
// process is by SIGSTOP: connections stay open and new ones come about, and
// nothing is answered.
type stoppable struct {
	addr    string
	stopped chan struct{}
}

func passTo(t *testing.T, to string) *stoppable {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &stoppable{addr: l.Addr().String(), stopped: make(chan struct{})}
	ended, end := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.pass(ended, c, to) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		end()
		wg.Wait()
	})
	return p
}

// pass copies both ways; after the stop it keeps the connection and drops what comes.
func (p *stoppable) pass(ended context.Context, c net.Conn, to string) {
	defer c.Close()
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	stop := context.AfterFunc(ended, func() { c.Close(); up.Close() })
	defer stop()
	var wg sync.WaitGroup
	for _, w := range []struct {
		dst io.Writer
		src io.Reader
	}{{up, c}, {c, up}} {
		wg.Go(func() { p.copy(w.dst, w.src) })
	}
	wg.Wait()
}

func (p *stoppable) copy(dst io.Writer, src io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		select {
		case <-p.stopped:
			continue
		default:
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

// An agent that is stopped in the middle of a task, or while none is there, is
// left for the other one, in time for it to adopt the ramdisk.
func TestStoppedAgentIsLeft(t *testing.T) {
	for name, tc := range map[string]struct {
		task   bool
		atMost time.Duration // the bound, a hello and what a busy machine adds
	}{
		"in a task": {true, progressFor + 10*time.Second},
		"idle":      {false, pingAfter + pingFor + 12*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			running, resume := make(chan struct{}), make(chan struct{})
			run := func(ctx context.Context, task *agentv1.Task, p Progress) (*agentv1.CompleteTaskRequest, error) {
				if task.GetId() == "op/1/t1" {
					close(running)
					<-resume
				}
				return &agentv1.CompleteTaskRequest{Message: "survived"}, ctx.Err()
			}
			first, _, addr := start(t, run)
			front := passTo(t, addr)
			s := New(config(first, front.addr, run))
			t.Cleanup(s.Close)
			second := first.Peer()
			second.Away(elsewhere)
			other, err := second.Start("127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(second.Stop)
			first.Tell(front.addr, other)
			second.Tell(other, front.addr)
			ctx := within(t, time.Minute)
			if err := s.Hello(ctx); err != nil {
				t.Fatal(err)
			}
			if tc.task {
				first.Push(inspect("op/1/t1"))
			}
			served := serve(ctx, s)
			if tc.task {
				<-running
			} else { // it is connected, and asks for the next one
				first.Push(inspect("op/1/t0"))
				if _, err := first.Result(ctx, "op/1/t0"); err != nil {
					t.Fatal(err)
				}
			}
			close(front.stopped)
			began := time.Now()
			if tc.task {
				second.Push(inspect("op/1/t1"))
			}
			second.Push(reboot("op/1/t2"))
			second.Away(nil)
			if tc.task {
				if _, err := second.Reported(ctx, "op/1/t1"); err != nil {
					t.Fatal(err)
				}
			}
			took := time.Since(began)
			close(resume)
			if err := <-served; err != nil {
				t.Fatal(err)
			}
			if !tc.task {
				took = time.Since(began)
			}
			if took > tc.atMost {
				t.Errorf("the other agent heard of it after %s, want at most %s", took, tc.atMost)
			}
			t.Logf("%.1f s", took.Seconds())
		})
	}
}
