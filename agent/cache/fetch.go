package cache

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"bmc/internal/manifest"
	"bmc/metal"
)

// writeSize makes the page cache keep a chunk in large pieces, which cost sendfile
// less than single pages.
const writeSize = 1 << 20

// save writes the chunk to a temporary file, and publishes that if its digest is right.
func (c *Cache) save(ctx context.Context, d manifest.Digest, body io.Reader, size int64) (err error) {
	if limit := manifest.MaxStoredSize(manifest.MaxChunkSize); size <= 0 || size > limit {
		return metal.Errorf(metal.CodeCorruptChunk, "chunk %s has %d bytes in the image store, the limit is %d", d, size, limit)
	}
	path := c.path(d)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return full(err, size)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+tempInfix)
	if err != nil {
		return full(err, size)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := c.reserve(f, size); err != nil {
		return full(err, size)
	}
	hash, file := sha256.New(), bufio.NewWriterSize(f, writeSize)
	n, err := io.Copy(io.MultiWriter(file, hash), io.LimitReader(body, size+1))
	if err == nil {
		err = file.Flush()
	}
	switch {
	case noRoom(err):
		return full(err, size)
	case err != nil:
		return errors.Join(fmt.Errorf("fetch chunk %s: %w", d, err), ctx.Err())
	}
	if got := manifest.Digest(hash.Sum(nil)); n != size || got != d {
		return metal.Errorf(metal.CodeCorruptChunk, "chunk %s is corrupt in the image store: %d of %d bytes, SHA-256 %s", d, n, size, got)
	}
	if err := f.Close(); err != nil {
		return full(err, size)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return full(err, size)
	}
	return nil
}

// reserve has the file system promise the file's room before a byte is fetched, and
// gives up other chunks while it cannot.
func (c *Cache) reserve(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		switch {
		case errors.Is(err, unix.EOPNOTSUPP): // it will show
			return nil
		case errors.Is(err, unix.EINTR):
		case !noRoom(err):
			return err
		case !c.shed(size):
			return err
		}
	}
}

func noRoom(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// full gives the error of a disk without room a sentence for people.
func full(err error, size int64) error {
	if noRoom(err) {
		return &metal.Error{Code: metal.CodeImageUnavailable, Err: err,
			Message: fmt.Sprintf("the rack agent's disk is full: it has no room for an image chunk of %d bytes, and no other chunk to give up", size)}
	}
	return fmt.Errorf("image cache: %w", err)
}
