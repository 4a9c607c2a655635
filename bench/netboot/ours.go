package main

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"bmc/agent/cache"
	"bmc/bench/chunks"
	"bmc/internal/manifest"
	"bmc/netboot"
)

// directory answers from a map, as an agent's does.
type directory struct {
	byMAC  map[string]netboot.Machine
	byAddr map[netip.Addr]string
}

func (d *directory) Lookup(mac string) (netboot.Machine, bool) {
	m, ok := d.byMAC[mac]
	return m, ok
}

func (d *directory) LookupAddr(addr netip.Addr) (netboot.Machine, bool) {
	m, ok := d.byMAC[d.byAddr[addr]]
	return m, ok
}

func (d *directory) Seed(context.Context, string) ([]byte, error) { return []byte("seed"), nil }

func mac(i int) net.HardwareAddr {
	return net.HardwareAddr{0x52, 0x54, 0, 0, byte(i >> 8), byte(i)}
}

func newDirectory(server netip.Addr) *directory {
	d := &directory{byMAC: map[string]netboot.Machine{}, byAddr: map[netip.Addr]string{}}
	b := server.As4()
	for i := range machines {
		addr := netip.AddrFrom4([4]byte{b[0], b[1], 100 + byte(i>>8), byte(i)})
		m := mac(i).String()
		d.byMAC[m] = netboot.Machine{ServerID: m, MAC: m, Hostname: "machine", Addr: netip.PrefixFrom(addr, 16), Gateway: server,
			LeaseTime: time.Hour, Authoritative: true, Boot: netboot.BootSpec{Ramdisk: true}}
		d.byAddr[addr] = m
	}
	return d
}

// serveOurs is the agent's network boot server with a directory in memory.
func serveOurs(args []string) error {
	addr, dir, profile := args[0], args[1], args[2]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if profile != "" {
		f, err := os.Create(filepath.Join(profile, "ours.pprof"))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	c, err := cache.Open(cache.Config{Dir: filepath.Join(dir, "cache"), MaxBytes: 1 << 30, Store: chunks.Dir(filepath.Join(dir, "chunks"))})
	if err != nil {
		return err
	}
	defer c.Close()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	d := newDirectory(netip.MustParseAddr(addr))
	s, err := netboot.New(netboot.Config{
		Interface: "eth0", Addr: netip.MustParseAddr(addr), Directory: d, Seeder: d,
		Chunks: c.Handler(cache.NewSigner(signerKey), func(string, manifest.Digest) cache.Grant { return cache.Grant{OK: true} }, log), Log: log,
	})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

var signerKey = []byte("a key that is known to all here")

const imageChunks = 16

// writeChunks fills the image store. Chunks are as large as an image's, and random,
// as compressed data is.
func writeChunks(dir string) ([]manifest.Digest, error) {
	random := rand.NewChaCha8([32]byte{1})
	digests := make([]manifest.Digest, imageChunks)
	data := make([]byte, manifest.DefaultChunkSize)
	for i := range digests {
		_, _ = random.Read(data) // never fails
		digests[i] = sha256.Sum256(data)
		if err := chunks.Dir(dir).Put(digests[i], data); err != nil {
			return nil, err
		}
	}
	return digests, nil
}
