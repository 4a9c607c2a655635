package rpc

import (
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/metal"

	"google.golang.org/grpc/codes"
)

// ends waits for a stream's end.
func ends(t *testing.T, recv func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		for {
			if err := recv(); err != nil {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the stream goes on")
	}
	return nil
}

// A removed agent's open streams end, at every node, and others' stay open.
func TestRemovedAgentsStreamsEnd(t *testing.T) {
	b := newBed(t, 2)
	b.inventory("r1", 1, 1)
	gone, stays := b.join("a1", "r1", 0), b.join("a2", "r1", 1)
	for node := range 2 {
		ctl := agentv1.NewControlClient(b.conn(node, &gone.cert))
		watch, err := ctl.WatchRack(gone.ctx, &agentv1.WatchRackRequest{Rack: "r1"})
		if err != nil {
			t.Fatal(err)
		}
		tunnels, err := ctl.Tunnels(gone.ctx, &agentv1.TunnelsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		other, err := agentv1.NewControlClient(b.conn(node, &stays.cert)).Tunnels(stays.ctx, &agentv1.TunnelsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		set := b.nodes[node].api.tunnels
		b.eventually("both are connected", func() bool { return set.link([]string{gone.id}) != nil && set.link([]string{stays.id}) != nil })
		if node == 0 {
			continue // the next round's removal ends these, too
		}
		if _, err := b.user(0).clu.RemoveAgent(b.admin(), &bmcv1.RemoveAgentRequest{Ref: "a1"}); err != nil {
			t.Fatal(err)
		}
		refused(t, ends(t, func() error { _, err := watch.Recv(); return err }), codes.Unauthenticated, metal.CodeNotMember, "")
		refused(t, ends(t, func() error { _, err := tunnels.Recv(); return err }), codes.Unauthenticated, metal.CodeNotMember, "join-token")
		for _, n := range b.nodes {
			b.eventually("its tunnels' stream is gone", func() bool { return n.api.tunnels.link([]string{gone.id}) == nil })
			if n.api.tunnels.link([]string{stays.id}) == nil {
				t.Error("another agent's stream has ended, too")
			}
		}
		_ = other
	}
}

// A revoked token's watch ends.
func TestRevokedTokensWatchEnds(t *testing.T) {
	b := newBed(t, 2)
	mona := b.token("mona", metal.RoleMember, testProject)
	w, err := b.user(1).ev.Watch(mona, &bmcv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetBookmark() })
	b.must(&logpb.Command{Command: &logpb.Command_RevokeToken{RevokeToken: &logpb.RevokeToken{TokenId: "tok-xxxxxxxxxxxxmona"}}})
	refused(t, ends(t, func() error { _, err := w.Recv(); return err }), codes.Unauthenticated, metal.CodeUnauthenticated, "")
}
