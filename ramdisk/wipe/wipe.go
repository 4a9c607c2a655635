// Package wipe erases disks and proves it: every byte is read back as zero, or
// the wipe has failed.
package wipe

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"bmc/internal/mutant"
	"bmc/metal"
	"bmc/ramdisk/block"
)

const (
	segment  = 4 << 20 // of the read-back
	eraseRun = 256 << 20
)

// Result is the evidence for one disk.
type Result struct {
	Method   string // "discard" when that alone did it, else "overwrite"
	Bytes    int64  // erased
	ReadBack int64  // read as zero; equal to Bytes
}

// Disk erases d and reads all of it back. What a discard left behind is
// overwritten and read again. Progress counts up to twice the disk's size.
// Every error has metal.CodeWipeFailed but that of a cancelled context.
func Disk(ctx context.Context, d block.Device, progress func(done, total int64)) (Result, error) {
	w := &wiper{d: d, progress: progress}
	method, err := w.erase(ctx)
	if err != nil {
		return Result{}, w.failed(ctx, err)
	}
	left, err := w.readBack(ctx, w.all())
	if err != nil {
		return Result{}, w.failed(ctx, err)
	}
	if len(left) > 0 {
		method = "overwrite"
		if err := w.overwrite(ctx, left); err != nil {
			return Result{}, w.failed(ctx, err)
		}
		still, err := w.readBack(ctx, left)
		if err != nil {
			return Result{}, w.failed(ctx, err)
		}
		if len(still) > 0 {
			return Result{}, metal.Errorf(metal.CodeWipeFailed, "%d of %d MiB read back other than zero after two writes, first at byte %d",
				int64(len(still))*segment>>20, d.Size()>>20, still[0])
		}
	}
	return Result{Method: method, Bytes: d.Size(), ReadBack: d.Size()}, nil
}

type wiper struct {
	d        block.Device
	progress func(done, total int64)
	done     atomic.Int64
}

func (w *wiper) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &metal.Error{Code: metal.CodeWipeFailed, Message: "the disk cannot be wiped: " + err.Error(), Err: err}
}

func (w *wiper) advance(n int64) {
	total := 2 * w.d.Size()
	w.progress(min(w.done.Add(n), total), total)
}

// erase discards, or writes zeros where the device knows no discard.
func (w *wiper) erase(ctx context.Context) (method string, err error) {
	method = "discard"
	for off := int64(0); off < w.d.Size(); off += eraseRun {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		n := min(eraseRun, w.d.Size()-off)
		if method == "discard" {
			if err := w.d.Discard(off, n); err == nil {
				w.advance(n)
				continue
			}
			method = "overwrite" // also when it fails half-way: never mind why
		}
		if err := w.d.ZeroOut(off, n); err != nil {
			return "", fmt.Errorf("write zeros at byte %d: %w", off, err)
		}
		w.advance(n)
	}
	return method, w.d.Sync()
}

// all lists the offsets of every segment, the last of which may be short.
func (w *wiper) all() []int64 {
	var offsets []int64
	for off := int64(0); off < w.d.Size(); off += segment {
		offsets = append(offsets, off)
	}
	return offsets
}

func (w *wiper) length(off int64) int64 { return min(segment, w.d.Size()-off) }

// readBack returns the offsets of segments that are not all zero, in order.
func (w *wiper) readBack(ctx context.Context, offsets []int64) ([]int64, error) {
	if mutant.On("no-read-back") {
		return nil, nil
	}
	bad := make([]bool, len(offsets))
	err := block.Each(ctx, len(offsets), segment, func(_ context.Context, i int, buf []byte) error {
		buf = buf[:w.length(offsets[i])]
		if _, err := w.d.ReadAt(buf, offsets[i]); err != nil {
			return fmt.Errorf("read back at byte %d: %w", offsets[i], err)
		}
		bad[i] = !block.AllZero(buf)
		w.advance(int64(len(buf)))
		return nil
	})
	var left []int64
	for i, off := range offsets {
		if bad[i] {
			left = append(left, off)
		}
	}
	return left, err
}

func (w *wiper) overwrite(ctx context.Context, offsets []int64) error {
	var mu sync.Mutex
	var errs []error
	err := block.Each(ctx, len(offsets), segment, func(_ context.Context, i int, buf []byte) error {
		// A bad sector must not hide how the rest of the disk fares.
		if _, err := w.d.WriteAt(buf[:w.length(offsets[i])], offsets[i]); err != nil {
			mu.Lock()
			errs = append(errs, fmt.Errorf("write zeros at byte %d: %w", offsets[i], err))
			mu.Unlock()
		}
		return nil
	})
	return errors.Join(err, errors.Join(errs[:min(len(errs), 3)]...), w.d.Sync())
}
