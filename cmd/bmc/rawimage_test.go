package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"bmc/metal"
)

func TestRequireRaw(t *testing.T) {
	with := func(parts map[int]string) []byte {
		b := make([]byte, 64<<10)
		for at, s := range parts {
			copy(b[at:], s)
		}
		return b
	}
	for name, tc := range map[string]struct {
		b    []byte
		want string // of the error; "": none
		hint string
	}{
		"a disk with an MBR or a GPT":        {with(map[int]string{510: "\x55\xaa"}), "", ""},
		"qcow2":                              {with(map[int]string{0: "QFI\xfb\x00\x00\x00\x03"}), "d.img is a qcow2 image, not a raw disk image", "qemu-img convert -O raw d.img d.img.raw"},
		"VDI":                                {with(map[int]string{0x40: "\x7f\x10\xda\xbe"}), "a VDI image", "qemu-img"},
		"gzip":                               {[]byte("\x1f\x8b\x08\x00"), "compressed by gzip", "gunzip -k d.img"},
		"xz":                                 {with(map[int]string{0: "\xfd7zXZ\x00"}), "compressed by xz", "unxz"},
		"tar":                                {with(map[int]string{257: "ustar\x0000"}), "a tar archive", "tar -xf"},
		"an installer's CD":                  {with(map[int]string{0x8001: "CD001"}), "ISO 9660", "bmc image push --help"},
		"a CD that is a disk, too":           {with(map[int]string{510: "\x55\xaa", 0x8001: "CD001"}), "", ""},
		"a boot sector that looks like gzip": {with(map[int]string{0: "\x1f\x8b", 510: "\x55\xaa"}), "", ""},
		"a file system without a table":      {with(map[int]string{1080: "\x53\xef"}), "", ""},
		"nothing":                            {nil, "", ""},
	} {
		err := requireRaw(bytes.NewReader(tc.b), "d.img")
		if (err == nil) != (tc.want == "") || err != nil && (!strings.Contains(err.Error(), tc.want) || metal.CodeOf(err) != metal.CodeInvalid) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		var e *metal.Error
		if tc.hint != "" && (!errors.As(err, &e) || !strings.HasPrefix(e.Hint, tc.hint)) {
			t.Errorf("%s: %+v, want the hint %q", name, e, tc.hint)
		}
	}
}
