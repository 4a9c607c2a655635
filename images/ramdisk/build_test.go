package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func fakeTree(t *testing.T) (tree, []module) {
	t.Helper()
	modules := []module{
		{file: "kernel/drivers/net/virtio_net.ko", depends: []string{"kernel/drivers/virtio/virtio.ko"}, aliases: []string{"virtio:d00000001v*"}},
		{file: "kernel/drivers/virtio/virtio.ko"},
	}
	tr := tree{modules: t.TempDir(), release: "6.1.0-1-amd64"}
	for _, m := range modules {
		file := filepath.Join(tr.modules, m.file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, bytes.Repeat([]byte(m.file), 1000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return tr, modules
}

func TestPackIsReproducible(t *testing.T) {
	tr, modules := fakeTree(t)
	program := bytes.Repeat([]byte("\x7fELF program "), 100_000)
	one, err := pack(tr, modules, program)
	if err != nil {
		t.Fatal(err)
	}
	two, err := pack(tr, modules, program)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) || len(one)%4 != 0 {
		t.Fatal("two packs differ, or are not aligned")
	}
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	archive, err := z.DecodeAll(bytes.TrimRight(one, "\x00"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"init\x00", "sbin/modprobe\x00", "dev/console\x00", "lib/modules/6.1.0-1-amd64/kernel/drivers/net\x00",
		"alias virtio:d00000001v* virtio_net\n", "kernel/drivers/net/virtio_net.ko: kernel/drivers/virtio/virtio.ko\n", "TRAILER!!!",
	} {
		if !bytes.Contains(archive, []byte(want)) {
			t.Errorf("%q is missing", want)
		}
	}
}

// Everything that is packed is listed.
func TestList(t *testing.T) {
	tr, modules := fakeTree(t)
	program := bytes.Repeat([]byte("program "), 1000)
	image, err := pack(tr, modules, program)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := contents(image)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"init: bmc-ramdisk, static": len(program), "modules: networks": 1000 * len(modules[0].file), "modules: buses, checksums and the rest": 1000 * len(modules[1].file)}
	for _, g := range groups {
		if size, ok := want[g.name]; ok && (size != g.size || g.files != 1 || g.packed == 0) {
			t.Errorf("%+v, want %d bytes", g, size)
		}
		delete(want, g.name)
	}
	if len(want) > 0 || len(groups) != 4 {
		t.Errorf("%v are missing in %+v", want, groups)
	}
	if _, err := contents(image[:len(image)/2]); err == nil {
		t.Error("half an initrd is listed")
	}
}

// A kernel of our own that was made before a driver was wanted is packed without it,
// and the driver is named; any other kernel must have them all.
func TestOlderKernel(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	has := strings.Join(wanted[1:], ".ko\n") + ".ko\n"
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(has), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, missing, err := selectModules(dir, true); err != nil || len(missing) != 1 || missing[0] != wanted[0] {
		t.Errorf("missing %v, %v", missing, err)
	}
	if _, _, err := selectModules(dir, false); err == nil || !strings.Contains(err.Error(), wanted[0]) {
		t.Errorf("a kernel without a driver was taken: %v", err)
	}
}

func TestCachedKernelIsTheNewest(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"linux-image-6.1.0-9-amd64_6.1.27-1_amd64.deb", "linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb", "linux-image-amd64_6.1.192-2_amd64.deb", "other.deb"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k, ok := cachedKernel(dir, "")
	if !ok || k.release != "6.1.0-56-amd64" || k.version != "6.1.192-2" || k.pkg != "linux-image-6.1.0-56-amd64" {
		t.Errorf("%+v", k)
	}
	if k, ok = cachedKernel(dir, "linux-image-6.1.0-9-amd64"); !ok || k.release != "6.1.0-9-amd64" {
		t.Errorf("%+v", k)
	}
	if _, ok = cachedKernel(dir, "linux-image-6.1.0-1-amd64"); ok {
		t.Error("found what is not there")
	}
}

// A kernel of our own is taken where it is, and no other is named.
func TestChooseKernel(t *testing.T) {
	cache, own := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(cache, "linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	choose := func(o options) string {
		t.Helper()
		k, err := chooseKernel(t.Context(), cache, o)
		if err != nil {
			return err.Error()
		}
		return k.release
	}
	if got := choose(options{own: own}); got != "6.1.0-56-amd64" {
		t.Errorf("nothing is built: %s", got)
	}
	manifest := filepath.Join(own, "kernel.json")
	if err := os.WriteFile(manifest, []byte(`{"package": "linux-source-6.1", "version": "6.1.192-2", "release": "6.1.192-bmc", "stamp": "1"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		o    options
		want string
	}{
		"built":          {options{own: own}, "6.1.192-bmc"},
		"not wanted":     {options{}, "6.1.0-56-amd64"},
		"Debian's named": {options{own: own, pkg: "linux-image-6.1.0-56-amd64"}, "6.1.0-56-amd64"},
	} {
		if got := choose(tt.o); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
	if err := os.WriteFile(manifest, []byte(`{}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := choose(options{own: own}); !strings.Contains(got, "make kernel") {
		t.Errorf("a broken description: %s", got)
	}
}

func TestWantedHasNoTwins(t *testing.T) {
	sorted := slices.Sorted(slices.Values(wanted))
	if len(slices.Compact(sorted)) != len(wanted) || strings.Contains(strings.Join(wanted, " "), "  ") {
		t.Error("a module is wanted twice")
	}
}
