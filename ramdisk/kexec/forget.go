package kexec

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Forget stops process 1 for good and overwrites its memory with zeros: whoever
// reads all RAM after the jump finds neither keys nor what was handed to it. It is
// for another process, which then jumps or resets the machine: process 1 can never
// run again. Nothing has happened yet when it returns an error of errFreeze.
func Forget() error {
	if err := freeze(); err != nil {
		return errors.Join(errFreeze, err)
	}
	return zero("/proc/1")
}

var errFreeze = errors.New("process 1 cannot be stopped")

// Frozen says whether process 1 may have been stopped when Forget failed.
func Frozen(err error) bool { return !errors.Is(err, errFreeze) }

// freeze puts process 1 into a control group of its own and freezes that.
func freeze() error {
	const dir = "/run/cgroup"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("cgroup2", dir, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount cgroup2: %w", err)
	}
	group := filepath.Join(dir, "init")
	if err := os.Mkdir(group, 0o700); err != nil {
		return err
	}
	for _, w := range []struct{ file, value string }{{"cgroup.procs", "1"}, {"cgroup.freeze", "1"}} {
		if err := os.WriteFile(filepath.Join(group, w.file), []byte(w.value), 0); err != nil {
			return err
		}
	}
	for range 200 { // two seconds: a thread in a system call ends that first
		b, err := os.ReadFile(filepath.Join(group, "cgroup.events"))
		if err != nil {
			return err
		}
		if strings.Contains(string(b), "frozen 1") {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.Join(errors.New("it does not freeze"), os.WriteFile(filepath.Join(group, "cgroup.freeze"), []byte("0"), 0))
}

const (
	pageSize    = 4096
	pagePresent = 1 << 63 // proc(5), /proc/pid/pagemap
)

// zero overwrites the pages of a process that are its own and in RAM.
func zero(proc string) error {
	maps, err := os.Open(filepath.Join(proc, "maps"))
	if err != nil {
		return err
	}
	defer maps.Close()
	pagemap, err := os.Open(filepath.Join(proc, "pagemap"))
	if err != nil {
		return err
	}
	defer pagemap.Close()
	mem, err := os.OpenFile(filepath.Join(proc, "mem"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	var errs []error
	for s := bufio.NewScanner(maps); s.Scan(); {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(s.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") || !strings.HasSuffix(mode, "p") {
			continue
		}
		errs = append(errs, zeroPages(mem, pagemap, from, to))
	}
	return errors.Join(errs...)
}

func zeroPages(mem, pagemap *os.File, from, to uint64) error {
	const most = 512 // pages at a time
	nothing, entries := make([]byte, pageSize), make([]byte, most*8)
	for at := from; at < to; at += most * pageSize {
		n := min(most, (to-at)/pageSize)
		if _, err := pagemap.ReadAt(entries[:n*8], int64(at/pageSize*8)); err != nil { //nolint:gosec // user addresses fit
			return err
		}
		for i := range n {
			if binary.LittleEndian.Uint64(entries[i*8:])&pagePresent == 0 {
				continue
			}
			if _, err := mem.WriteAt(nothing, int64(at+i*pageSize)); err != nil { //nolint:gosec // the same
				return err
			}
		}
	}
	return nil
}
