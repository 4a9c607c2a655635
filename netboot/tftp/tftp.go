// Package tftp sends boot loaders to firmware (RFC 1350, with the block and
// transfer size options of RFC 2348 and RFC 2349). What can be fetched is a
// list of names; no client's string ever becomes a path.
package tftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pin/tftp/v3"
)

// Limits that are used where Config has zero.
const (
	DefaultTransfers          = 128
	DefaultTransfersPerClient = 4
	DefaultTransferTime       = 3 * time.Minute
)

// The waits for one acknowledgement.
const (
	ackTimeout = time.Second
	ackRetries = 5
)

// The refusals. They reach the client, whose string they must not repeat.
var (
	errNotFound = errors.New("no such file")
	errBusy     = errors.New("too many transfers")
	errTooLong  = errors.New("transfer took too long")
	errClosing  = errors.New("server is shutting down")
)

// Config of a Server.
type Config struct {
	Addr               netip.AddrPort
	Files              map[string][]byte                    // by name; not changed afterwards
	Transfers          int                                  // at a time
	TransfersPerClient int                                  // at a time, by address
	TransferTime       time.Duration                        // of one transfer, however slowly it is acknowledged
	Sent               func(client netip.Addr, name string) // after a complete transfer; may be nil; must not block
	Log                *slog.Logger
}

// Server sends files.
type Server struct {
	cfg  Config
	conn *net.UDPConn
	tftp *tftp.Server

	closing atomic.Bool

	mu      sync.Mutex
	active  int
	clients map[netip.Addr]int
}

// Listen binds the port.
func Listen(cfg Config) (*Server, error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(cfg.Addr))
	if err != nil {
		return nil, fmt.Errorf("tftp: %w", err)
	}
	s := newServer(cfg)
	s.conn = conn
	return s, nil
}

func newServer(cfg Config) *Server {
	if cfg.Transfers == 0 {
		cfg.Transfers = DefaultTransfers
	}
	if cfg.TransfersPerClient == 0 {
		cfg.TransfersPerClient = DefaultTransfersPerClient
	}
	if cfg.TransferTime == 0 {
		cfg.TransferTime = DefaultTransferTime
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, clients: map[netip.Addr]int{}}
	s.tftp = tftp.NewServer(s.read, nil) // nil: write requests are refused
	s.tftp.SetTimeout(ackTimeout)
	s.tftp.SetRetries(ackRetries)
	s.tftp.SetBackoff(func(int) time.Duration { return 0 }) // the timeout is wait enough
	return s
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// Close frees the port of a server that does not Serve.
func (s *Server) Close() error { return s.conn.Close() }

// Serve answers until ctx ends. Transfers under way are broken off at their next
// block; a client that is silent holds Serve up for its retries at most.
func (s *Server) Serve(ctx context.Context) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		s.closing.Store(true)
		s.tftp.Shutdown()
	})
	err := s.tftp.Serve(s.conn)
	if !stop() {
		<-stopped
		return nil
	}
	return errors.Join(err, s.conn.Close())
}

// read is called for each read request, in a goroutine of its own.
func (s *Server) read(name string, w io.ReaderFrom) error {
	transfer, ok := w.(tftp.OutgoingTransfer)
	if !ok {
		return errNotFound
	}
	peer := transfer.RemoteAddr()
	client, _ := netip.AddrFromSlice(peer.IP)
	client = client.Unmap()
	name, data, ok := s.file(name)
	if !ok {
		s.cfg.Log.Debug("tftp request for an unknown file", "addr", client)
		return errNotFound
	}
	if !s.enter(client) {
		s.cfg.Log.Warn("tftp transfer refused, too many under way", "addr", client, "file", name)
		return errBusy
	}
	defer s.leave(client)

	transfer.SetSize(int64(len(data)))
	_, err := w.ReadFrom(&timed{r: bytes.NewReader(data), until: time.Now().Add(s.cfg.TransferTime), closing: &s.closing})
	if err != nil { // firmware asks for the size and breaks off
		s.cfg.Log.Debug("tftp transfer ended early", "addr", client, "file", name, "err", err)
		return err
	}
	s.cfg.Log.Info("tftp file sent", "addr", client, "file", name)
	if s.cfg.Sent != nil {
		s.cfg.Sent(client, name)
	}
	return nil
}

// file finds what a client means. Firmware puts a slash before the name, and
// some of it garbage 0xff behind.
func (s *Server) file(request string) (string, []byte, bool) {
	name := strings.TrimPrefix(request, "/")
	for strings.HasSuffix(name, "\xff") {
		name = name[:len(name)-1]
	}
	data, ok := s.cfg.Files[name]
	return name, data, ok
}

func (s *Server) enter(client netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active >= s.cfg.Transfers || s.clients[client] >= s.cfg.TransfersPerClient {
		return false
	}
	s.active++
	s.clients[client]++
	return true
}

func (s *Server) leave(client netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	if s.clients[client]--; s.clients[client] == 0 {
		delete(s.clients, client)
	}
}

// timed fails once its time is over, which ends a transfer whose client
// acknowledges every block at the last moment.
type timed struct {
	r       io.Reader
	until   time.Time
	closing *atomic.Bool
}

func (t *timed) Read(p []byte) (int, error) {
	if t.closing.Load() {
		return 0, errClosing
	}
	if time.Now().After(t.until) {
		return 0, errTooLong
	}
	return t.r.Read(p)
}
