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

// Loader inserts modules, each once.
type Loader struct {
	index  *Index
	insert func(file string) error
	tried  map[string]error
	seen   map[string]bool // modaliases looked up
}

// NewLoader loads the modules of an index into the running kernel.
func NewLoader(x *Index) *Loader {
	return &Loader{index: x, insert: finit, tried: map[string]error{}, seen: map[string]bool{}}
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

// Coldplug loads a driver for every device that the kernel has found so far
// and returns how many modaliases were new. Buses find devices behind them
// once their own driver is in: call it until it returns 0 for a while.
func (l *Loader) Coldplug(sysfs string) (fresh int, err error) {
	var errs []error
	walkErr := filepath.WalkDir(filepath.Join(sysfs, "devices"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "modalias" {
			return nil // devices come and go while we walk
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		a := strings.TrimSpace(string(b))
		if a == "" || l.seen[a] {
			return nil
		}
		l.seen[a] = true
		fresh++
		if err := l.Load(a); err != nil {
			errs = append(errs, err)
		}
		return nil
	})
	return fresh, errors.Join(append(errs, walkErr)...)
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
