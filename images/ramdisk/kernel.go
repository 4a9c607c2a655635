package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

// kernel is a Debian package in the cache, or one of our own: then stamp is of what
// it was made of, and dir has it unpacked.
type kernel struct {
	deb, pkg, version, release, dir, stamp string
	older                                  bool // than its configuration is now
}

// tree is an unpacked kernel.
type tree struct{ vmlinuz, modules, release string }

var debName = regexp.MustCompile(`^(linux-image-([0-9][0-9a-z.+-]*-amd64))_([^_]+)_amd64\.deb$`)

// chooseKernel takes our own kernel where there is one and no other is named.
func chooseKernel(ctx context.Context, cache string, o options) (kernel, error) {
	if o.pkg == "" && o.own != "" {
		if k, err := ownKernel(o.own); !errors.Is(err, fs.ErrNotExist) {
			return k, err
		}
	}
	return findKernel(ctx, cache, o.pkg)
}

//go:embed kernel/config
var ownConfig []byte

// ownKernel reads what kernel/build.sh has made, fs.ErrNotExist if it has not.
func ownKernel(dir string) (kernel, error) {
	text, err := os.ReadFile(filepath.Join(dir, "kernel.json"))
	if err != nil {
		return kernel{}, err
	}
	var d struct {
		Package string `json:"package"`
		Version string `json:"version"`
		Release string `json:"release"`
		Config  string `json:"config_sha256"`
		Stamp   string `json:"stamp"`
	}
	if err := json.Unmarshal(text, &d); err != nil || d.Package == "" || d.Release == "" || d.Stamp == "" {
		return kernel{}, fmt.Errorf("%s describes no kernel: make kernel (or remove it)", filepath.Join(dir, "kernel.json"))
	}
	older := d.Config != digest(ownConfig)
	if older {
		fmt.Fprintln(os.Stderr, "ramdisk: the kernel in", dir, "was made with another configuration: make kernel")
	}
	return kernel{pkg: d.Package, version: d.Version, release: d.Release, dir: dir, stamp: d.Stamp, older: older}, nil
}

// findKernel returns the named or the newest kernel in the cache, and
// downloads one when there is none. A newer one in the archive is fetched
// only when named or when the cache is empty, so that a build is repeatable.
func findKernel(ctx context.Context, cache, pkg string) (kernel, error) {
	if k, ok := cachedKernel(cache, pkg); ok {
		return k, nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return kernel{}, fmt.Errorf("the kernel comes from Debian and apt-get is missing; put a linux-image-*-amd64 .deb into %s", cache)
	}
	if pkg == "" {
		var err error
		if pkg, err = resolve(ctx, "linux-image-amd64"); err != nil {
			return kernel{}, err
		}
	}
	fmt.Printf("downloading %s (about 70 MB) with apt-get\n", pkg)
	cmd := exec.CommandContext(ctx, "apt-get", "download", "-q", pkg)
	cmd.Dir = cache
	if out, err := cmd.CombinedOutput(); err != nil {
		return kernel{}, fmt.Errorf("apt-get download %s: %w\n%s(are the package lists fresh? apt-get update)", pkg, err, out)
	}
	k, ok := cachedKernel(cache, pkg)
	if !ok {
		return kernel{}, fmt.Errorf("apt-get download %s left no package", pkg)
	}
	return k, nil
}

func cachedKernel(cache, pkg string) (kernel, bool) {
	debs, err := filepath.Glob(filepath.Join(cache, "linux-image-*_amd64.deb"))
	if err != nil {
		return kernel{}, false
	}
	sort.Slice(debs, func(i, j int) bool { return natural(debs[i]) < natural(debs[j]) })
	for i := len(debs) - 1; i >= 0; i-- {
		if m := debName.FindStringSubmatch(filepath.Base(debs[i])); m != nil && (pkg == "" || pkg == m[1]) {
			return kernel{deb: debs[i], pkg: m[1], release: m[2], version: m[3]}, true
		}
	}
	return kernel{}, false
}

var digits = regexp.MustCompile(`[0-9]+`)

// natural pads numbers, so that 6.1.0-9 sorts before 6.1.0-56.
func natural(s string) string {
	return digits.ReplaceAllStringFunc(s, func(n string) string { return fmt.Sprintf("%012s", n) })
}

// resolve follows a meta package to the kernel that it depends on.
func resolve(ctx context.Context, meta string) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--important", meta).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache depends %s: %w (are the package lists there? apt-get update)", meta, err)
	}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		if p, ok := strings.CutPrefix(strings.TrimSpace(s.Text()), "Depends: linux-image-"); ok {
			return "linux-image-" + p, nil
		}
	}
	return "", fmt.Errorf("%s depends on no kernel", meta)
}

// unpack extracts the package once.
func (k kernel) unpack(ctx context.Context, cache string) (tree, error) {
	dir := k.dir
	if dir == "" {
		dir = filepath.Join(cache, k.pkg+"_"+strings.NewReplacer("%", "", ":", "").Replace(k.version))
	}
	t := tree{
		vmlinuz: filepath.Join(dir, "boot", "vmlinuz-"+k.release),
		modules: filepath.Join(dir, "lib", "modules", k.release),
		release: k.release,
	}
	if exists(dir) {
		return t, nil
	}
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return tree{}, err
	}
	fmt.Printf("unpacking %s\n", filepath.Base(k.deb))
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", k.deb, tmp).CombinedOutput(); err != nil {
		return tree{}, fmt.Errorf("dpkg-deb -x: %w\n%s", err, out)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return tree{}, err
	}
	if !exists(t.vmlinuz) || !exists(t.modules) {
		return tree{}, fmt.Errorf("%s holds no kernel %s", filepath.Base(k.deb), k.release)
	}
	return t, nil
}
