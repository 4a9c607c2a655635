package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"bmc/internal/newc"
)

// pack returns the initrd.
func pack(t tree, modules []module, program []byte) ([]byte, error) {
	var out bytes.Buffer
	// One goroutine and a window that the kernel's decoder accepts: the bytes
	// depend on the content alone. The best level saves another 8 % and takes
	// three times as long, which nobody notices at boot.
	z, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
	if err != nil {
		return nil, err
	}
	a := &archive{w: newc.NewWriter(z), dirs: map[string]bool{}}
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "mnt", "sbin"} {
		a.dir(dir)
	}
	// The kernel opens it for init before anything is mounted.
	a.add(newc.Entry{Name: "dev/console", Mode: newc.ModeChar | 0o600, Major: 5, Minor: 1})
	a.add(newc.Entry{Name: "init", Mode: newc.ModeFile | 0o755, Data: program})
	a.add(newc.Entry{Name: "sbin/modprobe", Mode: newc.ModeSymlink | 0o777, Data: []byte("/init")})
	base := path.Join("lib/modules", t.release)
	dep, alias := indexes(modules)
	a.file(path.Join(base, "modules.dep"), dep)
	a.file(path.Join(base, "modules.alias"), alias)
	for _, m := range modules {
		data, err := os.ReadFile(filepath.Join(t.modules, m.file))
		if err != nil {
			return nil, err
		}
		a.file(path.Join(base, m.file), data)
	}
	if a.err == nil {
		a.err = a.w.Close()
	}
	if err := z.Close(); a.err == nil {
		a.err = err
	}
	if a.err != nil {
		return nil, fmt.Errorf("pack the initrd: %w", a.err)
	}
	// Loaders append the seed at the next multiple of four; the kernel skips zeros.
	out.Write(make([]byte, (4-out.Len()%4)%4))
	return out.Bytes(), nil
}

// archive adds parents before children and remembers the first error.
type archive struct {
	w    *newc.Writer
	dirs map[string]bool
	err  error
}

func (a *archive) add(e newc.Entry) {
	if a.err == nil {
		a.err = a.w.Write(e)
	}
}

func (a *archive) dir(name string) {
	if name == "." || a.dirs[name] {
		return
	}
	a.dir(path.Dir(name))
	a.dirs[name] = true
	a.add(newc.Entry{Name: name, Mode: newc.ModeDir | 0o755})
}

func (a *archive) file(name string, data []byte) {
	a.dir(path.Dir(name))
	a.add(newc.Entry{Name: name, Mode: newc.ModeFile | 0o644, Data: data})
}
