package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestWhoLed(t *testing.T) {
	dir := t.TempDir()
	logs := map[string]string{}
	for name, text := range map[string]string{
		"cp1": "time=2026-01-02T03:04:05.100Z level=INFO msg=\"leadership gained\" node=n1 term=2\nother\ntime=2026-01-02T03:04:20.000Z level=INFO msg=\"leadership lost\" node=n1\n",
		"cp2": "time=2026-01-02T03:04:30.500Z level=INFO msg=\"leadership gained\" node=n2 term=4\n",
		"cp3": "",
	} {
		logs[name] = filepath.Join(dir, name)
		if err := os.WriteFile(logs[name], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for at, want := range map[int]string{5: "", 6: "cp1", 30: "cp1", 31: "cp2", 59: "cp2"} {
		got, err := ledAt(logs, time.Date(2026, 1, 2, 3, 4, at, 0, time.UTC))
		if err != nil || got != want {
			t.Errorf("at second %d: %q %v, want %q", at, got, err, want)
		}
	}
}
