package controlplane

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

// hinted checks an error's code and that its hint is a command.
func hinted(t *testing.T, err error, code metal.Code, hint string) {
	t.Helper()
	e, ok := rpcerr.Decode(err)
	if !ok || e.Code != code || e.Hint != hint {
		t.Fatalf("got %v (%+v), want %s with the hint %q", err, e, code, hint)
	}
}

// A node whose disk was emptied is no longer itself: its name is taken, by it,
// until that one is removed; then it joins with the same token and a new ID.
func TestReplaceNode(t *testing.T) {
	t.Parallel()
	s := three(t)
	old := s.nodes[2]
	s.lose(true, old)
	token := s.joinToken(s.nodes[0])
	_, err := Join(t.Context(), old.conf, token, s.log())
	hinted(t, err, metal.CodeNameTaken, "bmc cluster remove-node cp3")
	moved := s.conf("cp4")
	moved.Listen, moved.Advertise = old.conf.Listen, old.conf.Advertise
	_, err = Join(t.Context(), moved, token, s.log())
	hinted(t, err, metal.CodeNameTaken, "bmc cluster remove-node cp3")

	// Without cp3 no other may go: the cluster would lose its quorum.
	follower := s.nodes[0]
	if follower.raft.IsLeader() {
		follower = s.nodes[1]
	}
	cl, ctx := s.client(s.nodes[0])
	_, err = cl.RemoveNode(ctx, &bmcv1.RemoveNodeRequest{Ref: follower.conf.Name})
	hinted(t, err, metal.CodeWrongState, "bmc cluster remove-node cp3")
	_, err = cl.RemoveNode(ctx, &bmcv1.RemoveNodeRequest{Ref: follower.conf.Name, Force: true})
	hinted(t, err, metal.CodeWrongState, "bmc cluster peers")
	_, err = cl.RemoveNode(ctx, &bmcv1.RemoveNodeRequest{Ref: s.leader().conf.Name})
	hinted(t, err, metal.CodeWrongState, "bmc cluster transfer-leader")
	if _, err := cl.RemoveNode(ctx, &bmcv1.RemoveNodeRequest{Ref: "cp3"}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(old.conf.DataDir); err != nil { // of the join that was refused
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), old.conf, token, s.log()); err != nil {
		t.Fatal(err)
	}
	n := s.start(old.conf)
	s.voters(3)
	if n.id.NodeID == old.id.NodeID {
		t.Error("a node with an empty disk has its old ID")
	}
}

// A node that was removed says so and stops, and says so again when started.
func TestRemovedNodeStops(t *testing.T) {
	t.Parallel()
	s := three(t)
	gone := s.nodes[1]
	if gone.raft.IsLeader() {
		gone = s.nodes[2]
	}
	cl, ctx := s.client(s.nodes[0])
	if _, err := cl.RemoveNode(ctx, &bmcv1.RemoveNodeRequest{Ref: gone.conf.Name}); err != nil {
		t.Fatal(err)
	}
	stops := func(n *testNode) {
		t.Helper()
		select {
		case err := <-n.failed:
			if !errors.Is(err, errRemoved) {
				t.Fatalf("it stops for %v", err)
			}
		case <-time.After(60 * time.Second):
			t.Fatal("it goes on")
		}
	}
	stops(gone)
	s.lose(false, gone)
	again := s.start(gone.conf)
	stops(again)
	s.lose(false, again)
	s.voters(2)
}

// corrupt makes a replica's state another one, at the same revision.
func corrupt(t *testing.T, n *testNode, name string) {
	t.Helper()
	data, err := fsm.Encode(&logpb.Command{Header: &logpb.Header{Time: 1, Principal: "cosmic-ray", Role: "admin"},
		Command: &logpb.Command_CreateProject{CreateProject: &logpb.CreateProject{Project: &logpb.Project{Id: "prj-" + name, Name: name}}}})
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := n.fsm.Apply(&raft.Log{Index: n.fsm.View().Revision(), Type: raft.LogCommand, Data: data}).(*fsm.Result); !ok || r.Err != nil {
		t.Fatalf("%v", r)
	}
}

// quiet waits until every node has said what it is and all have the same state.
func (s *site) quiet() {
	s.t.Helper()
	s.await("all have the same state", func() bool {
		first := s.nodes[0].fsm.View()
		for n := range first.Nodes() {
			if n.FeatureLevel != fsm.FeatureLevel {
				return false
			}
		}
		for _, n := range s.nodes {
			if v := n.fsm.View(); v.Revision() != first.Revision() || v.Hash() != first.Hash() {
				return false
			}
		}
		return true
	})
}

// look compares as a node does by itself once a minute when nothing happens.
func (s *site) look(n *testNode) {
	c := comparison{node: n.Node}
	c.look(s.t.Context())
}

// A node that has just started has no state to compare: revision 0 would be
// taken for the others' newest mark, and it would stop for a difference.
func TestNothingToCompare(t *testing.T) {
	f := fsm.New(fsm.Options{})
	if m, ok := toCompare(f, 0, true); ok {
		t.Errorf("an empty state is compared: %+v", m)
	}
	data, err := fsm.Encode(&logpb.Command{Header: &logpb.Header{Time: 1, Principal: "system", Role: "admin"},
		Command: &logpb.Command_InitCluster{InitCluster: &logpb.InitCluster{ClusterId: "bmc-x", Project: &logpb.Project{Id: "prj-a", Name: "default"}}}})
	if err != nil {
		t.Fatal(err)
	}
	f.Apply(&raft.Log{Index: 7, Type: raft.LogCommand, Data: data})
	if m, ok := toCompare(f, 0, true); !ok || m.Revision != 7 {
		t.Errorf("%+v, %v", m, ok)
	}
	if m, ok := toCompare(f, 0, false); ok {
		t.Errorf("too soon: %+v", m)
	}
}

// A node whose state is another than the majority's stops; the others go on.
func TestOutvotedNodeStops(t *testing.T) {
	t.Parallel()
	s := three(t)
	s.quiet()
	for _, n := range s.nodes {
		s.look(n)
	}
	sick := s.nodes[2]
	corrupt(t, sick, "flipped")
	for _, n := range s.nodes {
		s.look(n)
		if err := n.died.get(); (err != nil) != (n == sick) {
			t.Errorf("%s: %v", n.conf.Name, err)
		}
	}
	if err := sick.died.get(); err == nil || !strings.Contains(err.Error(), "2 of 3 nodes agree") || !strings.Contains(err.Error(), "join it anew") {
		t.Errorf("it says %v", err)
	}
	s.lose(true, sick)
	s.joinToken(s.leader())
}

// Without a majority nothing is changed, until there is one again.
func TestNoMajorityFreezes(t *testing.T) {
	t.Parallel()
	s := three(t)
	s.quiet()
	lead := s.leader()
	var others []*testNode
	for _, n := range s.nodes {
		if n != lead {
			others = append(others, n)
		}
	}
	corrupt(t, others[0], "one")
	corrupt(t, others[1], "two")
	s.look(lead)
	cl, ctx := s.client(others[0])
	_, err := cl.CreateJoinToken(ctx, &bmcv1.CreateJoinTokenRequest{Role: "node"})
	hinted(t, err, metal.CodeDiverged, "bmc cluster peers")
	if err := lead.died.get(); err != nil {
		t.Errorf("it stopped without a majority against it: %v", err)
	}
	corrupt(t, lead, "one") // two agree now, whatever they agree on
	s.look(lead)
	s.look(others[1])
	if others[1].died.get() == nil {
		t.Error("the third goes on")
	}
	s.joinToken(lead)
}
