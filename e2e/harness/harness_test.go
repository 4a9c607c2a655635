package harness

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A lab that does not come up is taken down before anybody removes its folder.
func TestUpTakesDownWhatFailed(t *testing.T) {
	dir := t.TempDir()
	said := filepath.Join(dir, "said")
	script := "#!/bin/sh\necho \"$1\" >>" + said + "\n[ \"$1\" = down ]\n"
	if err := os.WriteFile(filepath.Join(dir, "bmc-lab"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Up(t.Context(), Options{Bin: dir, Dir: t.TempDir(), Nodes: 1}); err == nil || !strings.Contains(err.Error(), "bring the lab up") {
		t.Error(err)
	}
	if b, err := os.ReadFile(said); err != nil || string(b) != "up\ndown\n" {
		t.Errorf("bmc-lab was asked for %q (%v), want up, then down", b, err)
	}
}

func TestContains(t *testing.T) {
	const piece = 4 << 20
	for name, at := range map[string]int{"start": 0, "across two pieces": piece - 3, "end": 2*piece - 6} {
		file := filepath.Join(t.TempDir(), "disk.img")
		b := make([]byte, 2*piece)
		copy(b[at:], "marker")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if found, err := Contains(file, "marker"); err != nil || !found {
			t.Errorf("%s: %v, %v", name, found, err)
		}
		if found, err := Contains(file, "markers"); err != nil || found {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
}
