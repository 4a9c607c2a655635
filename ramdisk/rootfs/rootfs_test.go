package rootfs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestReadSuperblock(t *testing.T) {
	if _, err := readSuperblock(bytes.NewReader(make([]byte, 4096))); err == nil {
		t.Error("zeros are a file system")
	}
	if _, err := readSuperblock(bytes.NewReader(nil)); err == nil {
		t.Error("nothing is a file system")
	}
	mke2fs := "/sbin/mke2fs"
	if _, err := os.Stat(mke2fs); err != nil {
		t.Skip("mke2fs is not installed: no real superblock is read")
	}
	for _, blockSize := range []string{"1024", "4096"} {
		file := filepath.Join(t.TempDir(), "fs")
		if out, err := exec.Command(mke2fs, "-q", "-t", "ext4", "-b", blockSize, file, "8M").CombinedOutput(); err != nil {
			t.Fatalf("mke2fs: %v\n%s", err, out)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		sb, err := readSuperblock(f)
		if err != nil || sb.blocks*sb.blockSize != 8<<20 {
			t.Errorf("block size %s: %+v, %v", blockSize, sb, err)
		}
	}
}

func FuzzSuperblock(f *testing.F) {
	b := make([]byte, 2048)
	b[1024+0x38], b[1024+0x39] = 0x53, 0xef
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if sb, err := readSuperblock(bytes.NewReader(b)); err == nil && (sb.blockSize < 1024 || sb.blockSize > 64<<10) {
			t.Fatalf("%+v", sb)
		}
	})
}
