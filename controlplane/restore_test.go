package controlplane

import (
	"bytes"
	"errors"
	"io"
	"testing"

	bmcv1 "bmc/api/bmc/v1"
)

// A backup is restored onto three running nodes: all of them have it, and vote
// again, without anybody's help.
func TestRestoreOntoThreeNodes(t *testing.T) {
	t.Parallel()
	s := three(t)
	s.stock()
	cl, ctx := s.client(s.nodes[1])
	saving, err := cl.SaveSnapshot(ctx, &bmcv1.SaveSnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var saved bytes.Buffer
	for {
		m, err := saving.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		saved.Write(m.GetData())
	}
	if _, err := cl.CreateToken(ctx, &bmcv1.CreateTokenRequest{Name: "later", Role: "viewer"}); err != nil {
		t.Fatal(err)
	}
	restoring, err := cl.RestoreSnapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := restoring.Send(&bmcv1.RestoreSnapshotRequest{Data: saved.Bytes()}); err != nil {
		t.Fatal(err)
	}
	resp, err := restoring.CloseAndRecv()
	if err != nil {
		t.Fatal(err)
	}
	s.voters(3)
	s.await("all have the restored state", func() bool {
		want := s.leader().fsm.View()
		for _, n := range s.nodes {
			if v := n.fsm.View(); v.Hash() != want.Hash() || v.Revision() < resp.GetRevision() {
				return false
			}
		}
		return true
	})
	v := s.leader().fsm.View()
	for tok := range v.Tokens() {
		if tok.Name == "later" {
			t.Error("what came after the backup is still there")
		}
	}
	if r, err := v.ResolveRack("r1"); err != nil || !r.Frozen || v.Meta().Generation != resp.GetGeneration() {
		t.Errorf("%+v, %v, generation %d", r, err, v.Meta().Generation)
	}
	for _, n := range s.nodes {
		if err := n.died.get(); err != nil {
			t.Error(err)
		}
	}
}
