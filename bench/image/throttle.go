package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// throttle has the kernel limit what this process writes to the disk that dir is on,
// in bytes a second (cgroups, version 1 or 2), until it is undone: then the process is
// in the group again that it was in.
func throttle(path string, rate int64) (undo func() error, err error) {
	device, err := wholeDisk(path)
	if err != nil {
		return nil, err
	}
	root, controller := "/sys/fs/cgroup/blkio", "blkio"
	file, line := "blkio.throttle.write_bps_device", fmt.Sprintf("%s %d", device, rate)
	if _, err := os.Stat(root); err != nil {
		root, controller = "/sys/fs/cgroup", ""
		file, line = "io.max", fmt.Sprintf("%s wbps=%d", device, rate)
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	was, ok := groupOf(string(groups), controller)
	if !ok {
		return nil, fmt.Errorf("no control group of this process is below %s", root)
	}
	group := filepath.Join(root, "bench-image-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil { //nolint:gosec // as control groups are
		return nil, err
	}
	self := []byte(strconv.Itoa(os.Getpid()))
	undo = func() error {
		return errors.Join(os.WriteFile(filepath.Join(root, was, "cgroup.procs"), self, 0), os.Remove(group))
	}
	for _, w := range []struct {
		file string
		text []byte
	}{{file, []byte(line)}, {"cgroup.procs", self}} {
		if err := os.WriteFile(filepath.Join(group, w.file), w.text, 0); err != nil {
			return nil, errors.Join(err, undo())
		}
	}
	return undo, nil
}

// groupOf finds a controller's group in /proc/self/cgroup, of which each line is
// hierarchy:controllers:path; version 2 has one line without controllers.
func groupOf(text, controller string) (string, bool) {
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) == 3 && slices.Contains(strings.Split(parts[1], ","), controller) {
			return parts[2], true
		}
	}
	return "", false
}

// wholeDisk is the number of the disk that a file is on, or that it is.
func wholeDisk(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", err
	}
	dev := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev = st.Rdev
	}
	node := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))
	if _, err := os.Stat(node + "/partition"); err == nil {
		node += "/.."
	}
	text, err := os.ReadFile(node + "/dev")
	if err != nil {
		return "", fmt.Errorf("the disk below %s: %w", path, err)
	}
	return strings.TrimSpace(string(text)), nil
}
