// Package rootfs mounts an installed image's root file system and grows it.
package rootfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	mountPoint = "/mnt"
	nodeWait   = 10 * time.Second
	resizeFS   = 0x40086610 // EXT4_IOC_RESIZE_FS
)

// FS is a mounted ext4 file system.
type FS struct {
	Dir    string // where it is mounted
	device string
}

// Mount mounts an ext4 partition once its device has appeared. Nothing in it
// can be run or act as a device.
func Mount(ctx context.Context, device string) (*FS, error) { return mount(ctx, device, 0) }

// MountReadOnly is Mount for who only reads.
func MountReadOnly(ctx context.Context, device string) (*FS, error) {
	return mount(ctx, device, unix.MS_RDONLY)
}

func mount(ctx context.Context, device string, flags uintptr) (*FS, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeWait)
	defer cancel()
	if err := os.MkdirAll(mountPoint, 0o700); err != nil {
		return nil, err
	}
	for {
		err := unix.Mount(device, mountPoint, "ext4", flags|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, "")
		if err == nil {
			return &FS{Dir: mountPoint, device: device}, nil
		}
		// The node comes a moment after the partition; EBUSY is somebody probing.
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) {
			return nil, fmt.Errorf("mount %s: %w", device, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("mount %s: %w", device, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Grow makes the file system as large as its partition and returns its size in
// bytes. It never shrinks.
func (f *FS) Grow() (int64, error) {
	device, err := os.Open(f.device)
	if err != nil {
		return 0, err
	}
	defer device.Close()
	size, err := device.Seek(0, 2)
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", f.device, err)
	}
	sb, err := readSuperblock(device)
	if err != nil {
		return 0, err
	}
	blocks := uint64(size) / sb.blockSize
	if blocks <= sb.blocks {
		return int64(sb.blocks * sb.blockSize), nil
	}
	dir, err := os.Open(f.Dir)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return 0, fmt.Errorf("grow from %d to %d blocks: %w", sb.blocks, blocks, errno)
	}
	return int64(blocks * sb.blockSize), nil
}

// Unmount writes everything out and unmounts.
func (f *FS) Unmount() error {
	dir, err := os.Open(f.Dir)
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(dir.Fd()))
	dir.Close()
	return errors.Join(err, unix.Unmount(f.Dir, 0))
}

type superblock struct{ blocks, blockSize uint64 }

// readSuperblock reads ext4's primary superblock, at byte 1024.
func readSuperblock(r interface {
	ReadAt([]byte, int64) (int, error)
}) (superblock, error) {
	b := make([]byte, 1024)
	if _, err := r.ReadAt(b, 1024); err != nil {
		return superblock{}, fmt.Errorf("read the superblock: %w", err)
	}
	if binary.LittleEndian.Uint16(b[0x38:]) != 0xef53 {
		return superblock{}, errors.New("not an ext4 file system")
	}
	shift := binary.LittleEndian.Uint32(b[0x18:])
	if shift > 6 {
		return superblock{}, errors.New("ext4 superblock: block size out of bounds")
	}
	blocks := uint64(binary.LittleEndian.Uint32(b[0x04:]))
	if binary.LittleEndian.Uint32(b[0x60:])&0x80 != 0 { // the feature 64bit
		blocks |= uint64(binary.LittleEndian.Uint32(b[0x150:])) << 32
	}
	return superblock{blocks: blocks, blockSize: 1024 << shift}, nil
}
