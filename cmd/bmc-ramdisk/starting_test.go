package main

import (
	"os"
	"path/filepath"
	"testing"
)

// An NVMe controller whose driver is loaded may not be ready: its disks come later.
func TestStarting(t *testing.T) {
	for state, want := range map[string]bool{"": false, "new": true, "connecting": true, "live": false, "dead": false} {
		sys := t.TempDir()
		if state != "" {
			dir := filepath.Join(sys, "class/nvme/nvme0")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "state"), []byte(state+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := starting(sys); got != want {
			t.Errorf("%q: %v", state, got)
		}
	}
}
