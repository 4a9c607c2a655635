package rpc

import (
	"strconv"
	"strings"
	"testing"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

// hang makes a node's log store hang; consensus then says that it does not lead.
func (b *bed) hang(node int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hung = node
}

// Without a leader every reading call answers from the replica when it may, and
// says how old that is.
func TestStaleReads(t *testing.T) {
	b, _ := rentable(t, 2)
	ctx := b.admin()
	_, err := b.user(0).inv.InspectServer(ctx, &bmcv1.InspectServerRequest{Ref: "r1-u01"})
	if err != nil {
		t.Fatal(err)
	}
	var op string
	for o := range b.fsm.View().Operations("") {
		op = o.ID
	}
	b.lead(-1)
	u := b.user(1)
	for name, call := range map[string]func(...grpc.CallOption) error{
		"get": func(o ...grpc.CallOption) error {
			_, err := u.GetServer(ctx, &bmcv1.GetServerRequest{Ref: "r1-u01", AllowStale: true}, o...)
			return err
		},
		"list": func(o ...grpc.CallOption) error {
			_, err := u.ListServers(ctx, &bmcv1.ListServersRequest{AllowStale: true}, o...)
			return err
		},
		"racks": func(o ...grpc.CallOption) error {
			_, err := u.inv.ListRacks(ctx, &bmcv1.ListRacksRequest{AllowStale: true}, o...)
			return err
		},
		"rack": func(o ...grpc.CallOption) error {
			_, err := u.inv.GetRack(ctx, &bmcv1.GetRackRequest{Ref: "r1", AllowStale: true}, o...)
			return err
		},
		"sizes": func(o ...grpc.CallOption) error {
			_, err := u.inv.ListSizes(ctx, &bmcv1.ListSizesRequest{AllowStale: true}, o...)
			return err
		},
		"agents": func(o ...grpc.CallOption) error {
			_, err := u.inv.ListAgents(ctx, &bmcv1.ListAgentsRequest{AllowStale: true}, o...)
			return err
		},
		"models": func(o ...grpc.CallOption) error {
			_, err := u.inv.ListModels(ctx, &bmcv1.ListModelsRequest{AllowStale: true}, o...)
			return err
		},
		"fits": func(o ...grpc.CallOption) error {
			_, err := u.inv.TestSizes(ctx, &bmcv1.TestSizesRequest{AllowStale: true}, o...)
			return err
		},
		"operation": func(o ...grpc.CallOption) error {
			_, err := u.ops.GetOperation(ctx, &bmcv1.GetOperationRequest{Id: op, AllowStale: true}, o...)
			return err
		},
		"operations": func(o ...grpc.CallOption) error {
			_, err := u.ops.ListOperations(ctx, &bmcv1.ListOperationsRequest{AllowStale: true}, o...)
			return err
		},
		"events": func(o ...grpc.CallOption) error {
			_, err := u.ev.ListEvents(ctx, &bmcv1.ListEventsRequest{AllowStale: true}, o...)
			return err
		},
		"images": func(o ...grpc.CallOption) error {
			_, err := u.img.ListImages(ctx, &bmcv1.ListImagesRequest{AllowStale: true}, o...)
			return err
		},
		"keys": func(o ...grpc.CallOption) error {
			_, err := u.keys.ListKeys(ctx, &bmcv1.ListKeysRequest{AllowStale: true}, o...)
			return err
		},
		"tokens": func(o ...grpc.CallOption) error {
			_, err := u.clu.ListTokens(ctx, &bmcv1.ListTokensRequest{AllowStale: true}, o...)
			return err
		},
		"explain": func(o ...grpc.CallOption) error {
			e, err := u.ExplainServer(ctx, &bmcv1.ExplainServerRequest{Ref: "r1-u01", AllowStale: true}, o...)
			if err == nil && (e.GetRevision() == 0 || e.GetAge().AsDuration() != time.Minute) {
				t.Errorf("explain: revision %d, age %v", e.GetRevision(), e.GetAge())
			}
			return err
		},
	} {
		var md metadata.MD
		if err := call(grpc.Header(&md)); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if age, rev := md.Get(mdStaleAge), md.Get(mdStaleRevision); len(age) != 1 || age[0] != "1m0s" || len(rev) != 1 || rev[0] != strconv.FormatUint(b.fsm.View().Revision(), 10) {
			t.Errorf("%s: as of %v, heard %v ago", name, rev, age)
		}
	}
	_, err = u.ExplainServer(ctx, &bmcv1.ExplainServerRequest{Ref: "r1-u01"})
	refused(t, err, codes.Unavailable, metal.CodeNoLeader, "")
}

// A node whose log store hangs says so, of itself and to the others, and sends
// callers on at once instead of waiting for a leader.
func TestHungNode(t *testing.T) {
	b, _ := rentable(t, 3)
	b.lead(1)
	b.hang(0)
	for node := range 3 {
		peers, err := b.user(node).clu.Peers(b.admin(), &bmcv1.PeersRequest{})
		if err != nil || len(peers.GetPeers()) != 3 {
			t.Fatal(peers, err)
		}
		for i, p := range peers.GetPeers() {
			if strings.Contains(p.GetError(), "log store hangs") != (i == 0) {
				t.Errorf("node %d says of %s: %q", node, p.GetName(), p.GetError())
			}
		}
	}
	ctx := b.admin()
	b.lead(-1)
	b.nodes[0].api.LeaderWait = time.Minute // would be waited for
	began := time.Now()
	_, err := b.user(0).inv.ListRacks(ctx, &bmcv1.ListRacksRequest{})
	refused(t, err, codes.Unavailable, metal.CodeNoLeader, "")
	_, err = b.user(0).inv.ThawRack(ctx, &bmcv1.ThawRackRequest{Ref: "r1"})
	refused(t, err, codes.Unavailable, metal.CodeNoLeader, "")
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
}

// Leadership is offered to nobody who is dead or cannot write: no transfer is
// begun, which would hold writes up.
func TestTransferLeaderAsksFirst(t *testing.T) {
	b, _ := rentable(t, 3)
	u, ctx := b.user(0), b.admin()
	b.nodes[2].lis.Close()
	b.hang(1)
	for ref, want := range map[string]string{"cp3": "cp3 does not answer", "cp2": "log store hangs", "": "no other voter answers"} {
		_, err := u.clu.TransferLeader(ctx, &bmcv1.TransferLeaderRequest{Ref: ref})
		if e := refused(t, err, codes.FailedPrecondition, metal.CodeWrongState, "bmc cluster peers"); !strings.Contains(e.Message, want) {
			t.Errorf("%q: %s", ref, e.Message)
		}
	}
	if _, err := u.inv.ThawRack(ctx, &bmcv1.ThawRackRequest{Ref: "r1"}); err != nil || b.handed != 0 {
		t.Errorf("%d transfers were begun; a write: %v", b.handed, err)
	}
	b.hang(-1)
	res, err := u.clu.TransferLeader(ctx, &bmcv1.TransferLeaderRequest{}) // not to cp3, whatever raft thinks of it
	if err != nil || res.GetLeaderName() != "cp2" || b.handed != 1 {
		t.Errorf("%v leads after %d transfers: %v", res, b.handed, err)
	}
}

// Who was removed learns from the others that they are another cluster by now.
func TestRemovedNodeIsRefused(t *testing.T) {
	b, _ := rentable(t, 2)
	n := b.nodes[1]
	ours := &bmcv1.Peer{Id: b.nodes[0].id, Address: b.nodes[0].addr}
	c := &cluster{API: n.api}
	if c.ask(t.Context(), ours); !ours.GetAlive() || ours.GetRefuses() {
		t.Fatal(ours)
	}
	if _, err := b.user(0).clu.RemoveNode(b.admin(), &bmcv1.RemoveNodeRequest{Ref: "cp2", Force: true}); err != nil {
		t.Fatal(err)
	}
	ours = &bmcv1.Peer{Address: b.nodes[0].addr}
	c.ask(t.Context(), ours)
	if ours.GetAlive() || !ours.GetRefuses() {
		t.Error(ours)
	}
}
