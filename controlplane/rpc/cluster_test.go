package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/test/bufconn"
)

func TestStatusAndPeers(t *testing.T) {
	b, _ := rentable(t, 3)
	for node := range 3 {
		st, err := b.user(node).clu.Status(b.token("vera", metal.RoleViewer, testProject), &bmcv1.StatusRequest{})
		if err != nil || st.GetNodeId() != b.nodes[node].id || st.GetLeaderId() != b.nodes[0].id || st.GetServers() != 1 || st.GetAvailable() != 1 || st.GetAgents() != 1 {
			t.Fatalf("%v %v", st, err)
		}
		peers, err := b.user(node).clu.Peers(b.admin(), &bmcv1.PeersRequest{})
		if err != nil || len(peers.GetPeers()) != 3 {
			t.Fatalf("%v %v", peers, err)
		}
		for i, p := range peers.GetPeers() {
			if !p.GetAlive() || p.GetLeader() != (i == 0) || p.GetSuffrage() != "voter" || len(p.GetStateHash()) == 0 || p.GetError() != "" {
				t.Errorf("%v", p)
			}
		}
	}
}

// A node that takes connections and says nothing, being stopped, does not keep the
// others from saying who leads within the caller's time.
func TestStatusWithANodeThatSaysNothing(t *testing.T) {
	b, _ := rentable(t, 3)
	b.nodes[2].lis = bufconn.Listen(1) // nobody accepts
	ctx, cancel := context.WithTimeout(b.admin(), time.Second)
	defer cancel()
	st, err := b.user(1).clu.Status(ctx, &bmcv1.StatusRequest{})
	if err != nil || st.GetLeaderId() != b.nodes[0].id || len(st.GetPeers()) != 3 {
		t.Fatalf("%v %v", st, err)
	}
	for i, p := range st.GetPeers() {
		if p.GetAlive() != (i != 2) {
			t.Errorf("%v", p)
		}
	}
}

func save(t *testing.T, b *bed) []byte {
	t.Helper()
	s, err := b.user(1).clu.SaveSnapshot(b.admin(), &bmcv1.SaveSnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out.Bytes()
		}
		if err != nil {
			t.Fatal(err)
		}
		out.Write(m.GetData())
	}
}

func TestSnapshotSaveInspectRestore(t *testing.T) {
	b, _ := rentable(t, 2)
	saved := save(t, b)
	inspectIt := func(data []byte) (*bmcv1.InspectSnapshotResponse, error) {
		s, err := b.user(1).clu.InspectSnapshot(b.admin())
		if err != nil {
			t.Fatal(err)
		}
		for len(data) > 0 {
			n := min(1000, len(data))
			if s.Send(&bmcv1.SnapshotChunk{Data: data[:n]}) != nil {
				break
			}
			data = data[n:]
		}
		return s.CloseAndRecv()
	}
	info, err := inspectIt(saved)
	if err != nil || info.GetClusterId() != testCluster || info.GetSizeBytes() != uint64(len(saved)) || len(info.GetRows()) == 0 {
		t.Fatalf("%v %v", info, err)
	}
	damaged := bytes.Clone(saved)
	damaged[len(damaged)/2] ^= 4
	_, err = inspectIt(damaged)
	refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
	_, err = inspectIt(nil)
	refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")

	// What happens after the backup is undone; leases are void.
	if _, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	w, err := b.user(1).ev.Watch(b.admin(), &bmcv1.WatchRequest{Kinds: []string{"server"}})
	if err != nil {
		t.Fatal(err)
	}
	recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetBookmark() })
	restore := func(data []byte) (*bmcv1.RestoreSnapshotResponse, error) {
		s, err := b.user(1).clu.RestoreSnapshot(b.admin()) // by way of the node that does not lead
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&bmcv1.RestoreSnapshotRequest{RequestId: uuidV7(b.now(), [10]byte{5})}); err != nil {
			t.Fatal(err)
		}
		for len(data) > 0 {
			n := min(1000, len(data))
			if s.Send(&bmcv1.RestoreSnapshotRequest{Data: data[:n]}) != nil {
				break
			}
			data = data[n:]
		}
		return s.CloseAndRecv()
	}
	_, err = restore(damaged)
	refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
	gen := b.fsm.View().Meta().Generation
	resp, err := restore(saved)
	if err != nil || resp.GetGeneration() <= gen {
		t.Fatalf("%v %v, generation was %d", resp, err, gen)
	}
	recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetResync() })
	srv, err := b.user(0).GetServer(b.admin(), &bmcv1.GetServerRequest{Ref: "r1-u01"})
	if err != nil || srv.GetState() != "available" {
		t.Fatalf("%v %v", srv, err)
	}
}

// The leader dies between the restore and the command that follows it: the
// generation is raised all the same, because it is in what was restored.
func TestRestoreWithoutItsCommand(t *testing.T) {
	b, _ := rentable(t, 2)
	saved := save(t, b)
	gen, before := b.fsm.View().Meta().Generation, b.fsm.View().Revision()
	b.unknown(false)
	s, err := b.user(0).clu.RestoreSnapshot(b.admin())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&bmcv1.RestoreSnapshotRequest{Data: saved}); err != nil {
		t.Fatal(err)
	}
	_, err = s.CloseAndRecv()
	refused(t, err, codes.Unavailable, metal.CodeUnknownOutcome, "")
	v := b.fsm.View()
	if v.Meta().Generation <= gen {
		t.Errorf("generation %d, was %d", v.Meta().Generation, gen)
	}
	if v.Revision() <= before { // a replica that has not been restored would pass for a current one
		t.Errorf("revision %d, was %d", v.Revision(), before)
	}
	if r, err := v.ResolveRack("r1"); err != nil || !r.Frozen || r.Lease.Agent != "" {
		t.Errorf("rack r1 is %+v, %v", r, err)
	}
}

// A restore that is asked for while another runs was raised above the state before
// both: it does not come after the other, in the same generation.
func TestRestoreOvertakenByAnother(t *testing.T) {
	b, _ := rentable(t, 2)
	saved := save(t, b)
	gen := b.fsm.View().Meta().Generation
	restore := func() (*bmcv1.RestoreSnapshotResponse, error) {
		s, err := b.user(0).clu.RestoreSnapshot(b.admin())
		if err != nil {
			t.Error(err)
			return nil, err
		}
		if err := s.Send(&bmcv1.RestoreSnapshotRequest{Data: saved}); err != nil {
			t.Error(err)
		}
		return s.CloseAndRecv()
	}
	b.beforeRestore = func() {
		if _, err := restore(); err != nil {
			t.Errorf("the first: %v", err)
		}
	}
	_, err := restore()
	refused(t, err, codes.Aborted, metal.CodeConflict, "")
	if got := b.fsm.View().Meta().Generation; got != gen+1 {
		t.Errorf("generation %d, was %d", got, gen)
	}
	if resp, err := restore(); err != nil || resp.GetGeneration() != gen+2 {
		t.Errorf("one after both: %v, %v", resp, err)
	}
	// What is known of the nodes changes: they would be put back as they were.
	b.beforeRestore = func() {
		b.must(&logpb.Command{Command: &logpb.Command_RegisterFeatureLevel{RegisterFeatureLevel: &logpb.RegisterFeatureLevel{NodeId: b.nodes[1].id, Level: fsm.FeatureLevel + 1}}})
	}
	_, err = restore()
	refused(t, err, codes.Aborted, metal.CodeConflict, "bmc cluster snapshot restore FILE")
	if got := b.fsm.View().Meta().Generation; got != gen+2 {
		t.Errorf("generation %d", got)
	}
}

// A restore in the middle of a rolling upgrade raises the level to what the oldest node
// knows, be it down at the moment: it could not read what comes after.
func TestRestoreKeepsToTheOldestNode(t *testing.T) {
	for _, tt := range []struct {
		levels []uint32
		want   uint32 // 0: the backup's own
	}{
		{[]uint32{fsm.FeatureLevel, fsm.FeatureLevel, fsm.FeatureLevel}, fsm.FeatureLevel},
		{[]uint32{fsm.FeatureLevel, fsm.FeatureLevel + 1}, fsm.FeatureLevel},
		{[]uint32{fsm.FeatureLevel, fsm.BackupLevel, fsm.FeatureLevel}, fsm.BackupLevel},
		{[]uint32{fsm.FeatureLevel, fsm.BackupLevel - 1}, 0},
	} {
		x := state.New().Begin()
		for i, l := range tt.levels {
			x.PutNode(&metal.Node{ID: fmt.Sprint(i), Name: fmt.Sprint("cp", i), FeatureLevel: l})
		}
		if got := knownToAll(x.Commit()); got != tt.want {
			t.Errorf("nodes of %v: level %d, want %d", tt.levels, got, tt.want)
		}
	}
}

// The last administrator's token cannot be revoked: nobody could undo it.
func TestLastAdministrator(t *testing.T) {
	b := newBed(t, 1)
	ctx := b.admin()
	var admins []string
	list, err := b.user(0).clu.ListTokens(ctx, &bmcv1.ListTokensRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tok := range list.GetTokens() {
		if tok.GetKind() == "user" && tok.GetRole() == string(metal.RoleAdmin) {
			admins = append(admins, tok.GetId())
		}
	}
	for i, id := range admins {
		_, err := b.user(0).clu.RevokeToken(ctx, &bmcv1.RevokeTokenRequest{Id: id})
		if i < len(admins)-1 {
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		refused(t, err, codes.FailedPrecondition, metal.CodeWrongState, "bmc token create NAME --role admin")
	}
}
