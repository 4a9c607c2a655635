package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"bmc/metal"
)

// What raft needs of a log store, of each kind: entries and votes come back after
// it was closed, both ends can be cut off, and no second process gets in.
func TestLogStores(t *testing.T) {
	for _, kind := range []string{StoreBolt, StoreWAL} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			open := func() *Stores {
				s, err := OpenStores(dir, kind, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			s := open()
			if used, err := s.Used(); used || err != nil {
				t.Fatalf("a new one is used: %v %v", used, err)
			}
			var batch []*raft.Log
			for i := range uint64(100) {
				batch = append(batch, &raft.Log{Index: i + 1, Term: 3, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d", i+1)})
			}
			for _, err := range []error{s.Logs.StoreLogs(batch), s.Stable.SetUint64([]byte("CurrentTerm"), 3), s.Stable.Set([]byte("vote"), []byte("me")),
				s.Logs.DeleteRange(1, 10), s.Logs.DeleteRange(91, 100)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open()
			first, err1 := s.Logs.FirstIndex()
			last, err2 := s.Logs.LastIndex()
			if first != 11 || last != 90 || err1 != nil || err2 != nil {
				t.Errorf("entries %d to %d: %v %v", first, last, err1, err2)
			}
			var e raft.Log
			if err := s.Logs.GetLog(50, &e); err != nil || string(e.Data) != "entry 50" || e.Term != 3 {
				t.Errorf("entry 50: %v %+v", err, e)
			}
			// What replaced the end that was cut off, and what was kept before it.
			if err := s.Logs.StoreLogs([]*raft.Log{{Index: 91, Term: 4, Data: []byte("another 91")}}); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open()
			for index, want := range map[uint64]string{11: "entry 11", 90: "entry 90", 91: "another 91"} {
				if err := s.Logs.GetLog(index, &e); err != nil || string(e.Data) != want {
					t.Errorf("entry %d after another start: %v %q", index, err, e.Data)
				}
			}
			if err := s.Logs.GetLog(92, &e); !errors.Is(err, raft.ErrLogNotFound) {
				t.Errorf("entry 92, which was cut off: %v", err)
			}
			term, err1 := s.Stable.GetUint64([]byte("CurrentTerm"))
			vote, err2 := s.Stable.Get([]byte("vote"))
			if term != 3 || string(vote) != "me" || err1 != nil || err2 != nil {
				t.Errorf("term %d, vote %q: %v %v", term, vote, err1, err2)
			}
			if used, err := s.Used(); !used || err != nil {
				t.Errorf("it is used: %v %v", used, err)
			}
			if _, err := OpenStores(dir, kind, slog.New(slog.DiscardHandler)); metal.CodeOf(err) != metal.CodeBusy {
				t.Errorf("opened twice: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			other := map[string]string{StoreBolt: StoreWAL, StoreWAL: StoreBolt}[kind]
			if _, err := OpenStores(dir, other, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "of the kind "+kind) {
				t.Errorf("opened as %s: %v", other, err)
			}
		})
	}
	if err := CheckStore("mysql"); metal.CodeOf(err) != metal.CodeInvalid {
		t.Errorf("an unknown kind: %v", err)
	}
}

// Raft must see through the guard that a log can have no hole.
func TestGuardKeepsMonotonic(t *testing.T) {
	for kind, want := range map[string]bool{StoreBolt: false, StoreWAL: true} {
		s, err := OpenStores(t.TempDir(), kind, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if g := (&guard{LogStore: s.Logs}); g.IsMonotonic() != want {
			t.Errorf("%s: monotonic is %v", kind, g.IsMonotonic())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
