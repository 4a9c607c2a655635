package rpc

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// A watch whose consumer is slow while more changes than the ring holds come by
// is told to start over, once, and goes on from there.
func TestSlowWatchFallsOffTheRing(t *testing.T) {
	b := newBed(t, 1)
	b.inventory("r1", 1, 1)
	e := &events{API: b.nodes[0].api}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sent := make(chan *bmcv1.WatchResponse) // unbuffered: the consumer's pace
	w := &watcher{id: &identity{role: metal.RoleAdmin}, kinds: []string{"server", "event"}, shown: map[string]bool{},
		send: func(m *bmcv1.WatchResponse) error {
			select {
			case sent <- m:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
	done := make(chan error, 1)
	go func() { done <- e.deltas(ctx, w, b.fsm.View()) }()
	next := func() *bmcv1.WatchResponse {
		t.Helper()
		select {
		case m := <-sent:
			return m
		case err := <-done:
			t.Fatalf("the watch ended: %v", err)
		case <-time.After(20 * time.Second):
			t.Fatal("the watch says nothing")
		}
		return nil
	}
	b.inventory("r2", 2, 1)
	first := next() // taken; the next one waits while the ring turns over
	// A view of the next revision may wait in the watch already: that one has to
	// fall off, too.
	turn(b, first.GetRevision()+1)
	resyncs, rows := 0, map[string]bool{}
	for whole := false; !whole; {
		m := next()
		switch {
		case m.GetResync():
			resyncs, rows = resyncs+1, map[string]bool{}
		case m.GetServer() != nil:
			rows[m.GetServer().GetName()] = true
		}
		whole = m.GetBookmark() && resyncs > 0
	}
	if resyncs != 1 || len(rows) != 2 {
		t.Fatalf("%d resyncs, then %v", resyncs, rows)
	}
	// It goes on with deltas, not with another resync.
	b.inventory("r3", 3, 1)
	for found := false; !found; {
		m := next()
		if m.GetResync() {
			t.Fatal("a second resync")
		}
		found = m.GetServer().GetName() == "r3-u01"
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// turn writes until the ring of changes no longer reaches back to a revision.
func turn(b *bed, after uint64) {
	b.t.Helper()
	for i := uint64(1); ; i++ {
		if v := b.fsm.View(); v.Revision() > after {
			if _, ok := v.Changes(after); !ok {
				return
			}
		}
		if i > state.MaxChanges {
			b.t.Fatal("the ring has no end")
		}
		apply := &logpb.ApplyInventory{} // many changes a command
		for n := range 1000 {
			apply.Sizes = append(apply.Sizes, &logpb.Size{Name: fmt.Sprintf("s%d", n), MinMemoryBytes: i})
		}
		b.must(&logpb.Command{Command: &logpb.Command_ApplyInventory{ApplyInventory: apply}})
	}
}

// An agent whose rack does not change is told how far it is all the same: when an older
// backup is restored, it shows that it was not cut off before that was made. It hears so
// of the state that is replaced, too, before the new one.
func TestRackWatchSaysHowFarItIs(t *testing.T) {
	b, a := rentable(t, 2)
	w, err := a.ctl.WatchRack(a.ctx, &agentv1.WatchRackRequest{Rack: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	synced := func() { recv(t, w, func(m *agentv1.RackUpdate) bool { return m.GetSynced() }) }
	synced()
	b.inventory("r2", 2, 1)
	saved, at := save(t, b), b.fsm.View().Revision()
	m := recv(t, w, func(m *agentv1.RackUpdate) bool { return m.GetRevision() >= at })
	if !proto.Equal(m, &agentv1.RackUpdate{Revision: at}) {
		t.Errorf("with a change of another rack, at %d: %v", at, m)
	}
	b.inventory("r3", 3, 1)
	last := b.fsm.View().Revision()
	recv(t, w, func(m *agentv1.RackUpdate) bool { return m.GetRevision() == last && !m.GetReset_() })
	s, err := b.user(0).clu.RestoreSnapshot(b.admin())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&bmcv1.RestoreSnapshotRequest{Data: saved}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	if m := recv(t, w, func(m *agentv1.RackUpdate) bool { return m.GetRack() != nil }); m.GetRack().GetGeneration() == 0 || !m.GetRack().GetFrozen() {
		t.Errorf("after the restore: %v", m)
	}
	synced()
}

// A watch that resumes after a Restore, from a revision of the state that was
// replaced, starts over, whatever has been written since.
func TestResumeAcrossRestore(t *testing.T) {
	b := newBed(t, 2)
	b.inventory("r1", 1, 1)
	saved := save(t, b)
	b.inventory("r2", 2, 1)
	replaced := b.fsm.View().Revision()
	s, err := b.user(0).clu.RestoreSnapshot(b.admin())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&bmcv1.RestoreSnapshotRequest{Data: saved}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	b.inventory("r3", 3, 1)
	for _, after := range []uint64{1, replaced - 1, replaced} {
		w, err := b.user(1).ev.Watch(b.admin(), &bmcv1.WatchRequest{Kinds: []string{"server"}, AfterRevision: after})
		if err != nil {
			t.Fatal(err)
		}
		if m := recv(t, w, func(*bmcv1.WatchResponse) bool { return true }); !m.GetResync() {
			t.Fatalf("after %d: %v", after, m)
		}
		names := map[string]bool{}
		for {
			m := recv(t, w, func(*bmcv1.WatchResponse) bool { return true })
			if m.GetBookmark() {
				break
			}
			names[m.GetServer().GetName()] = true
		}
		if len(names) != 2 || !names["r1-u01"] || !names["r3-u01"] {
			t.Errorf("after %d: %v", after, names)
		}
	}
}
