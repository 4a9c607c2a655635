package gpt

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var linux = GUID{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}

func parts() []Layout {
	return []Layout{{ESP, 2048, 4095}, {linux, 4096, 20479}}
}

// image is a 12 MiB disk in a file of grown bytes.
func image(t *testing.T, sector int, grown int64, parts ...Layout) *os.File {
	t.Helper()
	const size = 12 << 20
	head, tail := Format(sector, uint64(size/sector), parts...)
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(grown); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(tail, size-int64(len(tail))); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestGrow(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		const formerly, grown = 12 << 20, 100<<20 + 4096*3
		layout := parts()
		if sector == 4096 {
			layout = []Layout{{ESP, 256, 511}, {linux, 512, 2559}}
		}
		f := image(t, sector, grown, layout...)
		table, err := Read(f, sector)
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Grow(grown, 2); err != nil {
			t.Fatal(err)
		}
		if err := table.Write(f, formerly); err != nil {
			t.Fatal(err)
		}
		again, err := Read(f, sector)
		if err != nil {
			t.Fatal(err)
		}
		root, _ := again.Partition(2)
		off, n := again.Bytes(root)
		if off != int64(layout[1].First)*int64(sector) || (off+n)%alignment != 0 || off+n != 99<<20 {
			t.Errorf("sector %d: partition at %d, %d bytes", sector, off, n)
		}
		if esp, _ := again.Partition(1); esp.Type != ESP || esp.Last != layout[0].Last {
			t.Errorf("sector %d: the other partition changed: %+v", sector, esp)
		}
		old := make([]byte, sector)
		if _, err := f.ReadAt(old, formerly-int64(sector)); err != nil || !bytes.Equal(old, make([]byte, sector)) {
			t.Errorf("sector %d: the former backup is still there", sector)
		}
		if sector == 512 {
			sfdisk(t, f.Name())
		}
	}
}

// sfdisk is the second opinion.
func sfdisk(t *testing.T, file string) {
	t.Helper()
	path, err := exec.LookPath("sfdisk")
	if err != nil {
		path = "/sbin/sfdisk"
		if _, err := os.Stat(path); err != nil {
			t.Log("sfdisk is not installed: nobody else has checked the table")
			return
		}
	}
	out, err := exec.Command(path, "--verify", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No errors detected") {
		t.Errorf("sfdisk: %v\n%s", err, out)
	}
}

func TestGrowRefusals(t *testing.T) {
	read := func(layout ...Layout) *Table {
		table, err := Read(image(t, 512, 12<<20, layout...), 512)
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	for name, err := range map[string]error{
		"smaller disk":   read(parts()...).Grow(10<<20, 2),
		"tiny disk":      read(parts()...).Grow(1<<10, 0),
		"no partition":   read(parts()...).Grow(100<<20, 3),
		"number too big": read(parts()...).Grow(100<<20, 1000),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := read(parts()...).Grow(12<<20, 2); err != nil {
		t.Errorf("the same size: %v", err)
	}
	first := read(parts()...)
	if err := first.Grow(100<<20, 1); err != nil {
		t.Errorf("not the last: %v", err)
	}
	if p, _ := first.Partition(1); p.Last != parts()[0].Last {
		t.Error("a partition grew over the next")
	}
	if err := read().Grow(100<<20, 0); err != nil {
		t.Errorf("no partitions: %v", err)
	}
}

func TestReadRefusals(t *testing.T) {
	for name, edit := range map[string]func(b []byte){
		"header bit":     func(b []byte) { b[512+40] ^= 1 },
		"entry bit":      func(b []byte) { b[1024+32] ^= 1 },
		"no signature":   func(b []byte) { b[512] = 0 },
		"reserved sizes": func(b []byte) { b[512+12] = 200 },
	} {
		head, _ := Format(512, 24576, parts()...)
		edit(head)
		_, err := Read(bytes.NewReader(head), 512)
		if err == nil || errors.Is(err, ErrNone) != (name == "no signature") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read(bytes.NewReader(nil), 512); !errors.Is(err, ErrNone) {
		t.Errorf("an empty disk: %v", err)
	}
}

func TestGUIDText(t *testing.T) {
	if got := ESP.String(); got != "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" {
		t.Error(got)
	}
}

func FuzzRead(f *testing.F) {
	head, _ := Format(512, 24576, parts()...)
	f.Add(head)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b)
		// With valid checksums the fuzzer gets past them.
		if len(b) >= 1024+maxEntries*entrySize {
			table := &Table{sector: 512, header: b[512:1024], entries: b[1024 : 1024+maxEntries*entrySize]}
			table.seal()
		}
		table, err := Read(bytes.NewReader(b), 512)
		if err != nil {
			return
		}
		for _, p := range table.Partitions() {
			table.Bytes(p)
			_ = table.Grow(1<<40, p.Number)
		}
	})
}
