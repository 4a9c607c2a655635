package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/klauspost/compress/zstd"
)

// group is what a kind of files in the initrd takes.
type group struct {
	name   string
	files  int
	size   int // bytes
	packed int // bytes, compressed alone: the whole is a little less
}

// list prints what a built ramdisk holds.
func list(w io.Writer, out string) error {
	kernel, err := os.Stat(filepath.Join(out, "vmlinuz"))
	if err != nil {
		return err
	}
	image, err := os.ReadFile(filepath.Join(out, "initrd.img"))
	if err != nil {
		return err
	}
	groups, err := contents(image)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "files\tMB\tpacked\t  \t")
	for _, g := range groups {
		fmt.Fprintf(t, "%d\t%.1f\t%.1f\t  %s\t\n", g.files, mb(g.size), mb(g.packed), g.name)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "initrd.img %.1f MB, vmlinuz %.1f MB: %.1f MB go to each machine\n", mb(len(image)), mb(int(kernel.Size())), mb(len(image)+int(kernel.Size())))
	return err
}

// contents groups the files of an initrd, the largest first.
func contents(image []byte) ([]group, error) {
	z, err := zstd.NewReader(bytes.NewReader(image), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	archive, err := io.ReadAll(z)
	if err != nil && len(archive) == 0 { // the zeros at its end are an error, too
		return nil, fmt.Errorf("unpack the initrd: %w", err)
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return nil, err
	}
	defer encoder.Close() //nolint:errcheck // nothing is written to it
	by := map[string]*group{}
	err = eachFile(archive, func(name string, data []byte) {
		kind := kindOf(name)
		if by[kind] == nil {
			by[kind] = &group{name: kind}
		}
		g := by[kind]
		g.files++
		g.size += len(data)
		g.packed += len(encoder.EncodeAll(data, nil))
	})
	var all []group
	for _, g := range by {
		all = append(all, *g)
	}
	slices.SortFunc(all, func(a, b group) int { return cmp.Or(cmp.Compare(b.size, a.size), strings.Compare(a.name, b.name)) })
	return all, err
}

func kindOf(name string) string {
	_, module, ok := strings.Cut(name, "/kernel/")
	switch {
	case name == "init":
		return "init: bmc-ramdisk, static"
	case !ok:
		return "index of modules"
	case strings.HasPrefix(module, "drivers/net/"), strings.HasPrefix(module, "net/"):
		return "modules: networks"
	case slices.ContainsFunc([]string{"drivers/ata/", "drivers/scsi/", "drivers/nvme/", "drivers/message/", "drivers/block/", "drivers/md/"}, func(p string) bool { return strings.HasPrefix(module, p) }):
		return "modules: disks"
	case strings.HasPrefix(module, "fs/"):
		return "modules: file systems"
	}
	return "modules: buses, checksums and the rest"
}

// eachFile walks a cpio archive in the format newc (the kernel's
// initramfs/buffer-format): 110 bytes of header, all numbers of eight hex digits.
func eachFile(archive []byte, f func(name string, data []byte)) error {
	const header, fileMode, typeMask, regular = 110, 14, 0o170000, 0o100000
	for len(archive) >= header {
		field := func(at int) int {
			n, err := strconv.ParseUint(string(archive[at:at+8]), 16, 32)
			if err != nil {
				return -1
			}
			return int(n)
		}
		size, nameLen := field(54), field(94)
		data := (header + nameLen + 3) &^ 3
		if size < 0 || nameLen < 1 || data+size > len(archive) {
			return errors.New("the archive is not one")
		}
		name := string(archive[header : header+nameLen-1])
		if name == "TRAILER!!!" {
			return nil
		}
		if field(fileMode)&typeMask == regular {
			f(name, archive[data:data+size])
		}
		archive = archive[(data+size+3)&^3:]
	}
	return errors.New("the archive has no end")
}
