package consensus

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
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

// Who only looks at a stopped member's stores leaves every file as it was, after a
// crash as well, and keeps out of those of a member that runs.
func TestReadStores(t *testing.T) {
	discard := slog.New(slog.DiscardHandler)
	for _, kind := range []string{StoreBolt, StoreWAL} {
		for what, prepare := range map[string]func(s *Stores) error{
			"a log": func(s *Stores) error {
				var batch []*raft.Log
				for i := range uint64(200) {
					batch = append(batch, &raft.Log{Index: i + 1, Term: 3, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d", i+1)})
				}
				return errors.Join(s.Logs.StoreLogs(batch), s.Logs.DeleteRange(191, 200), s.Logs.DeleteRange(1, 10))
			},
			"an empty log": func(*Stores) error { return nil },
		} {
			t.Run(kind+", "+what, func(t *testing.T) {
				dir := t.TempDir()
				s, err := OpenStores(dir, kind, discard)
				if err != nil {
					t.Fatal(err)
				}
				if err := prepare(s); err != nil {
					t.Fatal(err)
				}
				if _, err := ReadStores(dir, kind, discard); metal.CodeOf(err) != metal.CodeBusy {
					t.Errorf("read while it runs: %v", err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if kind == StoreWAL { // of a crash: a segment that is in no list
					if err := os.WriteFile(filepath.Join(dir, "raft", walDir, "00000000000000000007-00000000000000aa.wal"), []byte("x"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				before := filesOf(t, dir)
				if s, err = ReadStores(dir, kind, discard); err != nil {
					t.Fatal(err)
				}
				first, err1 := s.Logs.FirstIndex()
				last, err2 := s.Logs.LastIndex()
				list, err3 := s.Snapshots.List()
				if err := errors.Join(err1, err2, err3); err != nil || len(list) > 0 {
					t.Error(list, err)
				}
				if what == "a log" {
					var e raft.Log
					if err := s.Logs.GetLog(50, &e); err != nil || string(e.Data) != "entry 50" || first != 11 || last != 190 {
						t.Errorf("entries %d to %d, %q: %v", first, last, e.Data, err)
					}
				} else if last != 0 {
					t.Errorf("entries %d to %d", first, last)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if after := filesOf(t, dir); !maps.Equal(after, before) {
					t.Errorf("before %v, after %v", before, after)
				}
			})
		}
	}
}

// filesOf says what is in each file of a directory, and when it was written to.
func filesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err1 := os.ReadFile(path)
		info, err2 := d.Info()
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		out[path] = fmt.Sprintf("%x, %s", sha256.Sum256(b), info.ModTime())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
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
