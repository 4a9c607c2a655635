package agent

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "bmc/api/agent/v1"
)

// A standby opens no session at a controller, for its sweep neither; an agent
// that loses the lease ends those that it has.
func TestSessionsEndWithTheLease(t *testing.T) {
	b := newBench(t, 1)
	b.cluster.edit(func() {
		b.cluster.held = false
		b.cluster.servers[0].State = "available"
	})
	defer b.run()()
	lease := func(held bool) {
		b.cluster.edit(func() { b.cluster.held = held })
	}
	renewals := func() int {
		b.cluster.mu.Lock()
		defer b.cluster.mu.Unlock()
		return b.cluster.renewals
	}
	n := renewals()
	b.eventually("it asks for the lease", func() bool { return renewals() > n+1 })
	if b.bmc.Opened() != 0 {
		t.Errorf("a standby opened %d sessions", b.bmc.Opened())
	}
	lease(true)
	b.eventually("the holder reads the power", func() bool { return b.bmc.Sessions() == 1 })
	lease(false)
	b.eventually("the sessions end", func() bool { return b.bmc.Sessions() == 0 })
}

// Each end of a lease is told at once, whether it was taken away or ran out.
func TestWhenLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLease(nil, nil, slog.New(slog.DiscardHandler))
		start := time.Now()
		l.now = func() time.Duration { return time.Since(start) }
		var lost atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.whenLost(ctx, func() { lost.Add(1) })
		}()
		answer := func(held bool) {
			l.answered(l.now(), &agentv1.RenewLeaseResponse{Held: held, Epoch: 1, Ttl: durationpb.New(15 * time.Second)})
			synctest.Wait()
		}
		check := func(what string, want int32) {
			t.Helper()
			if got := lost.Load(); got != want {
				t.Errorf("%s: told %d times, want %d", what, got, want)
			}
		}
		answer(false)
		check("never held", 0)
		answer(true)
		time.Sleep(14 * time.Second)
		answer(true) // renewed
		time.Sleep(14 * time.Second)
		check("held", 0)
		time.Sleep(2 * time.Second)
		check("ran out", 1)
		answer(true)
		answer(false)
		check("taken away", 2)
		cancel()
		<-done
	})
}
