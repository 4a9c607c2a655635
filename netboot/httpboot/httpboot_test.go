package httpboot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bmc/internal/sendfiletest"
)

const mac = "52:54:00:00:00:01"

// machines is a Source of three: one with an intent, one without, one whose seed fails.
type machines struct{ seeds int }

func (m *machines) Assigned(mac string, _ netip.Addr) (netip.Addr, bool) {
	switch mac {
	case "52:54:00:00:00:01":
		return netip.MustParseAddr("10.77.0.101"), true
	case "52:54:00:00:00:02":
		return netip.MustParseAddr("10.77.0.102"), true
	case "52:54:00:00:00:03":
		return netip.MustParseAddr("10.77.0.103"), true
	}
	return netip.Addr{}, false
}

func (m *machines) Script(_ context.Context, mac string, _ netip.Addr) (string, []byte, error) {
	return "ramdisk", []byte("#!ipxe\n# " + mac + "\n"), nil
}

func (m *machines) Seed(ctx context.Context, mac string, _ netip.Addr) ([]byte, error) {
	if _, ok := ctx.Deadline(); !ok {
		return nil, errors.New("the wait for a seed is not bounded")
	}
	switch mac {
	case "52:54:00:00:00:02":
		return nil, ErrNone
	case "52:54:00:00:00:03":
		return nil, errors.New("no memory for secret-token-value")
	}
	m.seeds++
	return fmt.Appendf(nil, "seed %d", m.seeds), nil
}

func testServer(t *testing.T, served func(Served)) *Server {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"vmlinuz": "kernel-0123456789", "initrd.img": "initrd"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return newServer(Config{
		Source:  &machines{},
		Kernel:  filepath.Join(dir, "vmlinuz"),
		Initrd:  filepath.Join(dir, "initrd.img"),
		Loaders: map[string][]byte{"ipxe.efi": []byte("MZ loader")},
		Chunks:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Method+" "+r.URL.Path) }),
		Served:  served,
	})
}

func TestHandler(t *testing.T) {
	tests := []struct {
		name   string
		method string
		target string
		from   string
		rng    string
		status int
		body   string // checked when the status is 200 or 206
		served string
	}{
		{name: "script", target: "/boot/ipxe?mac=" + mac, from: "10.77.0.101", status: 200, body: "#!ipxe\n# " + mac + "\n", served: "0 " + mac + " ramdisk"},
		{name: "script, MAC in another form", target: "/boot/ipxe?mac=52-54-00-00-00-01", from: "10.77.0.101", status: 200, body: "#!ipxe\n# " + mac + "\n", served: "0 " + mac + " ramdisk"},
		{name: "script, escaped", target: "/boot/ipxe?mac=52%3A54%3A00%3A00%3A00%3A01", from: "10.77.0.101", status: 200, body: "#!ipxe\n# " + mac + "\n", served: "0 " + mac + " ramdisk"},
		{name: "script for another machine", target: "/boot/ipxe?mac=" + mac, from: "10.77.0.102", status: 404, served: "3 " + mac + " "},
		{name: "script for an unknown machine", target: "/boot/ipxe?mac=52:54:00:00:00:99", from: "10.77.0.101", status: 404, served: "3 52:54:00:00:00:99 "},
		{name: "script without a MAC", target: "/boot/ipxe", from: "10.77.0.101", status: 404},
		{name: "script with a malformed MAC", target: "/boot/ipxe?mac=${net0/mac}", from: "10.77.0.101", status: 404},
		{name: "script by POST", method: "POST", target: "/boot/ipxe?mac=" + mac, from: "10.77.0.101", status: 405},
		{name: "seed", target: "/boot/seed/" + mac + ".cpio", from: "10.77.0.101", status: 200, body: "seed 1", served: "1 " + mac + " "},
		{name: "seed by HEAD makes no token", method: "HEAD", target: "/boot/seed/" + mac + ".cpio", from: "10.77.0.101", status: 404},
		{name: "seed for another machine", target: "/boot/seed/" + mac + ".cpio", from: "10.77.0.102", status: 404, served: "3 " + mac + " "},
		{name: "seed without an intent", target: "/boot/seed/52:54:00:00:00:02.cpio", from: "10.77.0.102", status: 404},
		{name: "seed that fails", target: "/boot/seed/52:54:00:00:00:03.cpio", from: "10.77.0.103", status: 503},
		{name: "seed without its suffix", target: "/boot/seed/" + mac, from: "10.77.0.101", status: 404},
		{name: "kernel", target: "/ramdisk/vmlinuz", from: "10.77.0.200", status: 200, body: "kernel-0123456789"},
		{name: "part of the kernel", target: "/ramdisk/vmlinuz", from: "10.77.0.200", rng: "bytes=7-9", status: 206, body: "012"},
		{name: "no such part", target: "/ramdisk/vmlinuz", from: "10.77.0.200", rng: "bytes=100-", status: 416},
		{name: "initrd", target: "/ramdisk/initrd.img", from: "10.77.0.200", status: 200, body: "initrd"},
		{name: "another file", target: "/ramdisk/initrd", from: "10.77.0.200", status: 404},
		{name: "out of the directory", target: "/ramdisk/..%2f..%2fetc/passwd", from: "10.77.0.200", status: 404},
		{name: "loader", target: "/loader/ipxe.efi", from: "10.77.0.200", status: 200, body: "MZ loader", served: "2  ipxe.efi"},
		{name: "size of the loader", method: "HEAD", target: "/loader/ipxe.efi", from: "10.77.0.200", status: 200},
		{name: "another loader", target: "/loader/boot-local-disk", from: "10.77.0.200", status: 404},
		{name: "chunks", target: "/images/chunks/abc?sig=1", from: "10.77.0.200", status: 200, body: "GET /images/chunks/abc"},
		{name: "root", target: "/", from: "10.77.0.200", status: 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var served string
			s := testServer(t, func(v Served) { served += fmt.Sprintf("%d %s %s", v.Kind, v.MAC, v.Name) })
			method := tt.method
			if method == "" {
				method = "GET"
			}
			r := httptest.NewRequest(method, tt.target, nil)
			r.RemoteAddr = tt.from + ":1024"
			if tt.rng != "" {
				r.Header.Set("Range", tt.rng)
			}
			w := httptest.NewRecorder()
			s.http.Handler.ServeHTTP(w, r)
			if w.Code != tt.status {
				t.Fatalf("status %d, want %d", w.Code, tt.status)
			}
			if w.Code < 300 && w.Body.String() != tt.body {
				t.Errorf("body %q, want %q", w.Body, tt.body)
			}
			if strings.Contains(w.Body.String(), "secret") {
				t.Errorf("an inner error leaked: %q", w.Body)
			}
			if served != tt.served {
				t.Errorf("served %q, want %q", served, tt.served)
			}
			if strings.HasPrefix(tt.target, "/boot/") && w.Code == 200 && w.Header().Get("Cache-Control") != "no-store" {
				t.Error("a boot decision may be cached")
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	s := testServer(t, nil)
	s.cfg.Kernel = filepath.Join(t.TempDir(), "none")
	s.cfg.Initrd = t.TempDir()
	for _, target := range []string{"/ramdisk/vmlinuz", "/ramdisk/initrd.img"} {
		w := httptest.NewRecorder()
		s.http.Handler.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
		if w.Code != 404 {
			t.Errorf("%s: status %d", target, w.Code)
		}
	}
}

// The writer that handlers get must be the server's own: only that one knows sendfile.
func TestSendfileKept(t *testing.T) {
	got := make(chan bool, 1)
	cfg := testServer(t, nil).cfg
	cfg.Addr = netip.MustParseAddrPort("127.0.0.1:0")
	cfg.Chunks = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, ok := w.(io.ReaderFrom)
		got <- ok
	})
	s, stop := serve(t, cfg)
	resp, err := http.Get("http://" + s.Addr().String() + "/images/x")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if !<-got {
		t.Error("the chunk handler's writer is wrapped")
	}
	stop()
}

// serve runs a server on loopback; stop ends it and waits.
func serve(t *testing.T, cfg Config) (*Server, func()) {
	t.Helper()
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	var stopped bool
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Serve did not return")
		}
	}
	t.Cleanup(stop)
	return s, stop
}

// A client that stops in the middle of a response does not hold the end up.
func TestEndWithOpenRequest(t *testing.T) {
	cfg := testServer(t, nil).cfg
	cfg.Addr = netip.MustParseAddrPort("127.0.0.1:0")
	begun := make(chan struct{})
	cfg.Chunks = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<16))
		close(begun)
		<-r.Context().Done()
	})
	s, stop := serve(t, cfg)
	resp, err := http.Get("http://" + s.Addr().String() + "/images/x")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	<-begun
	stop()
}

// The server has to hand its own ResponseWriter to whoever sends files.
func TestFilesAreSentByTheKernel(t *testing.T) {
	chunk := filepath.Join(t.TempDir(), "chunk")
	if err := os.WriteFile(chunk, make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServer(Config{Source: &machines{}, Kernel: chunk, Initrd: chunk, Chunks: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/zstd")
		http.ServeFile(w, r, chunk)
	})})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var files <-chan string
	s.listener, files = sendfiletest.Watch(l)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	for _, path := range []string{"/images/chunks/x", "/ramdisk/vmlinuz", "/ramdisk/initrd.img"} {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil || n != 100_000 {
			t.Errorf("%s: %d bytes, %v", path, n, err)
		}
		select {
		case <-files:
		default:
			t.Errorf("%s was not sent from its file", path)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
