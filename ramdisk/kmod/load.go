package kmod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Loader inserts modules, each once, and one after the other: the kernel is left to
// probe one driver's devices before the next one comes.
type Loader struct {
	index  *Index
	insert func(file string) error
	tried  map[string]error
	known  map[string]bool // devices whose modalias was read
	seen   map[string]bool // modaliases looked up
}

// NewLoader loads the modules of an index into the running kernel.
func NewLoader(x *Index) *Loader {
	return &Loader{index: x, insert: finit, tried: map[string]error{}, known: map[string]bool{}, seen: map[string]bool{}}
}

// Load inserts what a name or modalias stands for, dependencies first. That
// nothing matches is no error: most devices need no driver here.
func (l *Loader) Load(want string) error {
	var errs []error
	for _, m := range l.index.Match(want) {
		for _, file := range l.index.Order(m) {
			if _, ok := l.tried[file]; !ok {
				l.tried[file] = l.insert(file)
			}
			if err := l.tried[file]; err != nil {
				errs = append(errs, err)
				break
			}
		}
	}
	return errors.Join(errs...)
}

// Coldplug loads a driver for every device that the kernel has found since the
// last call, and returns how many modaliases were new. Buses find devices behind
// them once their own driver is in: call it until it returns 0 for a while.
func (l *Loader) Coldplug(sysfs string) (fresh int, err error) {
	buses, err := os.ReadDir(filepath.Join(sysfs, "bus"))
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, bus := range buses {
		dir := filepath.Join(sysfs, "bus", bus.Name(), "devices")
		devices, err := os.ReadDir(dir)
		if err != nil {
			continue // buses come and go meanwhile
		}
		for _, d := range devices {
			file := filepath.Join(dir, d.Name(), "modalias")
			if l.known[file] {
				continue
			}
			b, err := os.ReadFile(file)
			a := strings.TrimSpace(string(b))
			l.known[file] = err == nil || errors.Is(err, fs.ErrNotExist) // most devices have none
			if a == "" || l.seen[a] {
				continue
			}
			l.seen[a] = true
			fresh++
			if err := l.Load(a); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return fresh, errors.Join(errs...)
}

func finit(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", filepath.Base(file), err)
	}
	return nil
}
