package wipe

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"bmc/metal"
	"bmc/ramdisk/block"
)

// memory is a disk in RAM with faults.
type memory struct {
	data      []byte
	discard   func(m *memory, off, n int64) error
	stuck     int64 // a byte that keeps its value; -1: none
	failRead  int64
	failZero  error
	forgetful bool // Sync fails
}

func newMemory(n int) *memory {
	m := &memory{data: bytes.Repeat([]byte("secret!!"), n/8), stuck: -1, failRead: -1}
	m.discard = func(m *memory, off, n int64) error { clear(m.data[off : off+n]); return nil }
	return m
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if m.failRead >= off && m.failRead < off+int64(len(p)) {
		return 0, errors.New("medium error")
	}
	return copy(p, m.data[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	keep := byte(0)
	if m.stuck >= 0 {
		keep = m.data[m.stuck]
	}
	n := copy(m.data[off:], p)
	if m.stuck >= 0 {
		m.data[m.stuck] = keep
	}
	return n, nil
}
func (m *memory) Size() int64                { return int64(len(m.data)) }
func (m *memory) SectorSize() int            { return 512 }
func (m *memory) Discard(off, n int64) error { return m.discard(m, off, n) }
func (m *memory) ZeroOut(off, n int64) error {
	if m.failZero != nil {
		return m.failZero
	}
	_, err := m.WriteAt(make([]byte, n), off)
	return err
}
func (m *memory) Sync() error {
	if m.forgetful {
		return errors.New("flush failed")
	}
	return nil
}

func TestDisk(t *testing.T) {
	const size = 9<<20 + 512 // the last segment is short
	unsupported := func(*memory, int64, int64) error { return errors.ErrUnsupported }
	for _, tt := range []struct {
		name   string
		edit   func(*memory)
		method string
		code   metal.Code
	}{
		{"discard does it", func(*memory) {}, "discard", ""},
		{"no discard", func(m *memory) { m.discard = unsupported }, "overwrite", ""},
		{"discard does nothing", func(m *memory) { m.discard = func(*memory, int64, int64) error { return nil } }, "overwrite", ""},
		{"discard leaves the backup GPT", func(m *memory) {
			m.discard = func(m *memory, off, n int64) error { clear(m.data[off : off+n-33*512]); return nil }
		}, "overwrite", ""},
		{"a byte is stuck", func(m *memory) { m.stuck, m.discard = size-1, unsupported }, "", metal.CodeWipeFailed},
		{"a sector cannot be read", func(m *memory) { m.failRead = 5 << 20 }, "", metal.CodeWipeFailed},
		{"a sector cannot be written", func(m *memory) { m.discard, m.failZero = unsupported, errors.New("medium error") }, "", metal.CodeWipeFailed},
		{"the cache cannot be flushed", func(m *memory) { m.forgetful = true }, "", metal.CodeWipeFailed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMemory(size)
			tt.edit(m)
			got, err := Disk(t.Context(), m, func(int64, int64) {})
			if metal.CodeOf(err) != tt.code {
				t.Fatalf("error %v, want code %q", err, tt.code)
			}
			if err != nil {
				return
			}
			if want := (Result{Method: tt.method, Bytes: size, ReadBack: size}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if !block.AllZero(m.data) {
				t.Error("the disk is not empty")
			}
		})
	}
}

func TestDiskOnAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, bytes.Repeat([]byte("tenant's marker "), 1172*512/16), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := block.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var last, total int64
	got, err := Disk(t.Context(), d, func(a, b int64) { last, total = max(last, a), b })
	if err != nil {
		t.Fatal(err)
	}
	if got.ReadBack != d.Size() || last != total || total != 2*d.Size() {
		t.Errorf("%+v, progress %d of %d", got, last, total)
	}
	data, err := os.ReadFile(file)
	if err != nil || !block.AllZero(data) || int64(len(data)) != d.Size() {
		t.Error("the file is not empty")
	}
}

func TestCancelIsNoFailedWipe(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if _, err := Disk(ctx, newMemory(1<<20), func(int64, int64) {}); !errors.Is(err, stop) {
		t.Fatal(err)
	}
}

// A disk that says that it was erased and was not is found out.
func TestInvariantWipeIsReadBack(t *testing.T) {
	m := newMemory(1 << 20)
	m.discard = func(*memory, int64, int64) error { return nil }
	m.stuck = 4096
	r, err := Disk(t.Context(), m, func(int64, int64) {})
	if err == nil && r.ReadBack == m.Size() && !block.AllZero(m.data) {
		t.Errorf("violated I10: a wipe that is said to be read back has left a former tenant's data: %q", m.data[4096:4104])
	}
}
