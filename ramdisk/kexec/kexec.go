// Package kexec starts an installed image's own kernel in place of the one that
// runs, without the firmware. Loading and jumping are apart: what is loaded has
// no effect until Jump, and a machine whose load fails goes on as it was.
package kexec

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"bmc/internal/manifest"
)

// Load has the kernel that runs take the image's kernel and initrd out of its
// mounted root file system, and keep them in RAM. The files may be unmounted
// afterwards. The command line is Cmdline's.
//
// What cannot be loaded by kexec_load(2), for whatever reason (Secure Boot, another
// format, a firmware that tells too little), is left to kexec_file_load(2), and why says
// so. The former takes no digest of what is in RAM: what is on the disk was compared
// with the signed manifest before.
func Load(dir string, image *manifest.Manifest, cmdline string) (why, err error) {
	kernel, err := open(dir, image.Kernel)
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	var initrd *os.File
	fd, flags := -1, unix.KEXEC_FILE_NO_INITRAMFS
	if image.Initrd != "" {
		if initrd, err = open(dir, image.Initrd); err != nil {
			return nil, err
		}
		defer initrd.Close()
		fd, flags = int(initrd.Fd()), 0
	}
	if why = loadSegments("/", kernel, initrd, cmdline); why == nil {
		return nil, nil
	}
	if err := unix.KexecFileLoad(int(kernel.Fd()), fd, cmdline, flags); err != nil {
		return why, fmt.Errorf("the kernel refuses to load %s: %w", image.Kernel, err)
	}
	return why, nil
}

// open takes a path as the installed system would see it: links in it lead
// nowhere out of dir.
func open(dir, path string) (*os.File, error) {
	root, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(root.Fd()), path, how)
	if err != nil {
		return nil, fmt.Errorf("open %s of the image: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(fmt.Errorf("%s of the image is not a regular file", path), err)
	}
	return f, nil
}

// Jump leaves for what was loaded. It returns only if the kernel refuses.
// Drivers shut their devices down on the way, so that none writes to memory that
// is another kernel's by then; file systems are the caller's business.
func Jump() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC); err != nil {
		return fmt.Errorf("jump to the loaded kernel: %w", err)
	}
	return errors.New("the kernel did not jump")
}

// Cmdline is the command line for the image's kernel: the image's own, which
// names its root, and what only this machine knows. partUUID names the root
// partition where the image does not say root=; ramdisk is the command line that
// runs now, whose serial consoles are the ones that somebody listens at.
func Cmdline(image, partUUID, ramdisk string) string {
	words := strings.Fields(image)
	has := func(prefix string) bool {
		for _, w := range words {
			if strings.HasPrefix(w, prefix) {
				return true
			}
		}
		return false
	}
	if !has("root=") && partUUID != "" {
		words = append(words, "root=PARTUUID="+partUUID)
	}
	for _, w := range strings.Fields(ramdisk) {
		value, ok := strings.CutPrefix(w, "console=")
		device, _, _ := strings.Cut(value, ",")
		if ok && device != "" && !has("console="+device) {
			words = append(words, w) // the last one is where init writes
		}
	}
	return strings.Join(words, " ")
}
