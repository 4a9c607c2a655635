package manifest_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"bmc/internal/manifest"
	"bmc/metal"
)

// spec is a valid description of an image with small chunks.
func spec() manifest.Spec {
	return manifest.Spec{
		Name: "debian-12", OS: "Debian 12", User: "debian", RootPartition: 3,
		Kernel: "/boot/vmlinuz-6.1.0-1-amd64", Initrd: "/boot/initrd.img-6.1.0-1-amd64", Cmdline: "root=LABEL=root console=ttyS0,115200",
		Firmware: []string{"uefi", "bios"}, Configure: "files", Network: "systemd-networkd", ChunkSize: manifest.MinChunkSize,
	}.WithDefaults()
}

// disk is an image with data, text, holes and a short last chunk.
func disk() []byte {
	const c = manifest.MinChunkSize
	d := make([]byte, 9*c+1024)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(d[0:c])
	copy(d[3*c:], strings.Repeat("compressible ", 10000))
	d[6*c+c-1] = 1
	_, _ = r.Read(d[9*c:])
	return d
}

func build(t testing.TB, d []byte) (*manifest.Manifest, map[manifest.Digest][]byte) {
	t.Helper()
	frames := map[manifest.Digest][]byte{}
	last := int64(-1)
	m, err := manifest.Build(context.Background(), bytes.NewReader(d), int64(len(d)), spec(), func(f manifest.ChunkFrame) error {
		if f.Offset <= last {
			t.Errorf("frame for offset %d after %d", f.Offset, last)
		}
		last = f.Offset
		frames[f.StoredSHA256] = f.Data
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, frames
}

func TestBuildThenDecodeGivesTheDiskBack(t *testing.T) {
	d := disk()
	m, frames := build(t, d)
	got := make([]byte, len(d))
	for _, c := range m.Chunks {
		raw, err := manifest.DecodeChunk(c, frames[c.StoredSHA256], nil)
		if err != nil {
			t.Fatal(err)
		}
		copy(got[c.Offset:], raw)
	}
	if !bytes.Equal(got, d) {
		t.Fatal("the disk differs")
	}
	if len(m.Chunks) != 5 {
		t.Errorf("%d chunks, want 5: holes must be left out", len(m.Chunks))
	}
	if last := m.Chunks[len(m.Chunks)-1]; last.Size != 1024 {
		t.Errorf("last chunk has %d bytes, want 1024", last.Size)
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	a, fa := build(t, disk())
	b, fb := build(t, disk())
	if a.ID() != b.ID() {
		t.Fatal("two builds of one image differ")
	}
	for d, frame := range fa {
		if !bytes.Equal(frame, fb[d]) {
			t.Fatal("two frames of one chunk differ")
		}
	}
}

func TestBuildStopsOnErrors(t *testing.T) {
	d := disk()
	boom := errors.New("boom")
	_, err := manifest.Build(context.Background(), bytes.NewReader(d), int64(len(d)), spec(), func(manifest.ChunkFrame) error { return boom })
	if !errors.Is(err, boom) {
		t.Errorf("emit's error is lost: %v", err)
	}
	if _, err = manifest.Build(context.Background(), bytes.NewReader(d[:1024]), int64(len(d)), spec(), nil); err == nil {
		t.Error("a short image was accepted")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err = manifest.Build(ctx, bytes.NewReader(d), int64(len(d)), spec(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err = manifest.Build(context.Background(), bytes.NewReader(d), 1000, spec(), nil); metal.CodeOf(err) != metal.CodeInvalid {
		t.Errorf("half a sector: %v", err)
	}
}

func TestParseTakesOnlyCanonicalJSON(t *testing.T) {
	m, _ := build(t, disk())
	data := m.Canonical()
	p, err := manifest.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if p.ID() != m.ID() || !p.BootsBy("uefi") || p.BootsBy("http") {
		t.Error("parsed manifest differs")
	}
	for name, bad := range map[string]string{
		"space":         " " + string(data),
		"newline":       string(data) + "\n",
		"trailing":      string(data) + "{}",
		"unknown key":   strings.Replace(string(data), `{"version":1,`, `{"version":1,"x":1,`, 1),
		"repeated key":  strings.Replace(string(data), `{"version":1,`, `{"version":1,"version":1,`, 1),
		"other case":    strings.Replace(string(data), `"name"`, `"Name"`, 1),
		"upper digest":  strings.ToUpper(string(data)),
		"no chunks":     strings.Replace(string(data), `"chunks":[`, `"chunks":null,"c":[`, 1),
		"other version": strings.Replace(string(data), `{"version":1,`, `{"version":2,`, 1),
		"empty":         "",
		"too long":      strings.Repeat(" ", manifest.MaxBytes+1),
	} {
		if _, err := manifest.Parse([]byte(bad)); metal.CodeOf(err) != metal.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	const size = manifest.MinChunkSize
	for name, spoil := range map[string]func(*manifest.Manifest){
		"name":               func(m *manifest.Manifest) { m.Name = "Debian_12" },
		"os":                 func(m *manifest.Manifest) { m.OS = "x\x1b[31m" },
		"arch":               func(m *manifest.Manifest) { m.Arch = "vax" },
		"user":               func(m *manifest.Manifest) { m.User = "../root" },
		"no user":            func(m *manifest.Manifest) { m.User = "" },
		"sector size":        func(m *manifest.Manifest) { m.SectorSize = 0 },
		"root partition":     func(m *manifest.Manifest) { m.RootPartition = 129 },
		"no root partition":  func(m *manifest.Manifest) { m.RootPartition = 0 },
		"filesystem":         func(m *manifest.Manifest) { m.Filesystem = "xfs" },
		"no filesystem":      func(m *manifest.Manifest) { m.Filesystem = "" },
		"relative kernel":    func(m *manifest.Manifest) { m.Kernel = "boot/vmlinuz" },
		"unclean kernel":     func(m *manifest.Manifest) { m.Kernel = "/boot/../../etc/shadow" },
		"initrd alone":       func(m *manifest.Manifest) { m.Kernel = "" },
		"cmdline":            func(m *manifest.Manifest) { m.Cmdline = "quiet\ninit=/bin/sh" },
		"long cmdline":       func(m *manifest.Manifest) { m.Cmdline = strings.Repeat("a", 1025) },
		"no firmware":        func(m *manifest.Manifest) { m.Firmware = nil },
		"firmware":           func(m *manifest.Manifest) { m.Firmware = []string{"coreboot"} },
		"unsorted firmware":  func(m *manifest.Manifest) { m.Firmware = []string{"uefi", "bios"} },
		"loader without":     func(m *manifest.Manifest) { m.Firmware = []string{"bios"} },
		"loader path":        func(m *manifest.Manifest) { m.BootLoader = `\EFI\..\X.EFI` },
		"configure":          func(m *manifest.Manifest) { m.Configure = "magic" },
		"ready unconfigured": func(m *manifest.Manifest) { m.Configure = "none" },
		"network":            func(m *manifest.Manifest) { m.Network = "dhcp" },
		"ready":              func(m *manifest.Manifest) { m.Ready = "soon" },
		"chunk size":         func(m *manifest.Manifest) { m.ChunkSize = size + 512 },
		"disk size":          func(m *manifest.Manifest) { m.SizeBytes = manifest.MaxImageBytes + 512 },
		"negative size":      func(m *manifest.Manifest) { m.SizeBytes = -512 },
		"half sector":        func(m *manifest.Manifest) { m.SizeBytes++ },
		"unaligned chunk":    func(m *manifest.Manifest) { m.Chunks[0].Offset = 512 },
		"negative offset":    func(m *manifest.Manifest) { m.Chunks[0].Offset = -size },
		"chunk past the end": func(m *manifest.Manifest) { m.Chunks[4].Offset = 100 * size },
		"overlap":            func(m *manifest.Manifest) { m.Chunks[1].Offset = m.Chunks[0].Offset },
		"unsorted":           func(m *manifest.Manifest) { m.Chunks[0], m.Chunks[1] = m.Chunks[1], m.Chunks[0] },
		"short chunk":        func(m *manifest.Manifest) { m.Chunks[0].Size = 512 },
		"long chunk":         func(m *manifest.Manifest) { m.Chunks[0].Size = 2 * size },
		"stored nothing":     func(m *manifest.Manifest) { m.Chunks[0].StoredSize = 0 },
		"stored too much":    func(m *manifest.Manifest) { m.Chunks[0].StoredSize = 3 * size },
		"too many chunks":    func(m *manifest.Manifest) { m.Chunks = make([]manifest.Chunk, manifest.MaxChunks+1) },
	} {
		m, _ := build(t, disk())
		spoil(m)
		if err := m.Validate(); metal.CodeOf(err) != metal.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := manifest.Parse(m.Canonical()); err == nil {
			t.Errorf("%s: Parse took it", name)
		}
	}
}

func TestDecodeChunkRefuses(t *testing.T) {
	m, frames := build(t, disk())
	c := m.Chunks[1]
	frame := frames[c.StoredSHA256]
	reseal := func(c manifest.Chunk, data []byte) manifest.Chunk {
		c.StoredSize, c.StoredSHA256 = int64(len(data)), manifest.Sum(data)
		return c
	}
	flipped := bytes.Clone(frame)
	flipped[len(flipped)/2] ^= 1
	small := c
	small.Size = c.Size / 2
	large := c
	large.Size = c.Size * 2
	other := c
	other.SHA256[0] ^= 1
	huge := c
	huge.Size = manifest.MaxChunkSize + 1
	for name, bad := range map[string]struct {
		c    manifest.Chunk
		data []byte
	}{
		"flipped bit":        {c, flipped},
		"truncated":          {c, frame[:len(frame)-1]},
		"not zstd":           {reseal(c, []byte("plain")), []byte("plain")},
		"bomb":               {small, frame},
		"short":              {large, frame},
		"other content":      {other, frame},
		"out of bounds":      {huge, frame},
		"two frames":         {reseal(c, append(bytes.Clone(frame), frame...)), append(bytes.Clone(frame), frame...)},
		"nothing, nicely so": {reseal(c, nil), nil},
	} {
		if _, err := manifest.DecodeChunk(bad.c, bad.data, nil); metal.CodeOf(err) != metal.CodeCorruptChunk {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecodeChunkUsesTheBuffer(t *testing.T) {
	m, frames := build(t, disk())
	buf := make([]byte, manifest.MinChunkSize)
	raw, err := manifest.DecodeChunk(m.Chunks[0], frames[m.Chunks[0].StoredSHA256], buf)
	if err != nil {
		t.Fatal(err)
	}
	if &raw[0] != &buf[0] {
		t.Error("the buffer was not used")
	}
}

func TestDigest(t *testing.T) {
	d := manifest.Sum([]byte("x"))
	if p, err := manifest.ParseDigest(d.String()); err != nil || p != d {
		t.Error(p, err)
	}
	if p, err := manifest.DigestFromBytes(d[:]); err != nil || p != d {
		t.Error(p, err)
	}
	for _, bad := range []string{"", "ab", strings.ToUpper(d.String()), strings.Repeat("g", 64), d.String() + "0"} {
		if _, err := manifest.ParseDigest(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if _, err := manifest.DigestFromBytes(d[1:]); err == nil {
		t.Error("31 bytes were accepted")
	}
}
