// Command ramdisk builds the system that servers boot into RAM: a kernel, Debian's as
// it is or the smaller one that `make kernel` has made of Debian's source, and an initrd
// with bmc-ramdisk as init and the kernel's drivers for disks and networks. The same
// inputs give the same bytes.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

// layout changes whenever this program packs the same inputs differently.
const layout = 2

type options struct {
	out, version, commit, pkg, own string
	check, list                    bool
}

// description is the manifest.json beside the outputs.
type description struct {
	Layout        int    `json:"layout"`
	KernelPackage string `json:"kernel_package"`
	KernelVersion string `json:"kernel_version"` // of the package
	KernelRelease string `json:"kernel_release"` // uname -r
	Version       string `json:"version"`        // of bmc-ramdisk
	Commit        string `json:"commit"`
	Inputs        string `json:"inputs_sha256"`
	KernelSHA256  string `json:"vmlinuz_sha256"`
	InitrdSHA256  string `json:"initrd_sha256"`
	Modules       int    `json:"modules"`
}

func main() {
	var o options
	flag.StringVar(&o.out, "out", "build/ramdisk", "folder for vmlinuz, initrd.img and manifest.json")
	flag.StringVar(&o.version, "version", "dev", "version stamp of bmc-ramdisk")
	flag.StringVar(&o.commit, "commit", "unknown", "commit stamp of bmc-ramdisk")
	flag.StringVar(&o.pkg, "kernel", "", "Debian package of the kernel (default: what linux-image-amd64 depends on, kept once downloaded)")
	flag.StringVar(&o.own, "own", "build/kernel", "folder of a kernel of our own, taken if it is there and -kernel is not given; empty: never")
	flag.BoolVar(&o.check, "check", false, "pack twice and compare")
	flag.BoolVar(&o.list, "list", false, "say what the ramdisk in -out holds, and how large it is")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := build
	if o.list {
		run = func(_ context.Context, o options) error { return list(os.Stdout, o.out) }
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "ramdisk:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, o options) error {
	cache := filepath.Join(o.out, "cache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	k, err := chooseKernel(ctx, cache, o)
	if err != nil {
		return err
	}
	program, err := buildInit(ctx, cache, o)
	if err != nil {
		return err
	}
	d := description{Layout: layout, KernelPackage: k.pkg, KernelVersion: k.version, KernelRelease: k.release, Version: o.version, Commit: o.commit}
	d.Inputs = digest(fmt.Appendf(nil, "%d %s %s %s %q", layout, k.pkg, k.version, k.stamp, wanted), program)
	if !o.check && upToDate(o.out, d) {
		fmt.Printf("ramdisk is up to date (kernel %s, bmc-ramdisk %s)\n", k.release, o.version)
		return nil
	}
	start := time.Now()
	tree, err := k.unpack(ctx, cache)
	if err != nil {
		return err
	}
	modules, missing, err := selectModules(tree.modules, k.older)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		fmt.Fprintln(os.Stderr, "ramdisk: that kernel has no driver", strings.Join(missing, ", ")+": left out")
	}
	image, err := pack(tree, modules, program)
	if err != nil {
		return err
	}
	if o.check {
		again, err := pack(tree, modules, program)
		if err != nil {
			return err
		}
		if !bytes.Equal(image, again) {
			return errors.New("packing twice gave different bytes")
		}
		fmt.Println("packing twice gave the same bytes")
	}
	kernel, err := os.ReadFile(tree.vmlinuz)
	if err != nil {
		return err
	}
	d.Modules, d.KernelSHA256, d.InitrdSHA256 = len(modules), digest(kernel), digest(image)
	if err := writeOutputs(o.out, kernel, image, d); err != nil {
		return err
	}
	fmt.Printf("ramdisk: vmlinuz %s %.1f MB, initrd.img %.1f MB with %d modules and bmc-ramdisk (%.1f MB unpacked), %.1f s\n",
		k.release, mb(len(kernel)), mb(len(image)), len(modules), mb(len(program)), time.Since(start).Seconds())
	return nil
}

// buildInit compiles bmc-ramdisk. Go's own cache makes the second time quick.
func buildInit(ctx context.Context, cache string, o options) ([]byte, error) {
	file, err := filepath.Abs(filepath.Join(cache, "init"))
	if err != nil {
		return nil, err
	}
	flags := fmt.Sprintf("-s -w -buildid= -X bmc/internal/version.Version=%s -X bmc/internal/version.Commit=%s", o.version, o.commit)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", file, "bmc/cmd/bmc-ramdisk")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("build bmc-ramdisk: %w", err)
	}
	return os.ReadFile(file)
}

func upToDate(out string, want description) bool {
	b, err := os.ReadFile(filepath.Join(out, "manifest.json"))
	if err != nil {
		return false
	}
	var have description
	if json.Unmarshal(b, &have) != nil || have.Inputs != want.Inputs {
		return false
	}
	for name, sum := range map[string]string{"vmlinuz": have.KernelSHA256, "initrd.img": have.InitrdSHA256} {
		content, err := os.ReadFile(filepath.Join(out, name))
		if err != nil || digest(content) != sum {
			return false
		}
	}
	return true
}

// writeOutputs replaces files whole: an agent may be serving the old ones. The
// manifest comes last, since it vouches for the others.
func writeOutputs(out string, kernel, image []byte, d description) error {
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{"vmlinuz", kernel}, {"initrd.img", image}, {"manifest.json", append(text, '\n')}} {
		file := filepath.Join(out, f.name)
		if err := os.WriteFile(file+".tmp", f.data, 0o644); err != nil {
			return err
		}
		if err := os.Rename(file+".tmp", file); err != nil {
			return err
		}
	}
	return nil
}

func digest(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func mb(n int) float64 { return float64(n) / 1e6 }

func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}
