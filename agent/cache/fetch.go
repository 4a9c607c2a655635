package cache

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"bmc/internal/manifest"
	"bmc/metal"
)

// fetchTimeout bounds one chunk, however many wait for it.
const fetchTimeout = 3 * time.Minute

// flight is the work that makes one chunk's file good: verifying what an
// earlier run left, or fetching. It is given up when nobody waits for it.
type flight struct {
	digest  manifest.Digest
	cancel  context.CancelFunc
	waiting int    // guarded by Cache.mu, like pinned
	pinned  *entry // kept from eviction until all who wait have opened it
	done    chan struct{}
	err     error // set before done is closed
}

// join returns the chunk's flight, started if there is none. The caller holds mu.
func (c *Cache) join(d manifest.Digest) *flight {
	fl := c.flights[d]
	if fl == nil {
		ctx, cancel := context.WithTimeout(c.ctx, fetchTimeout)
		fl = &flight{digest: d, cancel: cancel, done: make(chan struct{})}
		c.flights[d] = fl
		c.wg.Go(func() {
			defer cancel()
			fl.err = c.obtain(ctx, fl)
			c.mu.Lock()
			c.unlist(fl)
			c.mu.Unlock()
			close(fl.done)
		})
	}
	fl.waiting++
	return fl
}

func (fl *flight) wait(ctx context.Context) error {
	select {
	case <-fl.done:
		return fl.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leave gives a flight up once nobody waits for it. It is unlisted at once, so
// that a newcomer starts its own and does not inherit the cancellation.
func (c *Cache) leave(fl *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fl.waiting--; fl.waiting == 0 {
		fl.cancel()
		c.unlist(fl)
		if fl.pinned != nil {
			fl.pinned.open--
			c.evict()
		}
	}
}

func (c *Cache) unlist(fl *flight) {
	if c.flights[fl.digest] == fl {
		delete(c.flights, fl.digest)
	}
}

// obtain leaves a verified entry behind, pinned if somebody still waits for it,
// or says why it cannot.
func (c *Cache) obtain(ctx context.Context, fl *flight) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if ok, err := c.recheck(fl); ok || err != nil {
		return err
	}
	size, err := c.fetch(ctx, fl.digest)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Fetched++
	c.pin(fl, c.add(fl.digest, size, true))
	c.evict()
	return nil
}

func (c *Cache) pin(fl *flight, e *entry) {
	if fl.waiting > 0 {
		fl.pinned = e
		e.open++
	}
}

// recheck verifies a file that was there at the start, and drops a bad one.
func (c *Cache) recheck(fl *flight) (bool, error) {
	d := fl.digest
	c.mu.Lock()
	e := c.entries[d]
	if e != nil && e.verified {
		c.pin(fl, e) // a flight that was given up made it after all
		c.mu.Unlock()
		return true, nil
	}
	c.mu.Unlock()
	if e == nil {
		return false, nil
	}
	f, err := os.Open(c.path(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("image cache: %w", err)
	}
	good := false
	if err == nil {
		defer f.Close() //nolint:errcheck // opened for reading
		hash := sha256.New()
		_, err = io.Copy(hash, f) // a read error is damage, too
		good = err == nil && manifest.Digest(hash.Sum(nil)) == d
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[d] != e { // evicted meanwhile
		return false, nil
	}
	if good {
		e.verified = true
		c.pin(fl, e)
		return true, nil
	}
	c.stats.Corrupt++
	c.drop(e)
	return false, nil
}

// writeSize makes the page cache keep a chunk in large pieces, which cost sendfile
// less than single pages.
const writeSize = 1 << 20

// fetch writes the chunk to a temporary file, and publishes it if its digest is
// right.
func (c *Cache) fetch(ctx context.Context, d manifest.Digest) (size int64, err error) {
	body, size, err := c.fetcher.Get(ctx, d)
	if err != nil {
		return 0, err
	}
	defer body.Close() //nolint:errcheck // what was read is verified
	if limit := manifest.MaxStoredSize(manifest.MaxChunkSize); size <= 0 || size > limit {
		return 0, metal.Errorf(metal.CodeCorruptChunk, "chunk %s has %d bytes in the image store, the limit is %d", d, size, limit)
	}
	path := c.path(d)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return 0, fmt.Errorf("image cache: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+tempInfix)
	if err != nil {
		return 0, fmt.Errorf("image cache: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	hash, file := sha256.New(), bufio.NewWriterSize(f, writeSize)
	n, err := io.Copy(io.MultiWriter(file, hash), io.LimitReader(body, size+1))
	if err == nil {
		err = file.Flush()
	}
	if err != nil {
		return 0, fmt.Errorf("fetch chunk %s: %w", d, err)
	}
	if got := manifest.Digest(hash.Sum(nil)); n != size || got != d {
		return 0, metal.Errorf(metal.CodeCorruptChunk, "chunk %s is corrupt in the image store: %d of %d bytes, SHA-256 %s", d, n, size, got)
	}
	if err := f.Close(); err != nil {
		return 0, fmt.Errorf("image cache: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return 0, fmt.Errorf("image cache: %w", err)
	}
	return size, nil
}
