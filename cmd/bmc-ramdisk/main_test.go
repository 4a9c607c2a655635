package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSettleTime(t *testing.T) {
	for name, tt := range map[string]struct {
		hosts []string
		want  time.Duration
	}{
		"no SCSI host":         {nil, 300 * time.Millisecond},
		"SATA, virtio":         {[]string{"ahci", "ahci", "virtio_scsi", "sata_nv"}, 300 * time.Millisecond},
		"one scans for itself": {[]string{"ahci", "smartpqi"}, settleFor},
		"a nameless one":       {[]string{""}, settleFor},
	} {
		sys := t.TempDir()
		for i, driver := range tt.hosts {
			dir := filepath.Join(sys, "class/scsi_host", fmt.Sprint("host", i))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "proc_name"), []byte(driver+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := settleTime(sys); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}
