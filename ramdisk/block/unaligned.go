package block

import (
	"io"
	"sync"
)

// Unaligned reads and writes any bytes of a device by way of whole sectors:
// for small structures like partition tables.
type Unaligned struct {
	D  Device
	mu sync.Mutex // a write reads first
}

// ReadAt implements io.ReaderAt.
func (u *Unaligned) ReadAt(p []byte, off int64) (int, error) {
	return u.with(p, off, func(buf []byte, _, at int64) error {
		copy(p, buf[at:])
		return nil
	})
}

// WriteAt implements io.WriterAt.
func (u *Unaligned) WriteAt(p []byte, off int64) (int, error) {
	return u.with(p, off, func(buf []byte, start, at int64) error {
		copy(buf[at:], p)
		_, err := u.D.WriteAt(buf, start)
		return err
	})
}

// with reads the sectors around p's place into buf, which starts at start; p
// belongs at buf[at:].
func (u *Unaligned) with(p []byte, off int64, f func(buf []byte, start, at int64) error) (int, error) {
	if off < 0 || off+int64(len(p)) > u.D.Size() {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	sector := int64(u.D.SectorSize())
	start := off / sector * sector
	end := (off + int64(len(p)) + sector - 1) / sector * sector
	buf := Buffer(int(end - start))
	defer Free(buf)
	if _, err := u.D.ReadAt(buf, start); err != nil {
		return 0, err
	}
	if err := f(buf, start, off-start); err != nil {
		return 0, err
	}
	return len(p), nil
}
