package manifest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
)

// ChunkFrame is a chunk and its zstd frame, ready to be stored.
type ChunkFrame struct {
	Chunk
	Data []byte // belongs to whom it is emitted to
}

// Build cuts the first size bytes of r into chunks and describes them under
// spec (call WithDefaults first). Cores compress in parallel; emit, which may
// be nil, is called in the order of offsets and from one goroutine at a time.
// The same input gives the same frames and the same manifest. Chunks that are
// all zero are left out. Up to two raw chunks a core are held in memory.
func Build(ctx context.Context, r io.ReaderAt, size int64, spec Spec, emit func(ChunkFrame) error) (*Manifest, error) {
	m := &Manifest{Version: Version, Spec: spec, SizeBytes: size, Chunks: []Chunk{}}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &builder{r: r, size: size, chunkSize: int64(spec.ChunkSize)}
	b.start(ctx)
	err := b.collect(ctx, func(f ChunkFrame) error {
		m.Chunks = append(m.Chunks, f.Chunk)
		if len(m.Chunks) > MaxChunks || emit == nil {
			return nil // Validate refuses too many below
		}
		return emit(f)
	})
	cancel()
	b.wg.Wait()
	if err != nil {
		return nil, err
	}
	return m, m.Validate()
}

// builder runs a fixed number of workers over the image and hands their results
// on in order: every job enters the queue order before it enters work.
type builder struct {
	r         io.ReaderAt
	size      int64
	chunkSize int64
	work      chan *job
	order     chan *job
	wg        sync.WaitGroup
}

type job struct {
	offset int64
	done   chan result // buffered, receives once
}

type result struct {
	frame ChunkFrame
	zero  bool
	err   error
}

func (b *builder) start(ctx context.Context) {
	workers := runtime.GOMAXPROCS(0)
	b.work = make(chan *job)
	b.order = make(chan *job, workers)
	b.wg.Go(func() { b.feed(ctx) })
	for range workers {
		b.wg.Go(b.run)
	}
}

// feed ends, and closes both channels, when the image or ctx does.
func (b *builder) feed(ctx context.Context) {
	defer close(b.work)
	defer close(b.order)
	for off := int64(0); off < b.size; off += b.chunkSize {
		j := &job{offset: off, done: make(chan result, 1)}
		for _, queue := range []chan<- *job{b.order, b.work} {
			select {
			case queue <- j:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (b *builder) run() {
	enc, err := newEncoder()
	if err == nil {
		defer enc.Close() //nolint:errcheck // it writes to nowhere
	}
	raw := make([]byte, b.chunkSize)
	zeros := make([]byte, b.chunkSize)
	for j := range b.work {
		if err != nil {
			j.done <- result{err: fmt.Errorf("zstd encoder: %w", err)}
			continue
		}
		part := raw[:min(b.chunkSize, b.size-j.offset)]
		if n, err := b.r.ReadAt(part, j.offset); n < len(part) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			j.done <- result{err: fmt.Errorf("read image at offset %d: %w", j.offset, err)}
			continue
		}
		if bytes.Equal(part, zeros[:len(part)]) {
			j.done <- result{zero: true}
			continue
		}
		data := enc.EncodeAll(part, make([]byte, 0, len(part)/2))
		j.done <- result{frame: ChunkFrame{Data: data, Chunk: Chunk{
			Offset: j.offset, Size: int64(len(part)), SHA256: Sum(part),
			StoredSize: int64(len(data)), StoredSHA256: Sum(data),
		}}}
	}
}

// collect passes the chunks with data to emit, in order.
func (b *builder) collect(ctx context.Context, emit func(ChunkFrame) error) error {
	for j := range b.order {
		select {
		case res := <-j.done:
			if res.err != nil {
				return res.err
			}
			if res.zero {
				continue
			}
			if err := emit(res.frame); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}
