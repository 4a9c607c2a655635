// Package tftp sends boot loaders to firmware: RFC 1350 with the options blksize
// (RFC 2348), tsize and timeout (RFC 2349) and windowsize (RFC 7440). What can be
// fetched is a list of names; no client's string ever becomes a path.
package tftp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
)

// Limits that are used where Config has zero. A transfer is a few hundred bytes of
// memory: the first cap is two storms of 500 machines.
const (
	DefaultTransfers          = 1024
	DefaultTransfersPerClient = 4
	DefaultTransferTime       = 3 * time.Minute
)

// The waits for one acknowledgement, unless the client asks for another time.
const (
	ackTimeout = time.Second
	ackRetries = 5
)

// ports is how many sockets data is sent from. A client that begins anew from the
// same port gets another one, so that its old packets count for nothing.
const ports = 4

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
	cfg   Config
	conn  *net.UDPConn
	ports []*port

	mu      sync.Mutex
	next    int // the port of the next transfer
	active  map[netip.AddrPort]entry
	clients map[netip.Addr]int
}

type entry struct {
	t *transfer
	p *port
}

// Listen binds the well-known port and those that data is sent from.
func Listen(cfg Config) (*Server, error) {
	s := newServer(cfg)
	conn, err := listenUDP(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("tftp: %w", err)
	}
	s.conn = conn
	for range ports {
		p, err := newPort(s, cfg.Addr.Addr())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("tftp: %w", err), s.Close())
		}
		s.ports = append(s.ports, p)
	}
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
	return &Server{cfg: cfg, active: map[netip.AddrPort]entry{}, clients: map[netip.Addr]int{}}
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// Close breaks off what is under way and frees the ports.
func (s *Server) Close() error {
	errs := []error{s.conn.Close()}
	for _, p := range s.ports {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

// Serve answers until ctx ends, and tells the clients of transfers under way.
func (s *Server) Serve(ctx context.Context) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = s.Close()
	})
	errs := make([]error, 1+len(s.ports))
	var wg sync.WaitGroup
	run := func(i int, serve func() error) {
		wg.Go(func() {
			if errs[i] = serve(); errs[i] != nil {
				_ = s.Close() // the others end, too
			}
		})
	}
	run(0, s.requests)
	for i, p := range s.ports {
		run(1+i, p.serve)
	}
	wg.Wait()
	if !stop() {
		<-closed
	}
	return errors.Join(errs...)
}

// requests reads the well-known port until it is closed.
func (s *Server) requests() error {
	pc := ipv4.NewPacketConn(s.conn)
	in := buffers(maxRequest + 1)
	for {
		n, err := pc.ReadBatch(in, 0)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("tftp: receive: %w", err)
		}
		now := time.Now()
		for i := range n {
			client, ok := sender(&in[i])
			if !ok {
				continue
			}
			if refused := s.handle(client, in[i].Buffers[0][:in[i].N], now); refused != nil {
				if _, err := s.conn.WriteToUDPAddrPort(refused.packet(), client); err != nil {
					s.cfg.Log.Debug("tftp error could not be sent", "addr", client.Addr(), "err", err)
				}
			}
		}
	}
}

// handle begins the transfer that a packet asks for.
func (s *Server) handle(client netip.AddrPort, raw []byte, now time.Time) *refusal {
	r, refused := parseRequest(raw)
	if r == nil {
		return refused
	}
	name, data, ok := s.file(r.name)
	if !ok {
		s.cfg.Log.Debug("tftp request for an unknown file", "addr", client.Addr())
		return errNotFound
	}
	if old, ok := s.lookup(client); ok {
		if old.t.asked == string(raw) && old.p.repeat(old.t, now) {
			return nil // our first packet was lost, or was late
		}
		old.p.drop(old.t)
	}
	t := newTransfer(client, raw, name, data, r.grant(len(data)), now.Add(s.cfg.TransferTime))
	p, ok := s.enter(t)
	if !ok {
		s.cfg.Log.Warn("tftp transfer refused, too many under way", "addr", client.Addr(), "file", name)
		return errBusy
	}
	p.begin(t, now)
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

func (s *Server) lookup(client netip.AddrPort) (entry, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.active[client]
	return e, ok
}

// enter finds room for a transfer.
func (s *Server) enter(t *transfer) (*port, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ip := t.client.Addr()
	if len(s.active) >= s.cfg.Transfers || s.clients[ip] >= s.cfg.TransfersPerClient {
		return nil, false
	}
	p := s.ports[s.next%len(s.ports)]
	s.next++
	s.active[t.client] = entry{t, p}
	s.clients[ip]++
	return p, true
}

// ended is called by a transfer's port, once for each; early is why it is
// incomplete, or "".
func (s *Server) ended(t *transfer, early string) {
	client := t.client.Addr()
	s.mu.Lock()
	delete(s.active, t.client)
	if s.clients[client]--; s.clients[client] == 0 {
		delete(s.clients, client)
	}
	s.mu.Unlock()
	if early != "" {
		s.cfg.Log.Debug("tftp transfer ended early", "addr", client, "file", t.name, "reason", early)
		return
	}
	s.cfg.Log.Info("tftp file sent", "addr", client, "file", t.name)
	if s.cfg.Sent != nil {
		s.cfg.Sent(client, t.name)
	}
}
