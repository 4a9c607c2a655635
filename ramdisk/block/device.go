// Package block reads and writes whole disks past the page cache.
package block

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is a disk. Offsets, lengths and buffers are multiples of the sector
// size; buffers come from Buffer.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
	SectorSize() int
	// Discard tells the device that a range is not needed. What it reads as
	// afterwards is the device's to say. errors.ErrUnsupported: it cannot.
	Discard(offset, length int64) error
	// ZeroOut fills a range with zeros, by the device itself where it can.
	ZeroOut(offset, length int64) error
	// Sync puts everything written on stable storage and forgets what the
	// kernel has cached, so that the next read asks the device.
	Sync() error
}

// File is a Device on a block device, or on a regular file in tests and labs.
type File struct {
	f      *os.File
	size   int64
	sector int
	isDisk bool
}

// Open opens a disk for reading and writing, exclusively: a disk that is
// mounted, or in use by anything else, is refused (EBUSY).
func Open(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EINVAL) { // a file system without O_DIRECT; never a disk
		f, err = os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	d, err := newFile(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

func newFile(f *os.File) (*File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d := &File{f: f, size: info.Size(), sector: 512}
	if info.Mode()&os.ModeDevice == 0 {
		return d, nil
	}
	d.isDisk = true
	var bytes uint64
	if err := ioctl(f, unix.BLKGETSIZE64, unsafe.Pointer(&bytes)); err != nil {
		return nil, fmt.Errorf("size: %w", err)
	}
	d.size = int64(bytes)
	if d.sector, err = unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET); err != nil {
		return nil, fmt.Errorf("sector size: %w", err)
	}
	return d, nil
}

// ReadAt implements io.ReaderAt.
func (d *File) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }

// WriteAt implements io.WriterAt.
func (d *File) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }

// Size implements Device.
func (d *File) Size() int64 { return d.size }

// SectorSize implements Device: the logical sector, in bytes.
func (d *File) SectorSize() int { return d.sector }

// Discard implements Device.
func (d *File) Discard(offset, length int64) error {
	var err error
	if d.isDisk {
		err = ioctl(d.f, unix.BLKDISCARD, unsafe.Pointer(&[2]uint64{uint64(offset), uint64(length)}))
	} else {
		err = unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return errors.ErrUnsupported
	}
	return err
}

// ZeroOut implements Device. The kernel writes zeros where the device has no
// command for it.
func (d *File) ZeroOut(offset, length int64) error {
	if d.isDisk {
		return ioctl(d.f, unix.BLKZEROOUT, unsafe.Pointer(&[2]uint64{uint64(offset), uint64(length)}))
	}
	zeros := Buffer(int(min(length, 1<<20)))
	defer Free(zeros)
	for end := offset + length; offset < end; {
		n, err := d.f.WriteAt(zeros[:min(int64(len(zeros)), end-offset)], offset)
		if err != nil {
			return err
		}
		offset += int64(n)
	}
	return nil
}

// Sync implements Device.
func (d *File) Sync() error {
	if err := d.f.Sync(); err != nil {
		return err
	}
	if d.isDisk {
		return unix.IoctlSetInt(int(d.f.Fd()), unix.BLKFLSBUF, 0)
	}
	return unix.Fadvise(int(d.f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// RereadPartitions makes the kernel forget the partitions that it knows and
// look again. Regular files have none.
func (d *File) RereadPartitions() error {
	if !d.isDisk {
		return nil
	}
	return unix.IoctlSetInt(int(d.f.Fd()), unix.BLKRRPART, 0)
}

// Device returns the number of the opened block device; 0 for a file.
func (d *File) Device() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.f.Fd()), &st); err != nil {
		return 0, err
	}
	return st.Rdev, nil
}

// Close lets go of the device. It has nothing to tell: what was written is safe
// once Sync has said so, and not before.
func (d *File) Close() { _ = d.f.Close() }

func ioctl(f *os.File, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// Buffer returns zeroed, page-aligned memory for direct I/O. It panics when
// there is none: the machine is out of memory. Return it with Free.
func Buffer(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(fmt.Sprintf("block: %d bytes: %v", n, err))
	}
	return b
}

// Free returns a Buffer. It must not be used any more.
func Free(b []byte) { _ = unix.Munmap(b) } // fails for what is no buffer only
