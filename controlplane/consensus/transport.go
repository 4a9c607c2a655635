package consensus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

const (
	pooledConns = 3
	ioTimeout   = 10 * time.Second // of one message; snapshots scale it by their size
)

// Streams is raft's network: connections that were accepted by the node's port
// under raft's ALPN protocol, and TLS connections that it dials.
type Streams struct {
	accepted  net.Listener
	advertise string
	client    *tls.Config
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	lookup    func(ctx context.Context, network, host string) ([]netip.Addr, error)
	who       func(net.Conn) string
	ended     chan struct{} // capacity 1

	mu     sync.Mutex
	silent bool
	open   map[*stream]struct{}
}

// stream is a connection that Silence can close.
type stream struct {
	net.Conn
	owner *Streams
	from  string // the node that opened it; "": this one, or an unknown one
}

// Close is called by raft also when the other side has ended the connection.
func (c *stream) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.open, c)
	c.owner.mu.Unlock()
	if c.from != "" {
		select {
		case c.owner.ended <- struct{}{}:
		default: // who is told looks at all of them
		}
	}
	return c.Conn.Close()
}

// NewStreams takes the listener that the node's port feeds, a func that tells which
// node has opened such a connection, the address that others reach, and the
// client's side of TLS, which offers raft's protocol and verifies that the peer is a
// node.
func NewStreams(accepted net.Listener, who func(net.Conn) string, advertise string, client *tls.Config) *Streams {
	d := &net.Dialer{KeepAlive: 10 * time.Second}
	return &Streams{accepted: accepted, who: who, advertise: advertise, client: client, dial: d.DialContext, lookup: net.DefaultResolver.LookupNetIP,
		open: map[*stream]struct{}{}, ended: make(chan struct{}, 1)}
}

// From is how many connections a node has opened to this one that have not ended.
func (s *Streams) From(node string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		if c.from == node {
			n++
		}
	}
	return n
}

// Ended tells that connections which other nodes had opened have ended since the
// last time.
func (s *Streams) Ended() <-chan struct{} { return s.ended }

var errSilent = errors.New("this node keeps silent because its log store hangs")

// Silence closes every connection and opens none until it is taken back.
func (s *Streams) Silence(on bool) {
	s.mu.Lock()
	s.silent = on
	var all []*stream
	for c := range s.open {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		if on {
			_ = c.Close()
		}
	}
}

// keep closes a connection at once while the node is silent.
func (s *Streams) keep(c net.Conn, from string) (net.Conn, error) {
	kept := &stream{Conn: c, owner: s, from: from}
	s.mu.Lock()
	silent := s.silent
	if !silent {
		s.open[kept] = struct{}{}
	}
	s.mu.Unlock()
	if silent {
		_ = c.Close()
		return nil, errSilent
	}
	return kept, nil
}

// Accept waits for the next connection.
func (s *Streams) Accept() (net.Conn, error) {
	for {
		c, err := s.accepted.Accept()
		if err != nil {
			return nil, err
		}
		if kept, err := s.keep(c, s.who(c)); err == nil {
			return kept, nil
		}
	}
}

func (s *Streams) Close() error   { return s.accepted.Close() }
func (s *Streams) Addr() net.Addr { return address(s.advertise) }

// Dial opens a connection to another node's port.
func (s *Streams) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	raw, err := s.dial(ctx, "tcp", string(addr))
	if err != nil {
		return nil, fmt.Errorf("dial node at %s: %w", addr, err)
	}
	c := tls.Client(raw, s.client)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("dial node at %s: %w", addr, err)
	}
	return s.keep(c, "")
}

// Refused says whether nobody listens at an address, though its host answers. Of a
// name's addresses each must refuse to which this machine has a way at all (a name may
// have an IPv6 address, and this machine none): a dialer tells of the first that it
// tried, and the node may live behind another.
func (s *Streams) Refused(ctx context.Context, addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	all, err := s.lookup(ctx, "ip", host)
	if err != nil {
		return false
	}
	refused := false
	for _, ip := range all {
		c, err := s.dial(ctx, "tcp", net.JoinHostPort(ip.Unmap().String(), port))
		switch {
		case err == nil:
			_ = c.Close()
			return false
		case errors.Is(err, syscall.ECONNREFUSED):
			refused = true
		case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
		default:
			return false
		}
	}
	return refused
}

// address is an advertised host:port, which may hold a name.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// NewTransport speaks raft over streams. Close it after the Node.
func NewTransport(s *Streams, log *slog.Logger) *raft.NetworkTransport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: s, MaxPool: pooledConns, Timeout: ioTimeout, Logger: newHCLog(log), MsgpackUseNewTimeFormat: true})
}
