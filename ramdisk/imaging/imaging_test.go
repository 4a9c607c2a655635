package imaging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/manifest"
	"bmc/metal"
	"bmc/ramdisk/block"
)

const chunk = 64 << 10

// sample is an image of data, a hole, data and a short last chunk.
func sample(t *testing.T) (raw []byte, m *manifest.Manifest, frames map[string][]byte) {
	t.Helper()
	raw = make([]byte, 9*chunk+512*3)
	r := rand.New(rand.NewSource(1))
	for _, at := range []int{0, 1, 5, 9} {
		r.Read(raw[at*chunk : min((at+1)*chunk, len(raw))])
	}
	if raw, m, frames = build(t, raw); len(m.Chunks) != 4 {
		t.Fatalf("%d chunks", len(m.Chunks))
	}
	return raw, m, frames
}

// build makes an image of a disk's bytes.
func build(t *testing.T, raw []byte) (_ []byte, m *manifest.Manifest, frames map[string][]byte) {
	t.Helper()
	frames = map[string][]byte{}
	spec := manifest.Spec{Name: "debian", OS: "Debian 12", Firmware: []string{"bios"}, ChunkSize: chunk}.WithDefaults()
	m, err := manifest.Build(t.Context(), bytes.NewReader(raw), int64(len(raw)), spec, func(f manifest.ChunkFrame) error {
		frames[f.StoredSHA256.String()] = f.Data
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw, m, frames
}

// dirtyDisk is a file that still holds another tenant's bytes.
func dirtyDisk(t *testing.T, size int) (*block.File, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, bytes.Repeat([]byte{0xa5}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := block.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, file
}

// serve answers chunks; wrap may spoil them.
func serve(t *testing.T, frames map[string][]byte, wrap func(w http.ResponseWriter, r *http.Request, frame []byte)) *Fetcher {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		frame, ok := frames[path.Base(r.URL.Path)]
		if !ok || r.URL.Query().Get("sig") != "s3cret" || r.URL.Query().Get("op") != "a/b" {
			http.Error(w, "no", http.StatusNotFound)
			return
		}
		wrap(w, r, frame)
	}))
	t.Cleanup(srv.Close)
	f, err := NewFetcher(srv.URL+"/images/chunks/%s?op=a%%2Fb&sig=s3cret", 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func content(w http.ResponseWriter, r *http.Request, frame []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(frame))
}

func TestWriteReplacesEverything(t *testing.T) {
	raw, m, frames := sample(t)
	d, file := dirtyDisk(t, len(raw)+chunk)
	var last, total atomic.Int64
	got, err := Write(t.Context(), d, m, serve(t, frames, content), Options{Progress: func(a, b int64, _ string) {
		last.Store(max(last.Load(), a))
		total.Store(b)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Written != m.DataBytes() || got.Verified != m.SizeBytes || last.Load() != total.Load() {
		t.Errorf("%+v, progress %d of %d", got, last.Load(), total.Load())
	}
	disk, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(disk[:len(raw)], raw) {
		t.Error("the disk differs from the image")
	}
	if !bytes.Equal(disk[len(raw):], bytes.Repeat([]byte{0xa5}, chunk)) {
		t.Error("bytes beyond the image were touched")
	}
}

func TestBrokenConnectionGoesOn(t *testing.T) {
	raw, m, frames := sample(t)
	d, file := dirtyDisk(t, len(raw))
	var ranges, breaks atomic.Int32
	f := serve(t, frames, func(w http.ResponseWriter, r *http.Request, frame []byte) {
		if r.Header.Get("Range") != "" {
			ranges.Add(1)
		}
		if breaks.Add(1) <= 6 {
			w.Header().Set("Content-Length", fmt.Sprint(len(frame)))
			_, _ = w.Write(frame[:1000])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		content(w, r, frame)
	})
	if _, err := Write(t.Context(), d, m, f, Options{}); err != nil {
		t.Fatal(err)
	}
	if ranges.Load() == 0 {
		t.Error("every chunk began again")
	}
	if disk, err := os.ReadFile(file); err != nil || !bytes.Equal(disk, raw) {
		t.Error("the disk differs from the image")
	}
}

// What an agent's disk has spoilt is verified there again once the machine says so.
func TestDamagedAtTheAgent(t *testing.T) {
	raw, m, frames := sample(t)
	for name, spoilt := range map[string]func(w http.ResponseWriter, r *http.Request, frame []byte){
		"flipped": func(w http.ResponseWriter, r *http.Request, frame []byte) {
			bad := bytes.Clone(frame)
			bad[len(bad)/2] ^= 1
			content(w, r, bad)
		},
		"cut": func(w http.ResponseWriter, r *http.Request, frame []byte) { content(w, r, frame[:len(frame)/2]) },
		"unreadable": func(w http.ResponseWriter, _ *http.Request, frame []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(frame)))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, file := dirtyDisk(t, len(raw))
			var good sync.Map
			f := serve(t, frames, func(w http.ResponseWriter, r *http.Request, frame []byte) {
				if r.Header.Get("Cache-Control") == "no-cache" {
					good.Store(r.URL.Path, true)
				}
				if _, ok := good.Load(r.URL.Path); !ok {
					spoilt(w, r, frame)
					return
				}
				content(w, r, frame)
			})
			if _, err := Write(t.Context(), d, m, f, Options{}); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, raw) {
				t.Errorf("the disk is not the image: %v", err)
			}
		})
	}
}

// That it came damaged is said until it is heard: a connection that breaks before there is
// an answer changes nothing.
func TestDoubtOutlastsALostConnection(t *testing.T) {
	_, m, frames := sample(t)
	var said []string
	f := serve(t, frames, func(w http.ResponseWriter, r *http.Request, frame []byte) {
		if said = append(said, r.Header.Get("Cache-Control")); len(said) == 1 {
			panic(http.ErrAbortHandler)
		}
		content(w, r, frame)
	})
	if _, err := f.stored(t.Context(), m.Chunks[0], make([]byte, 2*chunk), true); err != nil {
		t.Fatal(err)
	}
	if want := []string{"no-cache", "no-cache"}; !slices.Equal(said, want) {
		t.Errorf("said %q", said)
	}
}

// A chunk that waits for its turn, while others come, is not given up.
func TestSlowIsNotSilent(t *testing.T) {
	_, m, frames := sample(t)
	var f *Fetcher
	var asked atomic.Int32
	f = serve(t, frames, func(w http.ResponseWriter, r *http.Request, frame []byte) {
		if asked.Add(1) < 5 {
			f.hears() // of another chunk
			panic(http.ErrAbortHandler)
		}
		content(w, r, frame)
	})
	f.silent = 250 * time.Millisecond // three tries take longer
	if _, err := f.stored(t.Context(), m.Chunks[0], make([]byte, 2*chunk), false); err != nil {
		t.Error(err)
	}
}

// A store that is down for a while is waited for, and the wait is told with the agent's
// own words.
func TestWaitsForTheStore(t *testing.T) {
	raw, m, frames := sample(t)
	d, file := dirtyDisk(t, len(raw))
	var up atomic.Bool
	f := serve(t, frames, func(w http.ResponseWriter, r *http.Request, frame []byte) {
		if !up.Load() {
			http.Error(w, "the image store does not answer", http.StatusBadGateway)
			return
		}
		content(w, r, frame)
	})
	f.quiet = time.Millisecond
	if _, err := Write(t.Context(), d, m, f, Options{Progress: func(done, _ int64, message string) {
		if message == "waiting for the image: the image store does not answer" {
			up.Store(true)
		}
	}}); err != nil {
		t.Fatal(err)
	}
	if !up.Load() {
		t.Error("nobody was told")
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("the disk is not the image: %v", err)
	}
}

func TestFetchFailures(t *testing.T) {
	_, m, frames := sample(t)
	for _, tt := range []struct {
		name string
		code metal.Code
		wrap func(w http.ResponseWriter, r *http.Request, frame []byte)
	}{
		{"one bit", metal.CodeCorruptChunk, func(w http.ResponseWriter, r *http.Request, frame []byte) {
			frame = bytes.Clone(frame)
			frame[len(frame)/2] ^= 1
			content(w, r, frame)
		}},
		{"missing", metal.CodeImageUnavailable, func(w http.ResponseWriter, r *http.Request, _ []byte) { http.NotFound(w, r) }},
		{"forbidden", metal.CodeImageUnavailable, func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusForbidden) }},
		{"too long", metal.CodeImageUnavailable, func(w http.ResponseWriter, r *http.Request, frame []byte) {
			content(w, r, append(bytes.Clone(frame), 0))
		}},
		{"too short", metal.CodeCorruptChunk, func(w http.ResponseWriter, r *http.Request, frame []byte) {
			content(w, r, frame[:len(frame)-1])
		}},
		{"corrupt in the store", metal.CodeCorruptChunk, func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.Header().Set("Bmc-Reason", string(metal.CodeCorruptChunk))
			w.WriteHeader(http.StatusBadGateway)
		}},
		{"broken for good", metal.CodeImageUnavailable, func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusBadGateway) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := dirtyDisk(t, int(m.SizeBytes))
			f := serve(t, frames, tt.wrap)
			f.silent = 300 * time.Millisecond
			_, err := Write(t.Context(), d, m, f, Options{})
			if metal.CodeOf(err) != tt.code {
				t.Fatalf("got %v, want %s", err, tt.code)
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error tells the URL's credential: %v", err)
			}
		})
	}
}

// lying is a disk with faults.
type lying struct {
	block.Device
	dropAt   int64 // a write here is lost
	stuckAt  int64 // zeros never reach it
	failSync bool
}

func (l *lying) WriteAt(p []byte, off int64) (int, error) {
	if off == l.dropAt {
		return len(p), nil
	}
	return l.Device.WriteAt(p, off)
}

func (l *lying) ZeroOut(off, n int64) error {
	if off == l.stuckAt {
		return nil
	}
	return l.Device.ZeroOut(off, n)
}

func (l *lying) Sync() error {
	if l.failSync {
		return errors.New("input/output error")
	}
	return l.Device.Sync()
}

func TestDiskFaultsAreFound(t *testing.T) {
	_, m, frames := sample(t)
	for _, tt := range []struct {
		name string
		disk lying
		code metal.Code
	}{
		{"lost write", lying{dropAt: 5 * chunk, stuckAt: -1}, metal.CodeVerifyFailed},
		{"hole that stays dirty", lying{dropAt: -1, stuckAt: 3 * chunk}, metal.CodeVerifyFailed},
		{"flush fails", lying{dropAt: -1, stuckAt: -1, failSync: true}, metal.CodeWriteFailed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := dirtyDisk(t, int(m.SizeBytes))
			tt.disk.Device = d
			if _, err := Write(t.Context(), &tt.disk, m, serve(t, frames, content), Options{}); metal.CodeOf(err) != tt.code {
				t.Fatalf("got %v, want %s", err, tt.code)
			}
		})
	}
}

func TestSmallDiskIsNotTouched(t *testing.T) {
	raw, m, frames := sample(t)
	d, file := dirtyDisk(t, len(raw)-512)
	if _, err := Write(t.Context(), d, m, serve(t, frames, content), Options{}); metal.CodeOf(err) != metal.CodeImageTooLarge {
		t.Fatal(err)
	}
	if disk, err := os.ReadFile(file); err != nil || !bytes.Equal(disk, bytes.Repeat([]byte{0xa5}, len(raw)-512)) {
		t.Error("the disk was written")
	}
}

func TestCancel(t *testing.T) {
	_, m, frames := sample(t)
	d, _ := dirtyDisk(t, int(m.SizeBytes))
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	f := serve(t, frames, func(http.ResponseWriter, *http.Request, []byte) { cancel(stop); panic(http.ErrAbortHandler) })
	if _, err := Write(ctx, d, m, f, Options{}); !errors.Is(err, stop) {
		t.Fatal(err)
	}
}

func TestAccept(t *testing.T) {
	_, m, _ := sample(t)
	key, err := manifest.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := manifest.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	data, sig := m.Canonical(), m.Sign(key)
	trusted := []string{manifest.PublicKey(key)}
	for _, tt := range []struct {
		name           string
		data           []byte
		trusted        []string
		firmware, arch string
		code           metal.Code
	}{
		{"good", data, trusted, "bios", "x86_64", ""},
		{"another key", data, []string{manifest.PublicKey(other)}, "bios", "x86_64", metal.CodeSignature},
		{"no key", data, nil, "bios", "x86_64", metal.CodeSignature},
		{"changed", bytes.Replace(data, []byte("debian"), []byte("debiam"), 1), trusted, "bios", "x86_64", metal.CodeSignature},
		{"firmware", data, trusted, "uefi", "x86_64", metal.CodeFirmwareUnfit},
		{"architecture", data, trusted, "bios", "aarch64", metal.CodeFirmwareUnfit},
	} {
		if _, err := Accept(tt.data, sig, tt.trusted, tt.firmware, tt.arch); metal.CodeOf(err) != tt.code {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestChoose(t *testing.T) {
	gib := func(n uint64) uint64 { return n << 30 }
	hdd := &agentv1.Disk{Name: "sda", SizeBytes: gib(10), Kind: "hdd", SectorSize: 512, Serial: "H1"}
	big := &agentv1.Disk{Name: "nvme0n1", SizeBytes: gib(100), Kind: "nvme", SectorSize: 512, Wwn: "eui.1"}
	small := &agentv1.Disk{Name: "sdb", SizeBytes: gib(20), Kind: "ssd", SectorSize: 512}
	tiny := &agentv1.Disk{Name: "vda", SizeBytes: gib(1), Kind: "virtual", SectorSize: 512}
	stick := &agentv1.Disk{Name: "sdc", SizeBytes: gib(8), Kind: "ssd", SectorSize: 512, Removable: true}
	native := &agentv1.Disk{Name: "nvme1n1", SizeBytes: gib(50), Kind: "nvme", SectorSize: 4096}
	twin := &agentv1.Disk{Name: "sdd", SizeBytes: gib(10), Kind: "hdd", SectorSize: 512, Serial: "H1"}
	m := &manifest.Manifest{Spec: manifest.Spec{Name: "debian", SectorSize: 512}, SizeBytes: 5 << 30}
	for _, tt := range []struct {
		name  string
		disks []*agentv1.Disk
		hint  string
		want  string
		code  metal.Code
	}{
		{"smallest solid state", []*agentv1.Disk{hdd, big, small, tiny, stick, native}, "", "sdb", ""},
		{"rotating when nothing else fits", []*agentv1.Disk{hdd, tiny, stick}, "", "sda", ""},
		{"hint by WWN", []*agentv1.Disk{hdd, big, small}, "eui.1", "nvme0n1", ""},
		{"hint by path", []*agentv1.Disk{hdd, big, small}, "/dev/sda", "sda", ""},
		{"hint wins over removable", []*agentv1.Disk{small, stick}, "sdc", "sdc", ""},
		{"hint names none", []*agentv1.Disk{small}, "eui.9", "", metal.CodeNoDisk},
		{"hint names two", []*agentv1.Disk{hdd, twin}, "H1", "", metal.CodeNoDisk},
		{"hint names a small one", []*agentv1.Disk{small, tiny}, "vda", "", metal.CodeImageTooLarge},
		{"removable only", []*agentv1.Disk{stick}, "", "", metal.CodeNoDisk},
		{"the same of equals, whatever their names", []*agentv1.Disk{{Name: "sda", SizeBytes: gib(20), Kind: "ssd", SectorSize: 512, Serial: "B"}, {Name: "sdb", SizeBytes: gib(20), Kind: "ssd", SectorSize: 512, Serial: "A"}}, "", "sdb", ""},
		{"no disk", nil, "", "", metal.CodeNoDisk},
		{"all too small", []*agentv1.Disk{tiny}, "", "", metal.CodeImageTooLarge},
		{"wrong sectors", []*agentv1.Disk{native}, "", "", metal.CodeNoDisk},
	} {
		d, err := Choose(tt.disks, m, tt.hint)
		if metal.CodeOf(err) != tt.code || d.GetName() != tt.want {
			t.Errorf("%s: %v, %v", tt.name, d, err)
		}
	}
}

// The agent that serves the chunks stops in the middle: it hangs, or it refuses.
// The write waits, and goes on at another agent.
func TestChunksMove(t *testing.T) {
	raw, m, frames := sample(t)
	for name, gone := range map[string]func(w http.ResponseWriter, r *http.Request, frame []byte){
		"hangs":   func(_ http.ResponseWriter, r *http.Request, _ []byte) { <-r.Context().Done() },
		"refuses": func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusForbidden) },
		"dies":    func(http.ResponseWriter, *http.Request, []byte) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			var served, second atomic.Int32
			stuck := make(chan struct{}, 64)
			f := serve(t, frames, func(w http.ResponseWriter, r *http.Request, frame []byte) {
				if served.Add(1) > 2 {
					stuck <- struct{}{}
					gone(w, r, frame)
					return
				}
				content(w, r, frame)
			})
			other := serve(t, frames, func(w http.ResponseWriter, r *http.Request, frame []byte) {
				second.Add(1)
				content(w, r, frame)
			})
			d, file := dirtyDisk(t, len(raw))
			two := make(chan struct{}) // the first two chunks are on the disk
			var written atomic.Int32
			progress := func(int64, int64, string) {
				if written.Add(1) == 2 {
					close(two)
				}
			}
			go func() {
				<-stuck
				<-two
				f.Move("ftp://nonsense/%s")
				f.Move(other.url)
			}()
			if _, err := write(t.Context(), d, m, f, Options{Progress: progress}, 0); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, raw) {
				t.Errorf("the disk is not the image: %v", err)
			}
			if n := int(second.Load()); n != len(m.Chunks)-2 {
				t.Errorf("%d chunks from the second agent, want the %d that were missing", n, len(m.Chunks)-2)
			}
		})
	}
}
