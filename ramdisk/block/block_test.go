package block

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

func open(t *testing.T, content []byte) *File {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestUnaligned(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 512)
	d := open(t, want)
	u := &Unaligned{D: d}
	copy(want[510:], "across two sectors")
	if n, err := u.WriteAt([]byte("across two sectors"), 510); n != 18 || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, 1001)
	if n, err := u.ReadAt(got, 333); n != len(got) || err != nil || !bytes.Equal(got, want[333:333+1001]) {
		t.Fatalf("%d, %v", n, err)
	}
	for _, off := range []int64{-1, int64(len(want)) - 5} {
		if _, err := u.ReadAt(make([]byte, 10), off); err == nil {
			t.Errorf("read at %d", off)
		}
	}
}

func TestDiscardAndZeroOut(t *testing.T) {
	d := open(t, bytes.Repeat([]byte{1}, 1<<20))
	if err := d.ZeroOut(0, 512<<10); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(512<<10, 512<<10); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	} else if err != nil {
		t.Skip("the file system knows no holes")
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	buf := Buffer(1 << 20)
	defer Free(buf)
	if _, err := d.ReadAt(buf, 0); err != nil || !AllZero(buf) {
		t.Fatal("not zero", err)
	}
}

func TestEach(t *testing.T) {
	var sum atomic.Int64
	err := Each(t.Context(), 100, 4096, func(_ context.Context, i int, buf []byte) error {
		sum.Add(int64(i))
		buf[0] = 1
		return nil
	})
	if err != nil || sum.Load() != 4950 {
		t.Fatal(sum.Load(), err)
	}
	broken := errors.New("broken")
	var calls atomic.Int64
	err = Each(t.Context(), 1_000_000, 4096, func(_ context.Context, i int, _ []byte) error {
		if calls.Add(1) == 10 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || calls.Load() > 1000 {
		t.Fatal(calls.Load(), err)
	}
}

func TestAllZero(t *testing.T) {
	b := make([]byte, 200_001)
	if !AllZero(b) || !AllZero(nil) {
		t.Error("zeros are not zero")
	}
	for _, at := range []int{0, 65535, 65536, 200_000} {
		b[at] = 1
		if AllZero(b) {
			t.Errorf("byte %d was overlooked", at)
		}
		b[at] = 0
	}
}
