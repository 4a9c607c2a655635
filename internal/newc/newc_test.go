package newc

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

func TestArchiveIsAlignedAndListable(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, e := range []Entry{
		{Name: "bmc", Mode: ModeDir | 0o755},
		{Name: "bmc/a", Mode: ModeFile | 0o600, Data: []byte("hello")},
		{Name: "bmc/link", Mode: ModeSymlink | 0o777, Data: []byte("a")},
		{Name: "console", Mode: ModeChar | 0o600, Major: 5, Minor: 1},
	} {
		if err := w.Write(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%4 != 0 {
		t.Fatalf("length %d is not a multiple of 4", b.Len())
	}
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("cpio is not installed: the archive is not listed by it")
	}
	cmd := exec.Command("cpio", "-t", "--quiet")
	cmd.Stdin = bytes.NewReader(b.Bytes())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(out)); strings.Join(got, " ") != "bmc bmc/a bmc/link console" {
		t.Fatalf("cpio lists %q", got)
	}
}

func TestBadNamesAreRefused(t *testing.T) {
	for _, name := range []string{"", "/abs", "../up", "a/../b", "a//b", "a/"} {
		if err := NewWriter(&bytes.Buffer{}).Write(Entry{Name: name, Mode: ModeFile}); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
}
