package fsm

import (
	"testing"

	"github.com/hashicorp/raft"

	"bmc/fsm/logpb"
)

// Replicas that got the same commands in other batches have the same marks.
func TestHashMarks(t *testing.T) {
	w := newWorld(t)
	w.ok(cInit())
	other := New(Options{})
	for range 2500 {
		w.idx += 2 // raft's own entries lie between
		w.apply(&logpb.Command{Command: &logpb.Command_RevokeToken{RevokeToken: &logpb.RevokeToken{TokenId: "none"}}})
	}
	idx := uint64(1)
	var batch []*raft.Log
	for i, b := range w.log {
		batch = append(batch, &raft.Log{Index: idx, Type: raft.LogCommand, Data: b})
		if idx += 3; len(batch) == 7 || i == len(w.log)-1 {
			other.ApplyBatch(batch)
			batch = nil
		}
	}
	if a, b := w.f.View().Revision(), other.View().Revision(); a != b {
		t.Fatalf("revisions %d and %d", a, b)
	}
	if len(w.f.marks) != 7 || len(other.marks) != 7 {
		t.Fatalf("%d and %d marks", len(w.f.marks), len(other.marks))
	}
	for _, m := range w.f.marks {
		if got, ok := other.StateHashAt(m.Revision); !ok || got != m {
			t.Errorf("at %d: %v", m.Revision, ok)
		}
	}
	if newest, ok := other.StateHashAt(0); !ok || newest != w.f.marks[6] {
		t.Errorf("newest: %+v", newest)
	}
	if now, ok := other.StateHashAt(other.View().Revision()); !ok || now.Hash != w.f.View().Hash() {
		t.Errorf("now: %+v", now)
	}
	if _, ok := other.StateHashAt(17); ok {
		t.Error("a hash of no mark")
	}
}
