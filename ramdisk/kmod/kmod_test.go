package kmod

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func testIndex(t *testing.T) *Index {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "modules.dep"), `# comment
kernel/virtio_ring.ko:
kernel/virtio.ko: kernel/virtio_ring.ko
kernel/net/virtio_net.ko: kernel/virtio.ko kernel/net/net_failover.ko
kernel/net/net_failover.ko: kernel/net/failover.ko
kernel/net/failover.ko:
kernel/virtio-rng.ko: kernel/virtio.ko
kernel/loop-a.ko: kernel/loop-b.ko
kernel/loop-b.ko: kernel/loop-a.ko
`)
	write(t, filepath.Join(dir, "modules.alias"), `alias virtio:d00000001v* virtio_net
alias virtio:d00000004v* virtio-rng
alias fs-ext4 loop_a
`)
	x, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestMatchAndOrder(t *testing.T) {
	x := testIndex(t)
	for want, module := range map[string]string{
		"virtio:d00000001v00001AF4": "virtio_net", "virtio-rng": "virtio_rng", "virtio_rng": "virtio_rng",
		"virtio:d00000004v1": "virtio_rng", "fs-ext4": "loop_a",
	} {
		if got := x.Match(want); !slices.Equal(got, []string{module}) {
			t.Errorf("%s: %v", want, got)
		}
	}
	if got := x.Match("pci:v1"); len(got) != 0 {
		t.Errorf("unknown modalias: %v", got)
	}
	var names []string
	for _, f := range x.Order("virtio_net") {
		names = append(names, Name(f))
	}
	if want := []string{"virtio_ring", "virtio", "failover", "net_failover", "virtio_net"}; !slices.Equal(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
	if got := x.Order("loop_a"); len(got) != 2 {
		t.Errorf("a cycle gives %v", got)
	}
}

func TestColdplugLoadsOnce(t *testing.T) {
	sys := t.TempDir()
	write(t, filepath.Join(sys, "bus/virtio/devices/virtio0/modalias"), "virtio:d00000001v1\n")
	write(t, filepath.Join(sys, "bus/pci/devices/other/modalias"), "pci:nothing\n")
	var loaded []string
	broken := errors.New("no such device")
	l := NewLoader(testIndex(t))
	l.insert = func(file string) error {
		loaded = append(loaded, Name(file))
		if Name(file) == "virtio_rng" {
			return broken
		}
		return nil
	}
	if n, err := l.Coldplug(sys); n != 2 || err != nil {
		t.Fatalf("first: %d, %v", n, err)
	}
	if n, err := l.Coldplug(sys); n != 0 || err != nil {
		t.Fatalf("second: %d, %v", n, err)
	}
	if len(loaded) != 5 || loaded[4] != "virtio_net" {
		t.Fatalf("loaded %v", loaded)
	}
	write(t, filepath.Join(sys, "bus/virtio/devices/virtio1/modalias"), "virtio:d00000004v1\n")
	if n, err := l.Coldplug(sys); n != 1 || !errors.Is(err, broken) {
		t.Fatalf("third: %d, %v", n, err)
	}
}

func TestGlob(t *testing.T) {
	for _, tt := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"*", "", true}, {"a*", "a/b", true}, {"a*c", "abbc", true}, {"a*c", "abb", false},
		{"a?c", "abc", true}, {"[a-c]x", "bx", true}, {"[a-c]x", "dx", false}, {"[-a]", "-", true},
		{"pci:v*d*bc01sc06i01*", "pci:v00008086d00002922sv1sd1bc01sc06i01", true}, {"[", "[", true}, {"*a*b", "xaxb", true},
	} {
		if got := Glob(tt.pattern, tt.s); got != tt.want {
			t.Errorf("%q %q: %v", tt.pattern, tt.s, got)
		}
	}
}

func FuzzGlob(f *testing.F) {
	f.Add("a*b[c-d]?", "aXbcd")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) < 200 && len(s) < 200 {
			Glob(pattern, s)
		}
		if !Glob("*", s) {
			t.Fatal("* does not match")
		}
	})
}
