package session

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "bmc/api/agent/v1"
	"bmc/ramdisk/agenttest"
)

var elsewhere = status.Error(codes.Unavailable, "no operation is under way on this server")

// rack is two agents on one CA; the ramdisk says hello to the first, which
// tells of the second. The second knows nothing yet.
func rack(t *testing.T, run runFunc) (first, second *agenttest.Agent, s *Session) {
	t.Helper()
	first, s, addr := start(t, run)
	second = first.Peer()
	second.Away(elsewhere)
	other, err := second.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Stop)
	first.Tell(addr, other)
	second.Tell(other, addr)
	return first, second, s
}

func serve(ctx context.Context, s *Session) <-chan error {
	served := make(chan error, 1)
	go func() { _, err := s.Serve(ctx); served <- err }()
	return served
}

// The first agent dies in the middle of a task. The task is not disturbed, the
// second hears of it, says where the chunks are now, and gets its result.
func TestAgentDiesDuringTask(t *testing.T) {
	running, resume := make(chan struct{}), make(chan struct{})
	var runs atomic.Int32
	first, second, s := rack(t, func(ctx context.Context, _ *agentv1.Task, p Progress) (*agentv1.CompleteTaskRequest, error) {
		runs.Add(1)
		p(7, 10, "writing")
		close(running)
		<-resume
		return &agentv1.CompleteTaskRequest{Message: "survived"}, ctx.Err()
	})
	moved := make(chan string, 64)
	s.cfg.ChunkURL = func(url string) {
		select {
		case moved <- url:
		default:
		}
	}
	ctx := within(t, 30*time.Second)
	if err := s.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	first.Push(inspect("op/1/t1"))
	served := serve(ctx, s)
	<-running
	if _, err := first.Reported(ctx, "op/1/t1"); err != nil {
		t.Fatal(err)
	}
	first.Stop()
	second.MoveChunks("http://10.77.0.2/%s")
	second.Push(inspect("op/1/t1")) // granted again, under the same ID
	second.Push(reboot("op/1/t2"))
	second.Away(nil)
	p, err := second.Reported(ctx, "op/1/t1")
	if err != nil || p.GetBootId() != "boot-1" || p.GetDone() != 7 {
		t.Fatalf("the second agent heard %v, %v", p, err)
	}
	if url := <-moved; url != "http://10.77.0.2/%s" {
		t.Errorf("chunks are at %q", url)
	}
	close(resume)
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	r, err := second.Result(ctx, "op/1/t1")
	if err != nil || r.GetMessage() != "survived" || r.GetBootId() != "boot-1" || runs.Load() != 1 {
		t.Errorf("%v, %v, %d runs", r, err, runs.Load())
	}
}

// The first agent dies with the result; the second asks for the task, gets the
// result again, and the task does not run again.
func TestResultIsGivenAgain(t *testing.T) {
	var runs atomic.Int32
	first, second, s := rack(t, func(context.Context, *agentv1.Task, Progress) (*agentv1.CompleteTaskRequest, error) {
		runs.Add(1)
		return &agentv1.CompleteTaskRequest{Message: "once"}, nil
	})
	ctx := within(t, 30*time.Second)
	if err := s.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	first.Push(inspect("op/1/t1"))
	served := serve(ctx, s)
	if _, err := first.Result(ctx, "op/1/t1"); err != nil {
		t.Fatal(err)
	}
	first.Stop()
	second.Push(inspect("op/1/t1"))
	second.Push(reboot("op/1/t2"))
	second.Away(nil)
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if r, err := second.Result(ctx, "op/1/t1"); err != nil || r.GetMessage() != "once" || runs.Load() != 1 {
		t.Errorf("%v, %v, %d runs", r, err, runs.Load())
	}
}

// An agent that lives but is not at the operation sends the ramdisk on; it is
// found wherever it is, and back again.
func TestSentOnAndBack(t *testing.T) {
	first, second, s := rack(t, func(context.Context, *agentv1.Task, Progress) (*agentv1.CompleteTaskRequest, error) {
		return nil, nil
	})
	ctx := within(t, 30*time.Second)
	if err := s.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	served := serve(ctx, s)
	for i, a := range []*agenttest.Agent{first, second, first} {
		other := []*agenttest.Agent{second, first, second}[i]
		other.Away(elsewhere)
		a.Away(nil)
		id := []string{"op/1/a", "op/1/b", "op/1/c"}[i]
		// Whoever is away must not be waiting for a task: an answer ends that.
		other.Push(inspect(id))
		a.Push(inspect(id))
		if _, err := a.Result(ctx, id); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	first.Push(reboot("op/1/end"))
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

func TestLearn(t *testing.T) {
	s := New(config(mustAgent(t), "10.77.0.1:8443", nil))
	many := make([]string, 40)
	for i := range many {
		many[i] = "10.77.1.1:" + string(rune('a'+i%26)) + string(rune('a'+i/26))
	}
	for _, tt := range []struct {
		told, want []string
		at         int
	}{
		{nil, []string{"10.77.0.1:8443"}, 0},
		{[]string{"10.77.0.1:8443", "nonsense", "10.77.0.2:8443", "10.77.0.2:8443"}, []string{"10.77.0.1:8443", "10.77.0.2:8443"}, 0},
		{[]string{"10.77.0.2:8443", "10.77.0.1:8443"}, []string{"10.77.0.2:8443", "10.77.0.1:8443"}, 1},
		{[]string{"10.77.0.3:8443"}, []string{"10.77.0.3:8443", "10.77.0.2:8443", "10.77.0.1:8443"}, 2},
		{many, append(slices.Clone(many[:maxAgents]), "10.77.0.1:8443"), maxAgents},
	} {
		if s.learn(tt.told); !slices.Equal(s.agents, tt.want) || s.at != tt.at {
			t.Errorf("told %v: %v at %d", tt.told, s.agents, s.at)
		}
	}
}

func mustAgent(t *testing.T) *agenttest.Agent {
	t.Helper()
	a, err := agenttest.New("agent")
	if err != nil {
		t.Fatal(err)
	}
	return a
}
