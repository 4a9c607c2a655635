package process

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Names of file systems, by statfs's magic (statfs(2)).
var filesystems = map[int64]string{
	0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x01021994: "tmpfs",
	0x794c7630: "overlayfs", 0x2fc12fc1: "zfs",
}

// Filesystem names what a directory is on.
func Filesystem(dir string) (string, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return "", fmt.Errorf("look at the file system of %s: %w", dir, err)
	}
	if name, ok := filesystems[int64(s.Type)]; ok { //nolint:unconvert // an int32 on some architectures
		return name, nil
	}
	return fmt.Sprintf("%#x", s.Type), nil
}

// Machine describes what a measurement ran on, without naming it.
func Machine() string {
	cpu := field("/proc/cpuinfo", "model name")
	if cpu == "" {
		cpu = runtime.GOARCH
	}
	memory := "unknown memory"
	if kb, err := strconv.Atoi(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		memory = fmt.Sprintf("%.0f GiB", float64(kb)/(1<<20))
	}
	load := "unknown"
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ = strings.Cut(string(b), " ")
	}
	return fmt.Sprintf("%d cores (%s), %s, %s, load %s", runtime.NumCPU(), cpu, memory, runtime.Version(), load)
}

// Load is the machine's load average of a minute; 0 where it is unknown.
func Load() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return load
}

// RSS is a process's resident memory, now and at its peak, in bytes.
func RSS(pid int) (now, peak int64) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	read := func(name string) int64 {
		kb, err := strconv.ParseInt(strings.TrimSuffix(field(path, name), " kB"), 10, 64)
		if err != nil {
			return 0
		}
		return kb << 10
	}
	return read("VmRSS"), read("VmHWM")
}

// Processor is what a process has used so far, of processors; 0 if it is gone.
func Processor(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// After the name in brackets: utime and stime are fields 14 and 15 (proc(5)).
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const tick = time.Second / 100 // USER_HZ
	if len(f) < 13 {
		return 0
	}
	user, err1 := strconv.Atoi(f[11])
	kernel, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		return 0
	}
	return time.Duration(user+kernel) * tick
}

// field is the value of the first "name: value" line of a file.
func field(path, name string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
