package imaging

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"bmc/internal/manifest"
	"bmc/metal"
	"bmc/ramdisk/block"
)

// Connections is how many chunks are fetched at the same time at most. More of them
// are under way than there are cores: some wait for the network, some for the disk.
const Connections = 16

// batch is how many bytes are written until the disk is flushed, so that they can be
// read back while the following ones are written.
const batch = 128 << 20

// Source gives a chunk's raw bytes, of which size and stored digest have been checked;
// Fetcher is one. The raw digest is for Write to check, on what the disk reads back as.
type Source interface {
	Get(ctx context.Context, c manifest.Chunk, scratch, dst []byte) ([]byte, error)
}

// Options of a Write.
type Options struct {
	// Rotating says that the disk has one head: it is read back when everything is
	// written, and not meanwhile.
	Rotating bool
	// Progress hears bytes written plus bytes read back; nil: nobody does.
	Progress func(done, total int64, message string)
}

// Result says what was done.
type Result struct {
	Written  int64         // chunks, raw
	Verified int64         // the image's whole extent, holes included
	After    time.Duration // until everything was written and flushed
}

// Write puts every chunk in its place and reads the image's whole extent back from the
// device: chunks must have the manifest's digest, holes must be zero. A hole that is
// not is zeroed and read again. Until Write has returned without error nothing else may
// touch the disk.
//
// Chunks are read back while the rest is still being fetched, decoded and written, holes
// when every chunk has been written. Each byte is read after a flush that began when it
// had been written, by direct I/O, and is not written again afterwards; DESIGN.md says what
// that proves, and what the probes at the end are for.
func Write(ctx context.Context, d block.Device, m *manifest.Manifest, src Source, o Options) (Result, error) {
	if d.Size() < m.SizeBytes || d.SectorSize() != m.SectorSize {
		return Result{}, metal.Errorf(metal.CodeImageTooLarge, "the disk has %d bytes in sectors of %d, the image %d in sectors of %d",
			d.Size(), d.SectorSize(), m.SizeBytes, m.SectorSize)
	}
	if o.Progress == nil {
		o.Progress = func(int64, int64, string) {}
	}
	size := int64(batch)
	if o.Rotating {
		size = 0
	}
	return write(ctx, d, m, src, o, size)
}

// write flushes after each batch bytes; 0: once, at the end.
func write(parent context.Context, d block.Device, m *manifest.Manifest, src Source, o Options, batch int64) (Result, error) {
	cells := grid(m)
	w := &writer{d: d, m: m, src: src, progress: o.Progress, began: time.Now(), total: m.DataBytes() + m.SizeBytes,
		queue: newQueue(cells, batch), probes: newProbes(len(m.Chunks))}
	if t, ok := src.(interface{ Tell(f func(reason string)) }); ok {
		t.Tell(w.waits)
		defer t.Tell(nil)
	}
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, w.queue.wake)
	defer stop()
	var wg sync.WaitGroup
	run := func(n int, f func(context.Context) error) {
		for range n {
			wg.Go(func() {
				if err := f(ctx); err != nil {
					cancel(err)
				}
			})
		}
	}
	frame := int(manifest.MaxStoredSize(int64(m.ChunkSize)))
	cores := runtime.NumCPU()
	run(block.Fit(min(max(2*cores, 4), Connections, max(len(m.Chunks), 1)), m.ChunkSize+frame), w.write)
	run(block.Fit(min(max(cores, 2), Connections), m.ChunkSize), w.verify)
	run(1, w.flush)
	wg.Wait()
	err := context.Cause(ctx)
	if err == nil && w.queue.flushes > 1 { // else nothing was read before the last write
		err = w.probeAll(ctx)
	}
	if err != nil && parent.Err() == nil {
		err = failed(err)
	}
	if err != nil {
		return Result{}, err
	}
	return Result{Written: m.DataBytes(), Verified: m.SizeBytes, After: w.after}, nil
}

// failed gives an error its code.
func failed(err error) error {
	if metal.CodeOf(err) == metal.CodeInternal {
		return &metal.Error{Code: metal.CodeWriteFailed, Message: err.Error(), Err: err}
	}
	return err
}

type writer struct {
	d        block.Device
	m        *manifest.Manifest
	src      Source
	progress func(done, total int64, message string)
	began    time.Time
	after    time.Duration // until everything was written and flushed
	done     atomic.Int64
	total    int64
	next     atomic.Int64 // chunk
	queue    *queue
	probes   *probes
}

func (w *writer) advance(n int64) {
	message := "writing the image"
	if w.queue.written() {
		message = "reading the image back"
	}
	w.progress(min(w.done.Add(n), w.total), w.total, message)
}

// waits tells why nothing moves.
func (w *writer) waits(reason string) {
	w.progress(w.done.Load(), w.total, "waiting for the image: "+reason)
}

// write fetches, decodes and writes chunks, one at a time.
func (w *writer) write(ctx context.Context) error {
	buf := block.Buffer(w.m.ChunkSize + int(manifest.MaxStoredSize(int64(w.m.ChunkSize))))
	defer block.Free(buf)
	frame := buf[w.m.ChunkSize:] // the chunk comes first: direct I/O wants it aligned
	for ctx.Err() == nil {
		i := int(w.next.Add(1)) - 1
		if i >= len(w.m.Chunks) {
			return nil
		}
		c := &w.m.Chunks[i]
		raw, err := w.src.Get(ctx, *c, frame, buf[:0:c.Size])
		if err != nil {
			return err
		}
		if &raw[0] != &buf[0] {
			raw = buf[:copy(buf, raw)]
		}
		if _, err := w.d.WriteAt(raw, c.Offset); err != nil {
			return metal.Errorf(metal.CodeWriteFailed, "the disk cannot be written at byte %d: %v", c.Offset, err)
		}
		w.queue.wrote(c.Offset / int64(w.m.ChunkSize))
		w.advance(c.Size)
	}
	return nil
}

// flush makes what was written ready to be read back.
func (w *writer) flush(context.Context) error {
	for {
		cells, whole := w.queue.unflushed()
		if cells == nil {
			return nil
		}
		if err := w.d.Sync(); err != nil {
			return metal.Errorf(metal.CodeWriteFailed, "the disk does not flush: %v", err)
		}
		if whole && w.after == 0 {
			w.after = time.Since(w.began)
		}
		w.queue.flushed(cells)
	}
}
