package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGroupOf(t *testing.T) {
	for _, tt := range []struct{ text, controller, want string }{
		{"5:devices:/\n4:blkio,cpu:/a/b\n0::/c\n", "blkio", "/a/b"},
		{"0::/user.slice/x:y.scope\n", "", "/user.slice/x:y.scope"},
		{"7:blkio:/\n0::/c", "", "/c"},
		{"7:cpu:/\n", "blkio", ""},
		{"", "", ""},
	} {
		if got, ok := groupOf(tt.text, tt.controller); got != tt.want || ok != (tt.want != "") {
			t.Errorf("%q, %q: %q", tt.text, tt.controller, got)
		}
	}
}

// The process goes back to the group that it was in, which need not be the root.
func TestThrottleIsUndone(t *testing.T) {
	root, controller := "/sys/fs/cgroup/blkio", "blkio"
	if _, err := os.Stat(root); err != nil {
		root, controller = "/sys/fs/cgroup", ""
	}
	where := func() string {
		text, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		group, _ := groupOf(string(text), controller)
		return group
	}
	enter := func(group string) error {
		return os.WriteFile(filepath.Join(root, group, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	before, group := where(), "/bench-image-test-"+strconv.Itoa(os.Getpid())
	err := os.Mkdir(root+group, 0o755) //nolint:gosec // as control groups are
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) {
		t.Skip("control groups cannot be made here: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(enter(before), os.Remove(root+group)); err != nil {
			t.Error(err)
		}
	})
	if err := enter(group); err != nil {
		t.Fatal(err)
	}
	undo, err := throttle(t.TempDir(), 500e6)
	if err != nil {
		t.Skip("the disk below the temporary directory cannot be throttled: ", err)
	}
	if where() == group {
		t.Error("it has not moved")
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
	if got := where(); got != group {
		t.Errorf("it is in %s, and was in %s", got, group)
	}
}
