package rpc

import (
	"context"
	"strings"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

func TestAnyNodeAnswers(t *testing.T) {
	b, _ := rentable(t, 3)
	ctx := b.token("mona", metal.RoleMember, testProject)
	op, err := b.user(2).CreateServer(ctx, &bmcv1.CreateServerRequest{Name: "web-1"})
	if err != nil {
		t.Fatal(err)
	}
	if op.GetPrincipal() != "mona" {
		t.Fatalf("the leader took %q for the caller", op.GetPrincipal())
	}
	for node := range 3 {
		srv, err := b.user(node).GetServer(ctx, &bmcv1.GetServerRequest{Ref: "web-1"})
		if err != nil || srv.GetRental().GetName() != "web-1" {
			t.Fatalf("node %d: %v %v", node, srv, err)
		}
	}
	// A refusal at the leader keeps its details on the way back.
	_, err = b.user(1).CreateServer(ctx, &bmcv1.CreateServerRequest{Name: "web-1"})
	refused(t, err, codes.AlreadyExists, metal.CodeNameTaken, "bmc ")
}

// A write at the leader waits for its own commit alone; what no commit proves is
// looked at again in a state that a quorum has confirmed.
func TestWriteIsOneRound(t *testing.T) {
	b := newBed(t, 2)
	ctx := b.token("mona", metal.RoleMember, testProject)
	rounds := func(want int64, what string, f func()) {
		t.Helper()
		before := b.confirmed.Load()
		f()
		if got := b.confirmed.Load() - before; got != want {
			t.Errorf("%s: %d confirmations by a quorum, want %d", what, got, want)
		}
	}
	add := &bmcv1.AddKeyRequest{RequestId: uuidV7(b.now(), [10]byte{8}), Name: "laptop",
		PublicKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEdTrRhKvjm1MsOYbJvYcgBZqVkWvJyFzYTbrYBIfnPQ"}
	var first, again *bmcv1.SSHKey
	var err error
	rounds(0, "a new key", func() { first, err = b.user(0).keys.AddKey(ctx, add) })
	if err != nil {
		t.Fatal(err)
	}
	rounds(1, "the same request again", func() { again, err = b.user(0).keys.AddKey(ctx, add) })
	if err != nil || again.GetId() != first.GetId() {
		t.Fatalf("%v %v", again, err)
	}
	rounds(1, "a key that is not there", func() { _, err = b.user(0).keys.RemoveKey(ctx, &bmcv1.RemoveKeyRequest{Ref: "nobody"}) })
	refused(t, err, codes.NotFound, metal.CodeNotFound, "")
	rounds(0, "a key that is there", func() { _, err = b.user(0).keys.RemoveKey(ctx, &bmcv1.RemoveKeyRequest{Ref: "laptop"}) })
	if err != nil {
		t.Fatal(err)
	}
}

// A command built by a state of an earlier term is not proposed in a later one.
func TestBuiltInAnEarlierTerm(t *testing.T) {
	b := newBed(t, 2)
	add := &bmcv1.AddKeyRequest{RequestId: uuidV7(b.now(), [10]byte{9}), Name: "laptop"}
	_, err := b.nodes[0].api.change(t.Context(), add, func(*state.View) (*logpb.Command, error) {
		b.lead(1)
		b.lead(0) // lost and won back
		return &logpb.Command{Command: &logpb.Command_AddKey{AddKey: &logpb.AddKey{Key: &logpb.SSHKey{Id: "key-1", Name: "laptop", Project: testProject}}}}, nil
	})
	if metal.CodeOf(err) != metal.CodeNoLeader {
		t.Errorf("proposed all the same: %v", err)
	}
	if _, there := b.fsm.View().Key("key-1"); there {
		t.Error("it was applied")
	}
}

// Who asked a node that does not lead is told where the call ran.
func TestForwardedCallNamesTheLeader(t *testing.T) {
	b, _ := rentable(t, 3)
	for node, want := range []string{"", b.nodes[0].addr, b.nodes[0].addr} {
		var header metadata.MD
		_, err := b.user(node).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web", DryRun: true}, grpc.Header(&header))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(header.Get(mdLeader), " "); got != want {
			t.Errorf("node %d names %q, want %q", node, got, want)
		}
	}
}

func TestLeaderChange(t *testing.T) {
	b, _ := rentable(t, 3)
	b.lead(-1)
	time.AfterFunc(50*time.Millisecond, func() { b.lead(2) }) // elected while the call waits
	if _, err := b.user(1).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
}

func TestNoLeader(t *testing.T) {
	b, _ := rentable(t, 2)
	b.lead(-1)
	_, err := b.user(1).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"})
	refused(t, err, codes.Unavailable, metal.CodeNoLeader, "bmc cluster peers")
	_, err = b.user(1).GetServer(b.admin(), &bmcv1.GetServerRequest{Ref: "r1-u01"})
	refused(t, err, codes.Unavailable, metal.CodeNoLeader, "bmc cluster peers")
	if _, err := b.user(1).GetServer(b.admin(), &bmcv1.GetServerRequest{Ref: "r1-u01", AllowStale: true}); err != nil {
		t.Fatal(err)
	}
	st, err := b.user(1).clu.Status(b.admin(), &bmcv1.StatusRequest{})
	if err != nil || st.GetLeaderId() != "" || len(st.GetPeers()) != 2 || !st.GetPeers()[0].GetAlive() || !st.GetPeers()[1].GetAlive() {
		t.Fatalf("%v %v", st, err)
	}
}

// A leader that others still believe in refuses: the call comes back with the
// peers that were tried, and does not travel in circles.
// A replica that does not know a token, and has nobody to ask, does not say that
// the token is wrong.
func TestUnknownTokenWithoutLeader(t *testing.T) {
	b := newBed(t, 2)
	ctx := bearer(t.Context(), "bmct_tok-later_secret")
	_, err := b.user(1).ListServers(ctx, &bmcv1.ListServersRequest{})
	refused(t, err, codes.Unauthenticated, metal.CodeUnauthenticated, "")
	b.lead(-1)
	_, err = b.user(1).ListServers(ctx, &bmcv1.ListServersRequest{})
	refused(t, err, codes.Unavailable, metal.CodeNoLeader, "bmc cluster peers")
}

func TestDeposedLeaderIsNamed(t *testing.T) {
	b, _ := rentable(t, 2)
	b.beforePropose = func(*logpb.Command) (bool, error) {
		return false, metal.Errorf(metal.CodeNoLeader, "leadership lost")
	}
	_, err := b.user(1).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"})
	e := refused(t, err, codes.Unavailable, metal.CodeNoLeader, "")
	if !strings.Contains(e.Message, b.nodes[0].addr) {
		t.Fatalf("%q does not name the peer tried", e.Message)
	}
}

func TestLoopGuard(t *testing.T) {
	b, _ := rentable(t, 2)
	key := b.nodes[0].api.Peers
	conn, err := key.Conn(b.nodes[1].addr) // node 0 forwards to node 1, which does not lead
	if err != nil {
		t.Fatal(err)
	}
	md, _ := metadata.FromOutgoingContext(b.admin())
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(t.Context(), metadata.Join(md, metadata.Pairs(mdForwardedBy, b.nodes[0].id))), 5*time.Second)
	defer cancel()
	_, err = bmcv1.NewServersClient(conn).CreateServer(ctx, &bmcv1.CreateServerRequest{Name: "web-1"})
	e := refused(t, err, codes.Unavailable, metal.CodeNoLeader, "")
	if !strings.Contains(e.Message, b.nodes[1].id) {
		t.Fatalf("%q", e.Message)
	}
}

func TestAgentThroughAnyNode(t *testing.T) {
	b := newBed(t, 3)
	b.inventory("r1", 1, 1)
	a := b.join("a1", "r1", 2) // not the leader: join, leases and reports are forwarded
	if op := a.run("r1-u01"); op.State != metal.OperationSucceeded || op.Agent != a.id {
		t.Fatalf("%+v", op)
	}
	idx, err := b.nodes[1].api.Peers.ReadIndex(t.Context())
	if err != nil || idx != b.fsm.CommandIndex() {
		t.Fatalf("%d %v", idx, err)
	}
	_, err = agentv1.NewNodesClient(b.conn(0, &a.cert)).ReadIndex(t.Context(), &agentv1.ReadIndexRequest{})
	refused(t, err, codes.PermissionDenied, metal.CodeDenied, "")
}
