package imaging

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"

	"bmc/internal/manifest"
	"bmc/metal"
	"bmc/ramdisk/block"
)

// Source gives a chunk's raw, verified bytes; Fetcher is one.
type Source interface {
	Get(ctx context.Context, c manifest.Chunk, scratch, dst []byte) ([]byte, error)
}

// Progress counts bytes written plus bytes read back.
type Progress func(done, total int64, message string)

// Result says what was done.
type Result struct {
	Written  int64 // chunks, raw
	Verified int64 // the image's whole extent, holes included
}

// Write puts every chunk in its place, flushes, and reads the image's whole
// extent back from the device: chunks must have the manifest's digest, holes
// must be zero. A hole that is not is zeroed and read again. Until Write has
// returned without error nothing else may touch the disk.
func Write(ctx context.Context, d block.Device, m *manifest.Manifest, src Source, progress Progress) (Result, error) {
	if d.Size() < m.SizeBytes || d.SectorSize() != m.SectorSize {
		return Result{}, metal.Errorf(metal.CodeImageTooLarge, "the disk has %d bytes in sectors of %d, the image %d in sectors of %d",
			d.Size(), d.SectorSize(), m.SizeBytes, m.SectorSize)
	}
	w := &writer{d: d, m: m, src: src, progress: progress, total: m.DataBytes() + m.SizeBytes}
	if err := w.write(ctx); err != nil {
		return Result{}, w.failed(ctx, err)
	}
	dirty, err := w.verify(ctx, w.grid())
	if err != nil {
		return Result{}, w.failed(ctx, err)
	}
	if len(dirty) > 0 {
		if err := w.zero(ctx, dirty); err != nil {
			return Result{}, w.failed(ctx, err)
		}
		again, err := w.verify(ctx, dirty)
		if err != nil {
			return Result{}, w.failed(ctx, err)
		}
		if len(again) > 0 {
			return Result{}, metal.Errorf(metal.CodeVerifyFailed, "the disk reads back other than zero at byte %d after zeros were written", again[0].offset)
		}
	}
	return Result{Written: m.DataBytes(), Verified: m.SizeBytes}, nil
}

type writer struct {
	d        block.Device
	m        *manifest.Manifest
	src      Source
	progress Progress
	done     atomic.Int64
	total    int64
}

// failed gives an error its code; a cancelled context keeps its cause.
func (w *writer) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if metal.CodeOf(err) == metal.CodeInternal {
		return &metal.Error{Code: metal.CodeWriteFailed, Message: err.Error(), Err: err}
	}
	return err
}

func (w *writer) advance(n int64, message string) {
	w.progress(min(w.done.Add(n), w.total), w.total, message)
}

// write fetches, decodes and writes chunks, as many at a time as there are
// workers; memory is bounded by that many frames and chunks.
func (w *writer) write(ctx context.Context) error {
	frameSize := int(manifest.MaxStoredSize(int64(w.m.ChunkSize)))
	err := block.Each(ctx, len(w.m.Chunks), w.m.ChunkSize+frameSize, func(ctx context.Context, i int, buf []byte) error {
		c := w.m.Chunks[i]
		frame := buf[w.m.ChunkSize:] // the chunk comes first: direct I/O wants it aligned
		raw, err := w.src.Get(ctx, c, frame, buf[:0:c.Size])
		if err != nil {
			return err
		}
		if &raw[0] != &buf[0] {
			raw = buf[:copy(buf, raw)]
		}
		if _, err := w.d.WriteAt(raw, c.Offset); err != nil {
			return metal.Errorf(metal.CodeWriteFailed, "the disk cannot be written at byte %d: %v", c.Offset, err)
		}
		w.advance(c.Size, "writing the image")
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.d.Sync(); err != nil {
		return metal.Errorf(metal.CodeWriteFailed, "the disk does not flush: %v", err)
	}
	return nil
}

// extent is one cell of the chunk grid; chunk is nil in a hole.
type extent struct {
	offset, size int64
	chunk        *manifest.Chunk
}

func (w *writer) grid() []extent {
	step := int64(w.m.ChunkSize)
	cells := make([]extent, 0, (w.m.SizeBytes+step-1)/step)
	next := 0
	for off := int64(0); off < w.m.SizeBytes; off += step {
		e := extent{offset: off, size: min(step, w.m.SizeBytes-off)}
		if next < len(w.m.Chunks) && w.m.Chunks[next].Offset == off {
			e.chunk = &w.m.Chunks[next]
			next++
		}
		cells = append(cells, e)
	}
	return cells
}

// verify reads extents back and returns the holes that are not zero.
func (w *writer) verify(ctx context.Context, cells []extent) (dirty []extent, err error) {
	var mu sync.Mutex
	err = block.Each(ctx, len(cells), w.m.ChunkSize, func(_ context.Context, i int, buf []byte) error {
		e := cells[i]
		buf = buf[:e.size]
		if _, err := w.d.ReadAt(buf, e.offset); err != nil {
			return metal.Errorf(metal.CodeVerifyFailed, "the disk cannot be read back at byte %d: %v", e.offset, err)
		}
		if e.chunk != nil && sha256.Sum256(buf) != [sha256.Size]byte(e.chunk.SHA256) {
			return metal.Errorf(metal.CodeVerifyFailed, "the disk reads back other than what was written at byte %d", e.offset)
		}
		if e.chunk == nil && !block.AllZero(buf) {
			mu.Lock()
			dirty = append(dirty, e)
			mu.Unlock()
		}
		w.advance(e.size, "reading the image back")
		return nil
	})
	return dirty, err
}

func (w *writer) zero(ctx context.Context, cells []extent) error {
	for _, e := range cells {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := w.d.ZeroOut(e.offset, e.size); err != nil {
			return fmt.Errorf("the disk cannot be zeroed at byte %d: %w", e.offset, err)
		}
	}
	if err := w.d.Sync(); err != nil {
		return fmt.Errorf("the disk does not flush: %w", err)
	}
	return nil
}
