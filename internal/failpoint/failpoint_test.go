//go:build failpoints

package failpoint

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestHit(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("BMC_FAILPOINTS", dir)
	if err := Hit("log/store"); err != nil {
		t.Fatalf("a point without a file: %v", err)
	}
	set := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "log.store"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set("after 1 times 1 error ENOSPC")
	for i, want := range []error{nil, syscall.ENOSPC, nil} {
		if err := Hit("log/store"); !errors.Is(err, want) {
			t.Errorf("hit %d: %v, want %v", i+1, err, want)
		}
	}
	set("dance")
	if err := Hit("log/store"); err == nil || !strings.Contains(err.Error(), "dance") {
		t.Errorf("unknown action: %v", err)
	}
	fired, err := os.ReadFile(filepath.Join(dir, "fired.jsonl"))
	if err != nil || strings.Count(string(fired), "\n") != 2 {
		t.Errorf("fired.jsonl: %q, %v", fired, err)
	}
}

func TestTokenFiresInOneProcess(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fired := 0
	for range 3 { // processes
		dir := t.TempDir()
		t.Setenv("BMC_FAILPOINTS", dir)
		if err := os.WriteFile(filepath.Join(dir, "log.store"), []byte("token "+token+" error x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if Hit("log/store") != nil {
			fired++
		}
	}
	if fired != 1 {
		t.Errorf("fired %d times", fired)
	}
}

// A token that is handed on makes points fire in their order, each once.
func TestTokenIsHandedOn(t *testing.T) {
	dir, tokens := t.TempDir(), t.TempDir()
	first, second := filepath.Join(tokens, "first"), filepath.Join(tokens, "second")
	for file, text := range map[string]string{
		first: "", filepath.Join(dir, "log.a"): "token " + first + ">" + second + " error x", filepath.Join(dir, "log.b"): "token " + second + " error x",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("BMC_FAILPOINTS", dir)
	var got []bool
	for _, point := range []string{"log/b", "log/a", "log/a", "log/b", "log/b"} {
		got = append(got, Hit(point) != nil)
	}
	if !slices.Equal(got, []bool{false, true, false, true, false}) {
		t.Errorf("fired: %v", got)
	}
}
