package imaging

import (
	"context"
	"hash/maphash"

	"bmc/internal/manifest"
	"bmc/metal"
	"bmc/ramdisk/block"
)

// cell is a piece of the image's grid; chunk is nil in a hole.
type cell struct {
	index        int
	nth          int // of the chunks
	offset, size int64
	chunk        *manifest.Chunk
	zeroed       bool // a hole that was not zero, and was made so
}

func grid(m *manifest.Manifest) []cell {
	step := int64(m.ChunkSize)
	cells := make([]cell, 0, (m.SizeBytes+step-1)/step)
	next := 0
	for off := int64(0); off < m.SizeBytes; off += step {
		c := cell{index: len(cells), offset: off, size: min(step, m.SizeBytes-off)}
		if next < len(m.Chunks) && m.Chunks[next].Offset == off {
			c.chunk, c.nth = &m.Chunks[next], next
			next++
		}
		cells = append(cells, c)
	}
	return cells
}

// verify reads cells back, one at a time, until all are good.
func (w *writer) verify(ctx context.Context) error {
	buf := block.Buffer(w.m.ChunkSize)
	defer block.Free(buf)
	for {
		c, ok := w.queue.next(ctx)
		if !ok {
			return nil
		}
		got := buf[:c.size]
		if _, err := w.d.ReadAt(got, c.offset); err != nil {
			return metal.Errorf(metal.CodeVerifyFailed, "the disk cannot be read back at byte %d: %v", c.offset, err)
		}
		switch {
		case c.chunk != nil:
			if manifest.VerifyRaw(*c.chunk, got) != nil {
				return w.blame(ctx, c)
			}
		case block.AllZero(got):
		case c.zeroed:
			return metal.Errorf(metal.CodeVerifyFailed, "the disk reads back other than zero at byte %d after zeros were written", c.offset)
		default:
			if err := w.d.ZeroOut(c.offset, c.size); err != nil {
				return metal.Errorf(metal.CodeWriteFailed, "the disk cannot be zeroed at byte %d: %v", c.offset, err)
			}
			w.queue.zeroed(c.index)
			continue
		}
		w.probes.note(c, got)
		w.queue.verified()
		w.advance(c.size)
	}
}

// blame says whether it is the disk or the image that is wrong.
func (w *writer) blame(ctx context.Context, c cell) error {
	buf := make([]byte, manifest.MaxStoredSize(c.size)+c.size)
	raw, err := w.src.Get(ctx, *c.chunk, buf[c.size:], buf[:0:c.size])
	if err == nil {
		err = manifest.VerifyRaw(*c.chunk, raw)
	}
	if metal.CodeOf(err) == metal.CodeCorruptChunk {
		return err
	}
	return metal.Errorf(metal.CodeVerifyFailed, "the disk reads back other than what was written at byte %d", c.offset)
}

const (
	maxProbes = 256
	probeSize = 4096 // bytes; a multiple of each sector size
)

// probes are the first bytes of some chunks, every nth of them, as they were when the
// chunk was read back. They find a disk that is smaller than it says, on which what comes
// later replaces what was good. Holes need none: no chunk is written after they are read.
type probes struct {
	stride int
	seed   maphash.Seed
	cells  []cell // by number of the stride
	sums   []uint64
}

func newProbes(chunks int) *probes {
	stride := max((chunks+maxProbes-1)/maxProbes, 1)
	n := (chunks + stride - 1) / stride
	return &probes{stride: stride, seed: maphash.MakeSeed(), cells: make([]cell, n), sums: make([]uint64, n)}
}

// note is called once for each cell; different ones at the same time.
func (p *probes) note(c cell, got []byte) {
	if i := c.nth / p.stride; c.chunk != nil && c.nth%p.stride == 0 {
		p.cells[i], p.sums[i] = c, maphash.Bytes(p.seed, got[:min(probeSize, len(got))])
	}
}

// probeAll reads again when nothing more will be written.
func (w *writer) probeAll(ctx context.Context) error {
	buf := block.Buffer(probeSize)
	defer block.Free(buf)
	for i, c := range w.probes.cells {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		got := buf[:min(probeSize, c.size)]
		if _, err := w.d.ReadAt(got, c.offset); err != nil {
			return metal.Errorf(metal.CodeVerifyFailed, "the disk cannot be read again at byte %d: %v", c.offset, err)
		}
		if maphash.Bytes(w.probes.seed, got) != w.probes.sums[i] {
			return metal.Errorf(metal.CodeVerifyFailed, "the disk reads other at byte %d than when it was read back: it may be smaller than it says", c.offset)
		}
	}
	return nil
}
