package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/chaos/run"
)

// spent is what the daemons use.
type spent struct {
	revision uint64
	names    []string
	rss      map[string]string // of each daemon, from the kernel
	peak     map[string]string
	disk     map[string]int64 // bytes of a node's data folder, by node
}

func usage(ctx context.Context, w *run.World) (*spent, error) {
	st, err := w.Lab.Status(ctx)
	if err != nil {
		return nil, err
	}
	cluster, err := w.API.Cluster.Status(ctx, &bmcv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	u := &spent{revision: cluster.GetRevision(), rss: map[string]string{}, peak: map[string]string{}, disk: map[string]int64{}}
	for _, d := range st.Daemons {
		u.names = append(u.names, d.Name)
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID))
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(raw)) {
			name, value, _ := strings.Cut(line, ":")
			switch name {
			case "VmRSS":
				u.rss[d.Name] = strings.TrimSpace(value)
			case "VmHWM":
				u.peak[d.Name] = strings.TrimSpace(value)
			}
		}
		if strings.HasPrefix(d.Name, "cp") {
			if u.disk[d.Name], err = size(filepath.Join(st.Dir, "nodes", d.Name, "data")); err != nil {
				return nil, err
			}
		}
	}
	return u, nil
}

// size of the files below a folder; those that go meanwhile do not count.
func size(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // it is gone
		}
		if info, err := d.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total, err
}

func (u *spent) print(before *spent) {
	fmt.Printf("the log grew by %d commands\n", u.revision-before.revision)
	fmt.Printf("  %-8s %12s %12s %14s %14s\n", "daemon", "memory", "most", "data", "before")
	for _, n := range u.names {
		data, was := "", ""
		if b, ok := u.disk[n]; ok {
			data, was = fmt.Sprintf("%.1f MB", float64(b)/1e6), fmt.Sprintf("%.1f MB", float64(before.disk[n])/1e6)
		}
		fmt.Printf("  %-8s %12s %12s %14s %14s\n", n, u.rss[n], u.peak[n], data, was)
	}
}
