package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"bmc/agent/cache"
	"bmc/bench/chunks"
	"bmc/bench/process"
	"bmc/internal/manifest"
	"bmc/netboot/httpboot"
)

// source is the image as it lies in the agent's cache, and as one zstd stream.
type source struct {
	manifest *manifest.Manifest
	stream   string // file name below dir; "" without zstd
}

func chunkDir(dir string) string { return filepath.Join(dir, "chunks") }

// prepare cuts the image up, unless the last run has.
func prepare(ctx context.Context, s settings) (source, error) {
	info, err := os.Stat(s.image)
	if err != nil {
		return source{}, fmt.Errorf("the image to measure with: %w (make image)", err)
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil { //nolint:gosec // nothing in there is secret
		return source{}, err
	}
	stamp := fmt.Sprintf("%s %d %d", s.image, info.Size(), info.ModTime().Unix())
	name := filepath.Join(s.dir, "manifest.json")
	var saved struct {
		Stamp    string
		Manifest json.RawMessage
	}
	if data, err := os.ReadFile(name); err == nil && json.Unmarshal(data, &saved) == nil && saved.Stamp == stamp {
		m, err := manifest.Parse(saved.Manifest)
		if err == nil {
			return source{m, stream(ctx, s)}, nil
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return source{}, err
	}
	fmt.Println("cutting the image into chunks (once)")
	f, err := os.Open(s.image)
	if err != nil {
		return source{}, err
	}
	defer f.Close()
	spec := manifest.Spec{Name: "measured", OS: "measured", Firmware: []string{"bios"}}.WithDefaults()
	m, err := manifest.Build(ctx, f, info.Size(), spec, func(c manifest.ChunkFrame) error {
		return chunks.Dir(chunkDir(s.dir)).Put(c.StoredSHA256, c.Data)
	})
	if err != nil {
		return source{}, err
	}
	_ = os.Remove(filepath.Join(s.dir, streamName)) // of another image
	saved.Stamp, saved.Manifest = stamp, m.Canonical()
	data, err := json.Marshal(saved)
	if err != nil {
		return source{}, err
	}
	return source{m, stream(ctx, s)}, os.WriteFile(name, data, 0o600)
}

const streamName = "image.zst"

// stream makes what the typed line downloads; "" where zstd is not installed.
func stream(ctx context.Context, s settings) string {
	path := filepath.Join(s.dir, streamName)
	if _, err := os.Stat(path); err == nil {
		return streamName
	}
	if err := exec.CommandContext(ctx, "zstd", "-q", "-f", "-3", "-T0", s.image, "-o", path).Run(); err != nil {
		_ = os.Remove(path)
		return ""
	}
	return streamName
}

var signerKey = []byte("a key that is known to all here")

// start runs the agent's HTTP server with a cache that has the chunks.
func start(s settings, src source) (*process.Child, string, error) {
	addr, err := process.FreeAddress()
	if err != nil {
		return nil, "", err
	}
	child, err := process.Start(filepath.Join(s.dir, "serve.log"), "/proc/self/exe", roleServe, addr, s.dir)
	if err != nil {
		return nil, "", err
	}
	url := cache.NewSigner(signerKey).Template(addr, "operation", time.Now().Add(time.Hour))
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			_ = c.Close()
			return child, url, nil
		}
		select {
		case <-child.Done():
			return nil, "", fmt.Errorf("the agent's side has ended: see %s", filepath.Join(s.dir, "serve.log"))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil, "", errors.Join(errors.New("the agent's side does not answer"), child.End())
}

// serve is the agent's HTTP server as the agent runs it.
func serve(args []string) error {
	addr, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	dir := args[1]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	c, err := cache.Open(cache.Config{Dir: filepath.Join(dir, "cache"), MaxBytes: 64 << 30, Store: chunks.Dir(chunkDir(dir))})
	if err != nil {
		return err
	}
	defer c.Close()
	mux := http.NewServeMux()
	mux.Handle(cache.PathPrefix, c.Handler(cache.NewSigner(signerKey), nil, log))
	mux.Handle("/images/whole/", http.StripPrefix("/images/whole/", http.FileServer(http.Dir(dir))))
	server, err := httpboot.Listen(httpboot.Config{Addr: addr, Chunks: mux, Log: log})
	if err != nil {
		return err
	}
	return server.Serve(ctx)
}
