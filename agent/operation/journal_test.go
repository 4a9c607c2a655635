package operation

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"bmc/metal"
)

func writeJournal(t testing.TB, path string, records ...Record) {
	t.Helper()
	j, _, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := j.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// A crash may cut the file anywhere: every whole record before the cut is read
// back, and what is appended afterwards follows them.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	whole := filepath.Join(dir, "whole")
	writeJournal(t, whole, Record{Kind: RecordBegun, Step: "a"}, Record{Kind: RecordIntent, Step: "b", Act: "on"}, Record{Kind: RecordEnded})
	data, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(data) + 1 {
		path := filepath.Join(dir, "cut")
		if err := os.WriteFile(path, data[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j, before, err := OpenJournal(path)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if err := j.Append(Record{Kind: RecordReport, Sequence: 9}); err != nil {
			t.Fatal(err)
		}
		_ = j.Close()
		_, after, err := OpenJournal(path)
		if err != nil || len(after) != len(before)+1 || after[len(before)].Sequence != 9 {
			t.Fatalf("cut at %d: %d records, then %d, %v", cut, len(before), len(after), err)
		}
		if cut == len(data) && len(before) != 3 {
			t.Errorf("%d records of a whole file", len(before))
		}
	}
}

func TestBitFlip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	writeJournal(t, path, Record{Kind: RecordBegun, Step: "a"}, Record{Kind: RecordBegun, Step: "b"})
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(journalMagic); i < len(data); i++ {
		bad := bytes.Clone(data)
		bad[i] ^= 0x10
		records, _, err := decode(bad)
		if err != nil || len(records) > 1 {
			t.Fatalf("flip at %d: %d records, %v", i, len(records), err)
		}
	}
	if _, _, err := OpenJournal(filepath.Join(t.TempDir(), "none", "j")); err == nil {
		t.Error("a missing directory is no journal")
	}
	if err := os.WriteFile(path, []byte("something else entirely"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenJournal(path); err == nil {
		t.Error("another kind of file is no journal")
	}
}

func TestPruneKeepsTheNewest(t *testing.T) {
	dir := t.TempDir()
	for i := range keepJournals + 5 {
		path := filepath.Join(dir, time.Unix(int64(i), 0).UTC().Format("150405")+".journal")
		writeJournal(t, path, Record{Kind: RecordEnded, Step: metal.StepWipe})
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != keepJournals || entries[0].Name() != "000005.journal" {
		t.Errorf("%d journals left, the first %v, %v", len(entries), entries[0], err)
	}
}

func FuzzJournal(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed")
	writeJournal(f, path, Record{Kind: RecordIntent, Step: "boot-ramdisk", Act: "on-0"}, Record{Kind: RecordReport, Sequence: 3})
	data, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)-3])
	f.Fuzz(func(t *testing.T, data []byte) {
		records, good, err := decode(data)
		if err != nil {
			return
		}
		if good > len(data) {
			t.Fatalf("%d good bytes of %d", good, len(data))
		}
		again, same, err := decode(data[:good])
		if err != nil || same != good || len(again) != len(records) {
			t.Fatalf("the good part reads differently: %d and %d records, %v", len(records), len(again), err)
		}
		replay(records)
	})
}
