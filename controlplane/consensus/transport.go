package consensus

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
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
}

// NewStreams takes the listener that the node's port feeds, the address that
// others reach, and the client's side of TLS, which offers raft's protocol and
// verifies that the peer is a node.
func NewStreams(accepted net.Listener, advertise string, client *tls.Config) *Streams {
	return &Streams{accepted: accepted, advertise: advertise, client: client}
}

func (s *Streams) Accept() (net.Conn, error) { return s.accepted.Accept() }
func (s *Streams) Close() error              { return s.accepted.Close() }
func (s *Streams) Addr() net.Addr            { return address(s.advertise) }

// Dial opens a connection to another node's port.
func (s *Streams) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	d := &tls.Dialer{NetDialer: &net.Dialer{KeepAlive: 10 * time.Second}, Config: s.client}
	c, err := d.DialContext(ctx, "tcp", string(addr))
	if err != nil {
		return nil, fmt.Errorf("dial node at %s: %w", addr, err)
	}
	return c, nil
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
