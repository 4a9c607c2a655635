package rpc

import (
	"context"
	"fmt"
	"sync"
	"time"

	agentv1 "bmc/api/agent/v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Peers keeps one connection per node that this one talks to. Consensus uses
// it for ReadIndex, the API to forward. It dials lazily and is safe for
// concurrent use.
type Peers struct {
	creds  credentials.TransportCredentials
	leader func() (id, addr string)
	opts   []grpc.DialOption

	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn
	closed bool
}

// NewPeers takes the credentials of this node's certificate (they verify that
// the peer is a node of the cluster) and a func that tells who leads.
func NewPeers(creds credentials.TransportCredentials, leader func() (id, addr string), opts ...grpc.DialOption) *Peers {
	return &Peers{creds: creds, leader: leader, opts: opts, conns: map[string]*grpc.ClientConn{}}
}

// Conn returns the connection to a node's TLS port (host:port).
func (p *Peers) Conn(addr string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errShuttingDown
	}
	if c, ok := p.conns[addr]; ok {
		return c, nil
	}
	opts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(p.creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		// A node that was down is asked again within a second of its return.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 3 * time.Second,
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 4 * time.Second, PermitWithoutStream: true}),
	}, p.opts...)
	c, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		return nil, fmt.Errorf("dial node %s: %w", addr, err)
	}
	p.conns[addr] = c
	return c, nil
}

// Retain closes the connections to all but the given addresses; call it when
// the set of nodes has changed.
func (p *Peers) Retain(addrs []string) {
	keep := map[string]bool{}
	for _, a := range addrs {
		keep[a] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for addr, c := range p.conns {
		if !keep[addr] {
			_ = c.Close()
			delete(p.conns, addr)
		}
	}
}

// ReadIndex asks the leader for the index that a linearizable read must wait
// for. It does not wait for a leader: NO_LEADER when none is known.
func (p *Peers) ReadIndex(ctx context.Context) (uint64, error) {
	_, addr := p.leader()
	if addr == "" {
		return 0, errNoLeaderKnown
	}
	c, err := p.Conn(addr)
	if err != nil {
		return 0, err
	}
	resp, err := agentv1.NewNodesClient(c).ReadIndex(ctx, &agentv1.ReadIndexRequest{})
	if err != nil {
		return 0, err
	}
	return resp.GetIndex(), nil
}

// LeaderGone asks the node at an address for its word about a term's leader.
func (p *Peers) LeaderGone(ctx context.Context, addr, leader string, term uint64) (LeaderWord, error) {
	c, err := p.Conn(addr)
	if err != nil {
		return LeaderWord{}, err
	}
	r, err := agentv1.NewNodesClient(c).LeaderGone(ctx, &agentv1.LeaderGoneRequest{LeaderId: leader, Term: term})
	return LeaderWord{Gone: r.GetGone(), LastTerm: r.GetLastLogTerm(), LastIndex: r.GetLastLogIndex()}, err
}

// Close closes every connection.
func (p *Peers) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for addr, c := range p.conns {
		_ = c.Close()
		delete(p.conns, addr)
	}
	return nil
}
