package main

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"bmc/metal"
)

// container is a kind of file that holds a disk without being one: a machine that is
// written with it boots nothing.
type container struct {
	at    int64 // of the magic, bytes
	magic string
	what  string
	raw   string // the command that makes a raw disk image of FILE
}

// containers by their magic numbers: of QEMU's docs/interop/qcow2.txt, VMware's Virtual
// Disk Format 5.0, Microsoft's VHD and VHDX, VirtualBox's VDI, RFC 1952 (gzip), RFC 8878
// (zstd), the .xz format 2.1.1, bzip2, PKWARE's APPNOTE.TXT, and ECMA-119 section 8.1.2.
var containers = []container{
	{0, "QFI\xfb", "a qcow2 image", "qemu-img convert -O raw FILE FILE.raw"},
	{0, "KDMV", "a VMDK image", "qemu-img convert -O raw FILE FILE.raw"},
	{0, "vhdxfile", "a VHDX image", "qemu-img convert -O raw FILE FILE.raw"},
	{0, "conectix", "a VHD image", "qemu-img convert -O raw FILE FILE.raw"},
	{0x40, "\x7f\x10\xda\xbe", "a VDI image", "qemu-img convert -O raw FILE FILE.raw"},
	{0, "\x1f\x8b", "compressed by gzip", "gunzip -k FILE"},
	{0, "\xfd7zXZ\x00", "compressed by xz", "unxz -k FILE"},
	{0, "\x28\xb5\x2f\xfd", "compressed by zstd", "unzstd FILE"},
	{0, "BZh", "compressed by bzip2", "bunzip2 -k FILE"},
	{0, "PK\x03\x04", "a zip archive", "unzip FILE"},
	{257, "ustar", "a tar archive", "tar -xf FILE"},
}

const (
	bootSignature = 510    // of an MBR, the protective one of a GPT too (UEFI 2.10 section 5.2.1)
	isoMagic      = 0x8001 // "CD001"
)

// requireRaw refuses what is plainly no raw disk, before anything of it is stored. What
// it does not know passes: systems boot from disks of many kinds.
func requireRaw(f io.ReaderAt, name string) error {
	is := func(at int64, magic string) (bool, error) {
		b := make([]byte, len(magic))
		n, err := f.ReadAt(b, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, metal.Errorf(metal.CodeInvalid, "cannot read the image: %v", err).WithHint("bmc image push --help")
		}
		return bytes.Equal(b[:n], []byte(magic)), nil
	}
	bootable, err := is(bootSignature, "\x55\xaa")
	if err != nil || bootable {
		return err // whatever it begins with: a hybrid ISO 9660 is a disk, too
	}
	for _, c := range containers {
		found, err := is(c.at, c.magic)
		if err != nil {
			return err
		}
		if found {
			return metal.Errorf(metal.CodeInvalid, "%s is %s, not a raw disk image: a machine would boot nothing of it", name, c.what).
				WithHint("%s", strings.ReplaceAll(c.raw, "FILE", name))
		}
	}
	iso, err := is(isoMagic, "CD001")
	if err == nil && iso {
		return metal.Errorf(metal.CodeInvalid, "%s is a CD image (ISO 9660) without a partition table: an installer, no installed system", name).WithHint("bmc image push --help")
	}
	return err
}
