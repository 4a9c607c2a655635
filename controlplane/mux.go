package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"bmc/controlplane/trust"
)

const (
	handshakeWait = 10 * time.Second
	maxHandshakes = 256 // under way at once; more wait in the kernel's queue
)

// mux accepts the node's one port, proves who is there, and hands connections
// to the protocol that ALPN has chosen.
type mux struct {
	l      net.Listener
	config *tls.Config
	log    *slog.Logger
	raft   *queue
	grpc   *queue
	http   *queue
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newMux(l net.Listener, config *tls.Config, log *slog.Logger) *mux {
	ctx, cancel := context.WithCancel(context.Background())
	m := &mux{l: l, config: config, log: log, ctx: ctx, cancel: cancel,
		raft: newQueue(l.Addr()), grpc: newQueue(l.Addr()), http: newQueue(l.Addr())}
	m.wg.Go(m.accept)
	return m
}

func (m *mux) accept() {
	slots := make(chan struct{}, maxHandshakes)
	for {
		select {
		case slots <- struct{}{}:
		case <-m.ctx.Done():
			return
		}
		c, err := m.l.Accept()
		if err != nil {
			<-slots
			if m.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			m.log.Warn("accept failed", "err", err)
			timer := time.NewTimer(50 * time.Millisecond) // out of file descriptors, most likely
			select {
			case <-timer.C:
			case <-m.ctx.Done():
				timer.Stop()
			}
			continue
		}
		m.wg.Go(func() {
			defer func() { <-slots }()
			m.route(c)
		})
	}
}

func (m *mux) route(raw net.Conn) {
	ctx, cancel := context.WithTimeout(m.ctx, handshakeWait)
	defer cancel()
	c := tls.Server(raw, m.config)
	if err := c.HandshakeContext(ctx); err != nil {
		m.log.Debug("handshake failed", "addr", raw.RemoteAddr().String(), "err", err)
		_ = raw.Close()
		return
	}
	q := m.http
	switch c.ConnectionState().NegotiatedProtocol {
	case trust.ProtoRaft:
		q = m.raft
	case trust.ProtoGRPC:
		q = m.grpc
	}
	if !q.put(c) {
		_ = c.Close()
	}
}

// close stops accepting. Connections that were handed on stay open.
func (m *mux) close() {
	m.cancel()
	_ = m.l.Close()
	_ = m.raft.Close()
	_ = m.grpc.Close()
	_ = m.http.Close()
	m.wg.Wait()
}

// queue is a listener fed by the mux.
type queue struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
}

func newQueue(addr net.Addr) *queue {
	return &queue{conns: make(chan net.Conn), closed: make(chan struct{}), addr: addr}
}

// put waits until the protocol's server takes the connection; at most as long
// as a handshake may take.
func (q *queue) put(c net.Conn) bool {
	timer := time.NewTimer(handshakeWait)
	defer timer.Stop()
	select {
	case q.conns <- c:
		return true
	case <-q.closed:
	case <-timer.C:
	}
	return false
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

func (q *queue) Addr() net.Addr { return q.addr }

// handshaken are gRPC's credentials for connections whose TLS handshake the
// mux has done: they let handlers see who the peer is.
type handshaken struct {
	credentials.TransportCredentials
}

func newHandshaken() credentials.TransportCredentials {
	return handshaken{credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13})} // for Info and Clone only
}

func (h handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil, nil, errors.New("the connection did not come through TLS")
	}
	return c, credentials.TLSInfo{State: t.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

func (h handshaken) Clone() credentials.TransportCredentials {
	return handshaken{h.TransportCredentials.Clone()}
}
