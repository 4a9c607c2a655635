// Package kmod loads the kernel's modules: a modprobe small enough for an
// initramfs, over the modules.dep and modules.alias that images/ramdisk writes.
package kmod

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Index knows the modules of one kernel.
type Index struct {
	dir     string
	deps    map[string][]string // module name -> names to load before, in order
	files   map[string]string   // module name -> file, relative to dir
	exact   map[string][]string // aliases without wildcards
	aliases map[string][]alias  // the others, by what comes before the first wildcard
	lengths []int               // of those beginnings
}

type alias struct{ pattern, module string }

// Open reads the index files in dir, usually /lib/modules/<release>.
func Open(dir string) (*Index, error) {
	x := &Index{dir: dir, deps: map[string][]string{}, files: map[string]string{}, exact: map[string][]string{}, aliases: map[string][]alias{}}
	err := eachLine(filepath.Join(dir, "modules.dep"), func(line string) {
		file, deps, ok := strings.Cut(line, ":")
		if !ok {
			return
		}
		name := Name(file)
		x.files[name] = file
		for _, d := range strings.Fields(deps) {
			x.deps[name] = append(x.deps[name], Name(d))
		}
	})
	if err != nil {
		return nil, err
	}
	err = eachLine(filepath.Join(dir, "modules.alias"), func(line string) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "alias" {
			return
		}
		if pattern := f[1]; strings.ContainsAny(pattern, "*?[") {
			begin := pattern[:strings.IndexAny(pattern, "*?[")]
			x.aliases[begin] = append(x.aliases[begin], alias{pattern, Name(f[2])})
			if !slices.Contains(x.lengths, len(begin)) {
				x.lengths = append(x.lengths, len(begin))
			}
		} else {
			pattern = canonical(pattern)
			x.exact[pattern] = append(x.exact[pattern], Name(f[2]))
		}
	})
	return x, err
}

// Name returns a module's name for its file: the kernel writes '_' for '-'.
func Name(file string) string {
	return canonical(strings.TrimSuffix(filepath.Base(file), ".ko"))
}

func canonical(s string) string { return strings.ReplaceAll(s, "-", "_") }

// Match returns the modules for a modalias or a name, without dependencies.
func (x *Index) Match(want string) []string {
	name := canonical(want)
	if _, ok := x.files[name]; ok {
		return []string{name}
	}
	modules := append([]string(nil), x.exact[name]...)
	for _, n := range x.lengths {
		if n > len(want) {
			continue
		}
		for _, a := range x.aliases[want[:n]] {
			if Glob(a.pattern, want) {
				modules = append(modules, a.module)
			}
		}
	}
	return modules
}

// Order returns the files to load for a module, dependencies first.
func (x *Index) Order(module string) []string {
	var files []string
	seen := map[string]bool{}
	var visit func(string)
	visit = func(m string) {
		if seen[m] {
			return
		}
		seen[m] = true
		for _, d := range x.deps[m] {
			visit(d)
		}
		if f, ok := x.files[m]; ok {
			files = append(files, filepath.Join(x.dir, f))
		}
	}
	visit(module)
	return files
}

func eachLine(file string, f func(string)) error {
	in, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("module index: %w", err)
	}
	defer in.Close()
	s := bufio.NewScanner(in)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if line := strings.TrimSpace(s.Text()); line != "" && line[0] != '#' {
			f(line)
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("module index %s: %w", file, err)
	}
	return nil
}

// Glob matches like fnmatch(3) without flags: '*' crosses slashes. Modaliases
// hold '*', '?' and character ranges.
func Glob(pattern, s string) bool {
	// Greedy with one point to return to: linear in practice, never exponential.
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		if p < len(pattern) {
			if pattern[p] == '*' {
				star, mark = p, i
				p++
				continue
			}
			if n, ok := matchOne(pattern[p:], s[i]); ok {
				p += n
				i++
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchOne matches one character and says how much of the pattern that took.
func matchOne(pattern string, c byte) (int, bool) {
	switch pattern[0] {
	case '?':
		return 1, true
	case '[':
		end := strings.IndexByte(pattern, ']')
		if end < 2 {
			return 1, c == '['
		}
		set := pattern[1:end]
		for j := 0; j < len(set); j++ {
			if j+2 < len(set) && set[j+1] == '-' {
				if set[j] <= c && c <= set[j+2] {
					return end + 1, true
				}
				j += 2
			} else if set[j] == c {
				return end + 1, true
			}
		}
		return end + 1, false
	}
	return 1, pattern[0] == c
}
