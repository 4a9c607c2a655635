package session

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/bootseed"
	"bmc/metal"
	"bmc/ramdisk/agenttest"
)

type runFunc = func(context.Context, *agentv1.Task, Progress) (*agentv1.CompleteTaskRequest, error)

func start(t *testing.T, run runFunc) (*agenttest.Agent, *Session, string) {
	t.Helper()
	a, err := agenttest.New("agent")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := a.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Stop)
	s := New(config(a, addr, run))
	t.Cleanup(s.Close)
	return a, s, addr
}

func config(a *agenttest.Agent, addr string, run runFunc) Config {
	return Config{
		Seed:   bootseed.Seed{ServerID: a.ServerID, Token: a.Token, Agent: addr, CAPEM: a.CAPEM(), Now: time.Now(), MAC: "52:54:00:00:00:01"},
		BootID: "boot-1", Version: "test", Identity: &agentv1.Hardware{Serial: "SN1"}, Log: slog.New(slog.DiscardHandler), Run: run,
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func inspect(id string) *agentv1.Task {
	return &agentv1.Task{Id: id, Kind: &agentv1.Task_Inspect{Inspect: &agentv1.InspectTask{}}}
}

func reboot(id string) *agentv1.Task {
	return &agentv1.Task{Id: id, Kind: &agentv1.Task_Reboot{Reboot: &agentv1.RebootTask{}}}
}

func TestTasksUntilReboot(t *testing.T) {
	a, s, _ := start(t, func(_ context.Context, task *agentv1.Task, _ Progress) (*agentv1.CompleteTaskRequest, error) {
		if task.GetId() == "op/1/bad" {
			return nil, metal.Errorf(metal.CodeNoDisk, "the machine has no disk")
		}
		if task.GetId() == "op/1/panic" {
			panic("boom")
		}
		return &agentv1.CompleteTaskRequest{Hardware: &agentv1.Hardware{Serial: "SN1"}}, nil
	})
	ctx := within(t, 20*time.Second)
	if err := s.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	hello, err := a.Greeted(ctx)
	if err != nil || hello.GetBootId() != "boot-1" || hello.GetIdentity().GetSerial() != "SN1" || hello.GetVersion() != "test" {
		t.Fatalf("hello %v, %v", hello, err)
	}
	for _, task := range []*agentv1.Task{inspect("op/1/inspect"), inspect("op/1/bad"), inspect("op/1/panic"), reboot("op/1/reboot")} {
		a.Push(task)
	}
	if end, err := s.Serve(ctx); end != Reboot || err != nil {
		t.Fatalf("ended %q, %v", end, err)
	}
	for id, reason := range map[string]metal.Code{"op/1/inspect": "", "op/1/bad": metal.CodeNoDisk, "op/1/panic": metal.CodeInternal, "op/1/reboot": ""} {
		r, err := a.Result(ctx, id)
		if err != nil || metal.Code(r.GetReason()) != reason {
			t.Errorf("%s: %v, %v", id, r, err)
		}
	}
}

func TestTaskRunsOnceWhateverIsLost(t *testing.T) {
	var runs atomic.Int32
	a, s, _ := start(t, func(context.Context, *agentv1.Task, Progress) (*agentv1.CompleteTaskRequest, error) {
		runs.Add(1)
		return nil, nil
	})
	a.LoseAck()
	ctx := within(t, 20*time.Second)
	if err := s.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	a.Push(inspect("t1"))
	a.Push(inspect("t1")) // a new agent that never saw the result asks again
	a.Push(reboot("t2"))
	if _, err := s.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	if runs.Load() != 1 || a.Deliveries("t1") != 3 {
		t.Fatalf("%d runs, %d deliveries", runs.Load(), a.Deliveries("t1"))
	}
}

func TestAgentRestartsDuringTask(t *testing.T) {
	running, resume := make(chan struct{}), make(chan struct{})
	a, s, addr := start(t, func(ctx context.Context, _ *agentv1.Task, _ Progress) (*agentv1.CompleteTaskRequest, error) {
		close(running)
		<-resume
		return &agentv1.CompleteTaskRequest{Message: "survived"}, ctx.Err()
	})
	ctx := within(t, 30*time.Second)
	if err := s.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	a.Push(inspect("t1"))
	a.Push(reboot("t2"))
	served := make(chan error, 1)
	go func() { _, err := s.Serve(ctx); served <- err }()
	<-running
	a.Stop()
	close(resume)
	if _, err := a.Start(addr); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if r, err := a.Result(ctx, "t1"); err != nil || r.GetMessage() != "survived" {
		t.Fatalf("%v, %v", r, err)
	}
}

func TestProgressAndCancel(t *testing.T) {
	a, s, _ := start(t, func(ctx context.Context, _ *agentv1.Task, p Progress) (*agentv1.CompleteTaskRequest, error) {
		p(7, 10, "writing")
		<-ctx.Done()
		return nil, ctx.Err()
	})
	ctx := within(t, 20*time.Second)
	if err := s.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	a.Cancel("t1")
	a.Push(inspect("t1"))
	a.Push(reboot("t2"))
	if _, err := s.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	r, err := a.Result(ctx, "t1")
	if err != nil || metal.Code(r.GetReason()) != metal.CodeCancelled {
		t.Fatalf("%v, %v", r, err)
	}
	if p := a.Progress("t1"); len(p) == 0 || p[0].GetDone() != 7 || p[0].GetTotal() != 10 || p[0].GetMessage() != "writing" {
		t.Fatalf("progress %v", p)
	}
}

// A deployment that is cancelled in its last moment: the agent that does not take
// the result any more has not asked for the jump either.
func TestStaysWhereTheResultIsRefused(t *testing.T) {
	for name, task := range map[string]*agentv1.Task{
		"kexec":     {Id: "op/1/last", Kind: &agentv1.Task_Kexec{Kexec: &agentv1.KexecTask{}}},
		"reboot":    reboot("op/1/last"),
		"power off": {Id: "op/1/last", Kind: &agentv1.Task_PowerOff{PowerOff: &agentv1.PowerOffTask{}}},
	} {
		t.Run(name, func(t *testing.T) {
			a, s, _ := start(t, func(context.Context, *agentv1.Task, Progress) (*agentv1.CompleteTaskRequest, error) { return nil, nil })
			ctx, stop := context.WithCancel(within(t, 20*time.Second))
			if err := s.Hello(ctx); err != nil {
				t.Fatal(err)
			}
			a.Unwanted(status.Error(codes.PermissionDenied, "this boot has not said hello"))
			a.Push(task)
			a.Push(inspect("op/2/inspect"))
			ended := make(chan End, 1)
			go func() {
				end, _ := s.Serve(ctx)
				ended <- end
			}()
			if _, err := a.Result(ctx, "op/2/inspect"); err != nil {
				t.Errorf("it does not go on: %v", err)
			}
			stop()
			if end := <-ended; end != "" {
				t.Errorf("it left by %s", end)
			}
		})
	}
}

func TestHelloRefusals(t *testing.T) {
	impostor, err := agenttest.New("node")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := impostor.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(impostor.Stop)
	honest, _, honestAddr := start(t, nil)
	for _, tt := range []struct {
		name, want string
		edit       func(*Config)
		limit      time.Duration
	}{
		{"role is not agent", "does not name an agent", func(c *Config) { c.Seed.Agent, c.Seed.CAPEM = addr, impostor.CAPEM() }, 2 * time.Second},
		{"another CA", "unknown authority", func(c *Config) { c.Seed.CAPEM = impostor.CAPEM() }, 2 * time.Second},
		{"nobody listens", "no answer to the hello", func(c *Config) { c.Seed.Agent = "127.0.0.1:1" }, 2 * time.Second},
		{"wrong token", "refused the hello", func(c *Config) { c.Seed.Token = "another-token-0123456789" }, 20 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := config(honest, honestAddr, nil)
			tt.edit(&c)
			s := New(c)
			defer s.Close()
			if err := s.Hello(within(t, tt.limit)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestHelloIsRepeatedTheSame(t *testing.T) {
	a, s, addr := start(t, nil)
	a.Refuse(status.Error(codes.Unavailable, "starting"))
	ctx := within(t, 20*time.Second)
	done := make(chan error, 1)
	go func() { done <- s.Hello(ctx) }()
	select {
	case err := <-done:
		t.Fatal(err)
	case <-time.After(time.Second):
	}
	a.Stop()
	a.Refuse(nil)
	if _, err := a.Start(addr); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil { // the test agent refuses another CSR for the token
		t.Fatal(err)
	}
}

func TestServeNeedsHello(t *testing.T) {
	_, s, _ := start(t, nil)
	if _, err := s.Serve(t.Context()); err == nil {
		t.Fatal("served without a certificate")
	}
	if errors.Is(errCancelled, context.Canceled) {
		t.Fatal("an agent's cancel is a reason of its own")
	}
}
