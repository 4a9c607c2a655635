package block

import (
	"bytes"
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Workers is how many reads or writes to keep under way: enough for the cores
// that hash, few enough for a machine with little memory.
func Workers() int { return min(max(runtime.NumCPU(), 2), 16) }

// Fit is how many buffers of size bytes to use where want would be best: no more than
// a quarter of the free memory holds, and one at least.
func Fit(want, size int) int {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return want
	}
	free := uint64(info.Freeram) * uint64(info.Unit) //nolint:unconvert // 32 bits on some architectures
	return int(max(min(uint64(want), free/4/uint64(size)), 1))
}

// Each calls f for every index below n, on several workers, each with a buffer
// of its own of size bytes. The first error stops all and is returned.
func Each(ctx context.Context, n, size int, f func(ctx context.Context, i int, buf []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(Workers(), n) {
		wg.Go(func() {
			buf := Buffer(size)
			defer Free(buf)
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(ctx, i, buf); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

var zeros [64 << 10]byte

// AllZero says whether b holds nothing but zeros.
func AllZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
