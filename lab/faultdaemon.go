package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
)

// harmAll does something to daemons: to none where one of the names is wrong, or one
// that is to be signalled does not run.
func (l *Lab) harmAll(a *activeFault) error {
	for _, name := range a.Targets {
		p := l.find(name)
		if p == nil {
			return l.noDaemon(name)
		}
		if (a.Kind == FaultKill || a.Kind == FaultStop) && p.alive() != nil {
			return fmt.Errorf("%s does not run: nothing was done; bmc-lab start %s", name, name)
		}
	}
	for _, name := range a.Targets {
		if err := l.harm(a, name); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) harm(a *activeFault, name string) error {
	switch a.Kind {
	case FaultKill:
		if err := l.signal(name, syscall.SIGKILL); err != nil {
			return err
		}
		a.count = append(a.count, one)
		a.undos = append(a.undos, func() error {
			if err := l.StartDaemon(name); !errors.Is(err, errClosing) {
				return err
			}
			return nil
		})
		return nil
	case FaultStop:
		if err := l.signal(name, syscall.SIGSTOP); err != nil {
			return err
		}
		a.count = append(a.count, one)
		a.undos = append(a.undos, l.goOn(name))
		return nil
	case FaultDiskFull:
		return l.failpoint(a, name, l.writePoint(name), "error ENOSPC")
	case FaultLogHang:
		return l.failpoint(a, name, l.writePoint(name), "hang")
	}
	return l.failpoint(a, name, a.Point, a.Action)
}

func one() uint64 { return 1 }

// goOn wakes a stopped daemon; one that was killed meanwhile needs no waking.
func (l *Lab) goOn(name string) func() error {
	return func() error { _ = l.signal(name, syscall.SIGCONT); return nil }
}

// writePoint is the failpoint before a daemon's writes: to a node's Raft log, or
// to an agent's journal.
func (l *Lab) writePoint(name string) string {
	if l.isNode(name) {
		return "raft/log/before"
	}
	return "agent/journal/before"
}

func (l *Lab) isNode(name string) bool {
	return slices.ContainsFunc(l.plan.nodes, func(n nodePlan) bool { return n.name == name })
}

// failpoint writes the file that makes a daemon's failpoint fire.
func (l *Lab) failpoint(a *activeFault, name, point, action string) error {
	if name == storeName {
		return fmt.Errorf("%s has no failpoints: %s can only be killed or stopped", name, name)
	}
	if !l.cfg.Failpoints {
		return errors.New("the daemons of this lab have no failpoints: make build-failpoints, then bmc-lab up --bin bin/failpoints")
	}
	dir := l.cfg.path("failpoints", name)
	path := filepath.Join(dir, strings.ReplaceAll(point, "/", "."))
	if _, err := os.Stat(path); err == nil {
		return fmt.Errorf("%s has a fault at %s already: heal that first", name, point)
	}
	fired, err := newFiredCounter(dir, point)
	if err != nil {
		return err
	}
	// Renamed into place, so that a daemon never reads half of it.
	if err := os.WriteFile(path+".new", []byte(action+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	a.count = append(a.count, fired.count)
	a.undos = append(a.undos, func() error { return removeIfThere(path) })
	if slices.Contains(strings.Fields(action), "stop") {
		// After the file is gone: undone newest first.
		a.undos = slices.Insert(a.undos, len(a.undos)-1, l.goOn(name))
	}
	return nil
}

// firedCounter counts how often a point has fired, by the daemon's own record.
type firedCounter struct {
	path   string
	point  []byte
	offset int64
	n      uint64
}

// newFiredCounter counts from now on.
func newFiredCounter(dir, point string) (*firedCounter, error) {
	c := &firedCounter{path: filepath.Join(dir, "fired.jsonl"), point: []byte(`"point":"` + point + `"`)}
	st, err := os.Stat(c.path)
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	c.offset = st.Size()
	return c, nil
}

// count reads whole lines that are new. A record that cannot be read counts later.
func (c *firedCounter) count() uint64 {
	f, err := os.Open(c.path)
	if err != nil {
		return c.n // nothing has fired yet
	}
	defer f.Close()
	raw, err := io.ReadAll(io.NewSectionReader(f, c.offset, 1<<40))
	if err != nil {
		return c.n
	}
	raw = raw[:bytes.LastIndexByte(raw, '\n')+1]
	c.offset += int64(len(raw))
	c.n += uint64(bytes.Count(raw, c.point))
	return c.n
}

func (l *Lab) noDaemon(name string) error {
	var names []string
	l.mu.Lock()
	for _, p := range l.daemons {
		names = append(names, p.name)
	}
	l.mu.Unlock()
	sort.Strings(names)
	return fmt.Errorf("no daemon %q; there are: %s", name, strings.Join(names, " "))
}
