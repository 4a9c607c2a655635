package session

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "bmc/api/agent/v1"
)

// wall is a clock that a test moves on.
type wall struct {
	mu sync.Mutex
	at time.Time
}

func (w *wall) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at
}

func (w *wall) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at = w.at.Add(d)
}

// A ramdisk waits for three days on certificates of a day each: it renews them,
// also after an agent that would not, and is there when its task comes.
func TestWaitsForDays(t *testing.T) {
	clock := &wall{at: time.Now()}
	a, s, _ := start(t, func(context.Context, *agentv1.Task, Progress) (*agentv1.CompleteTaskRequest, error) { return nil, nil })
	s.cfg.Now = clock.now
	ctx := within(t, 30*time.Second)
	if err := s.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		end, err := s.Serve(ctx)
		if err == nil && end != Reboot {
			err = fmt.Errorf("ended by %q", end)
		}
		ended <- err
	}()
	turn := 0
	next := func() { // a call is answered
		t.Helper()
		turn++
		id := fmt.Sprintf("op/1/turn-%d", turn)
		a.Push(inspect(id))
		if _, err := a.Result(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	next()
	if n := a.Renewals(); n != 0 {
		t.Fatalf("%d renewals of a new certificate", n)
	}
	a.Hold(status.Error(codes.Unavailable, "no leader"))
	clock.pass(9 * time.Hour)
	next()
	next()
	if n := a.Renewals(); n != 0 {
		t.Fatal("renewed though it was refused")
	}
	a.Hold(nil)
	for day := 1; day <= 3; day++ {
		clock.pass(20 * time.Hour)
		if day == 1 {
			clock.pass(-8 * time.Hour) // within the first certificate's life
		}
		next() // its answer is followed by a renewal
		next()
		if n := a.Renewals(); n < day {
			t.Fatalf("after %v: %d renewals", time.Until(clock.now()), n)
		}
	}
	a.Push(reboot("op/2/reboot"))
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// Without a renewal the session ends before its certificate does.
func TestEndsWithTheCertificate(t *testing.T) {
	clock := &wall{at: time.Now()}
	a, s, _ := start(t, func(context.Context, *agentv1.Task, Progress) (*agentv1.CompleteTaskRequest, error) { return nil, nil })
	s.cfg.Now = clock.now
	a.Hold(status.Error(codes.PermissionDenied, "it does not wait"))
	ctx := within(t, 30*time.Second)
	if err := s.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	clock.pass(24*time.Hour - expiryMargin)
	a.Push(inspect("op/1/inspect"))
	if end, err := s.Serve(ctx); end != "" || err == nil {
		t.Fatalf("ended %q, %v", end, err)
	}
	if ctx.Err() != nil {
		t.Fatal("only the test's own time ended it")
	}
}
