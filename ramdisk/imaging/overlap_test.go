package imaging

import (
	"context"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"bmc/internal/manifest"
	"bmc/metal"
	"bmc/ramdisk/block"
)

// watched notes when ranges were written, flushed and read, on a clock that ticks at
// each of them.
type watched struct {
	block.Device
	mu     sync.Mutex
	clock  int
	wrote  map[int64]int // by offset: when its last write ended
	synced []int         // when flushes that are over began
	last   int           // when the last chunk was written
	early  int           // reads before everything was written
	data   int           // chunks written
	chunks int           // there are
	t      *testing.T
}

func (w *watched) tick() int {
	w.clock++
	return w.clock
}

func (w *watched) WriteAt(p []byte, off int64) (int, error) {
	n, err := w.Device.WriteAt(p, off)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrote[off] = w.tick()
	w.last = w.wrote[off]
	w.data++
	return n, err
}

func (w *watched) ZeroOut(off, n int64) error {
	err := w.Device.ZeroOut(off, n)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrote[off] = w.tick()
	return err
}

func (w *watched) Sync() error {
	w.mu.Lock()
	began := w.tick()
	w.mu.Unlock()
	err := w.Device.Sync()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.synced = append(w.synced, began)
	return err
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	at, written := w.wrote[off]
	if written && !slices.ContainsFunc(w.synced, func(s int) bool { return s > at }) {
		w.t.Errorf("byte %d was read back before a flush that followed its write", off)
	}
	if written && w.data < w.chunks {
		w.early++
	}
	if !written && (w.data < w.chunks || !slices.ContainsFunc(w.synced, func(s int) bool { return s > w.last })) {
		w.t.Errorf("the hole at byte %d was read before everything was written and flushed", off)
	}
	w.mu.Unlock()
	return w.Device.ReadAt(p, off)
}

// many is an image of data and some holes.
func many(t *testing.T) (raw []byte, m *manifest.Manifest, frames map[string][]byte) {
	t.Helper()
	raw = make([]byte, 64*chunk)
	r := rand.New(rand.NewSource(2))
	for i := range 64 {
		if i%7 != 3 {
			r.Read(raw[i*chunk : i*chunk+5000])
		}
	}
	return build(t, raw)
}

func TestReadBackFollowsAFlush(t *testing.T) {
	raw, m, frames := many(t)
	for name, batch := range map[string]int64{"meanwhile": 2 * chunk, "afterwards": 0} {
		t.Run(name, func(t *testing.T) {
			d, file := dirtyDisk(t, len(raw))
			w := &watched{Device: d, wrote: map[int64]int{}, chunks: len(m.Chunks), t: t}
			if _, err := write(t.Context(), w, m, serve(t, frames, content), Options{Progress: func(int64, int64, string) {}}, batch); err != nil {
				t.Fatal(err)
			}
			if (batch > 0) != (w.early > 0) {
				t.Errorf("%d reads before everything was written", w.early)
			}
			if got, err := os.ReadFile(file); err != nil || !slices.Equal(got, raw) {
				t.Errorf("the disk is not the image: %v", err)
			}
		})
	}
}

// small is a disk that says that it is larger than it is: what is beyond its end
// comes to lie at its beginning.
type small struct {
	block.Device
	real int64
}

func (s small) WriteAt(p []byte, off int64) (int, error) { return s.Device.WriteAt(p, off%s.real) }
func (s small) ReadAt(p []byte, off int64) (int, error)  { return s.Device.ReadAt(p, off%s.real) }
func (s small) ZeroOut(off, n int64) error               { return s.Device.ZeroOut(off%s.real, n) }

// halves gives the second half of the chunks when the first has been read back.
type halves struct {
	Source
	at   int64
	half <-chan struct{}
}

func (s halves) Get(ctx context.Context, c manifest.Chunk, scratch, dst []byte) ([]byte, error) {
	if c.Offset >= s.at {
		select {
		case <-s.half:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s.Source.Get(ctx, c, scratch, dst)
}

// counted closes half when that many different places were read.
type counted struct {
	block.Device
	mu    sync.Mutex
	seen  map[int64]bool
	until int
	half  chan struct{}
}

func (r *counted) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.Device.ReadAt(p, off)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[off] = true; len(r.seen) == r.until {
		r.until = -1
		close(r.half)
	}
	return n, err
}

func TestDiskSmallerThanItSays(t *testing.T) {
	raw := make([]byte, 64*chunk)
	rand.New(rand.NewSource(3)).Read(raw)
	_, m, frames := build(t, raw)
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, len(raw)), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := block.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	for name, batch := range map[string]int64{"read back meanwhile": chunk, "read back afterwards": 0} {
		d := &counted{Device: small{f, 32 * chunk}, seen: map[int64]bool{}, until: 32, half: make(chan struct{})}
		var src Source = serve(t, frames, content)
		if batch > 0 {
			src = halves{src, 32 * chunk, d.half}
		}
		_, err := write(t.Context(), d, m, src, Options{Progress: func(int64, int64, string) {}}, batch)
		if metal.CodeOf(err) != metal.CodeVerifyFailed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The image's data comes to lie in its own holes, and all of it is written before anything
// is read. Whether a hole's zeros then replace a chunk that was good, or the hole is read
// and found, the image is not on the disk.
func TestHolesOfADiskSmallerThanItSays(t *testing.T) {
	for name, o := range map[string]struct {
		chunks   []int
		rotating bool
	}{
		"a chunk in an earlier hole":             {[]int{40}, false},
		"a chunk in a later hole":                {[]int{8}, false},
		"chunks in both":                         {[]int{8, 41}, false},
		"a chunk in an earlier hole, afterwards": {[]int{40}, true},
		"a chunk in a later hole, afterwards":    {[]int{8}, true},
	} {
		t.Run(name, func(t *testing.T) {
			raw := make([]byte, 64*chunk)
			r := rand.New(rand.NewSource(4))
			for _, i := range o.chunks {
				r.Read(raw[i*chunk : (i+1)*chunk])
			}
			_, m, frames := build(t, raw)
			file := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(file, make([]byte, len(raw)), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := block.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(f.Close)
			_, err = Write(t.Context(), small{f, 32 * chunk}, m, serve(t, frames, content), Options{Rotating: o.rotating})
			if metal.CodeOf(err) != metal.CodeVerifyFailed {
				t.Errorf("error %v", err)
			}
		})
	}
}

// turning is a disk on which a place reads otherwise from the second time on.
type turning struct {
	block.Device
	at    int64
	reads atomic.Int32
}

func (d *turning) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.Device.ReadAt(p, off)
	if off == d.at && d.reads.Add(1) > 1 {
		p[0] ^= 1
	}
	return n, err
}

// In an image with more cells than there are probes, none is spent on a hole.
func TestProbesAreOfChunks(t *testing.T) {
	raw := make([]byte, 2*maxProbes*chunk)
	r := rand.New(rand.NewSource(5))
	for i := range maxProbes {
		r.Read(raw[(2*i+1)*chunk:][:4096])
	}
	_, m, frames := build(t, raw)
	d, _ := dirtyDisk(t, len(raw))
	disk := &turning{Device: d, at: m.Chunks[100].Offset}
	_, err := write(t.Context(), disk, m, serve(t, frames, content), Options{Progress: func(int64, int64, string) {}}, 16*chunk)
	if metal.CodeOf(err) != metal.CodeVerifyFailed {
		t.Errorf("read %d times: error %v", disk.reads.Load(), err)
	}
}

// A manifest whose raw digest is not that of its frame is told from a bad disk.
func TestBlame(t *testing.T) {
	_, m, frames := many(t)
	m.Chunks[3].SHA256[0] ^= 1
	d, _ := dirtyDisk(t, int(m.SizeBytes))
	if _, err := Write(t.Context(), d, m, serve(t, frames, content), Options{}); metal.CodeOf(err) != metal.CodeCorruptChunk {
		t.Error(err)
	}
}
