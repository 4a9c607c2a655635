package kexec

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// segment is the kernel's struct kexec_segment.
type segment struct {
	buf     unsafe.Pointer
	bufSize uintptr
	mem     uintptr
	memSize uintptr
}

// loadSegments does what kexec_file_load(2) does, by kexec_load(2): without its
// SHA-256 of everything, the kernel's room for unpacking itself included, which is
// computed when it is loaded and once more at the jump. initrd may be nil.
func loadSegments(root string, kernel, initrd *os.File, cmdline string) (err error) {
	s, err := readSystem(root)
	if err != nil {
		return err
	}
	kernelSize, err := size(kernel)
	if err != nil {
		return err
	}
	k, err := parseBzImage(kernel, kernelSize)
	if err != nil {
		return err
	}
	code, err := mapped(kernel, kernelSize)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(code)) }()
	var ramdisk []byte
	if initrd != nil {
		n, err := size(initrd)
		if err != nil {
			return err
		}
		if ramdisk, err = mapped(initrd, n); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Munmap(ramdisk)) }()
	}
	where, params, err := layOut(s, k, cmdline, uint64(len(ramdisk)))
	if err != nil {
		return err
	}
	segments := []segment{where.kernel.segment(code[k.offset:]), where.params.segment(params)}
	if len(ramdisk) > 0 {
		segments = append(segments, where.initrd.segment(ramdisk))
	}
	if _, _, errno := unix.Syscall6(unix.SYS_KEXEC_LOAD, uintptr(where.params.start+bootParamsSize), uintptr(len(segments)),
		uintptr(unsafe.Pointer(&segments[0])), 0, 0, 0); errno != 0 {
		return fmt.Errorf("kexec_load: %w", errno)
	}
	return nil
}

type layout struct{ kernel, initrd, params span }

// layOut finds places for everything, the kernel at the address that it would have
// by itself or above, and makes the parameters for them.
func layOut(s *system, k *bzImage, cmdline string, initrdSize uint64) (l layout, params []byte, err error) {
	if l.kernel, err = place(s.ram, nil, alignUp(k.initSize, pageSize), k.alignment, max(k.preferred, 1<<20)); err != nil {
		return l, nil, err
	}
	taken := []span{l.kernel}
	if initrdSize > 0 {
		if l.initrd, err = place(s.ram, taken, alignUp(initrdSize, pageSize), pageSize, l.kernel.end); err != nil {
			return l, nil, err
		}
		taken = append(taken, l.initrd)
	}
	// Its size does not depend on the addresses in it.
	if params, err = parameters(s, k, cmdline, 0, l.kernel, l.initrd, initrdSize); err != nil {
		return l, nil, err
	}
	if l.params, err = place(s.ram, taken, alignUp(uint64(len(params)), pageSize), pageSize, 1<<20); err != nil {
		return l, nil, err
	}
	params, err = parameters(s, k, cmdline, l.params.start, l.kernel, l.initrd, initrdSize)
	return l, params, err
}

func (s span) segment(data []byte) segment {
	return segment{unsafe.Pointer(&data[0]), uintptr(len(data)), uintptr(s.start), uintptr(s.end - s.start)}
}

func size(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// mapped is a file's content for the kernel to read: a bad disk is an error of the
// system call then. Nobody here touches it.
func mapped(f *os.File, size int64) ([]byte, error) {
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return b, nil
}
