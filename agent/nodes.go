package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

const (
	maxNodes   = 64
	maxMessage = 16 << 20 // an assignment carries a manifest and user data
)

// node is a connection to one control-plane node.
type node struct {
	addr    string
	conn    *grpc.ClientConn
	control agentv1.ControlClient
	gone    chan struct{} // closed when the node is dropped
}

// while is a context that ends with ctx, and when the node is dropped.
func (o *node) while(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-o.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// nodes connects to every control-plane node that is known.
type nodes struct {
	creds *credentials
	log   *slog.Logger
	added func(*node) // called once for each, without the lock

	mu     sync.Mutex
	all    []*node
	first  *node // answered last
	dialed map[net.Conn]bool
}

var errNoNode = metal.Errorf(metal.CodeNoLeader, "no control-plane node is known or answers")

// keep drops the nodes whose address is not among those given.
func (n *nodes) keep(addrs []string) {
	var dropped []*node
	n.mu.Lock()
	n.all = slices.DeleteFunc(n.all, func(o *node) bool {
		if slices.Contains(addrs, o.addr) {
			return false
		}
		dropped = append(dropped, o)
		if n.first == o {
			n.first = nil
		}
		return true
	})
	n.mu.Unlock()
	for _, o := range dropped {
		n.log.Info("node is dropped", "addr", o.addr)
		close(o.gone)
		_ = o.conn.Close() // what is under way ends with it
	}
}

// redial ends every connection: the next ones show the present certificate.
func (n *nodes) redial() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.dialed {
		_ = c.Close() // gRPC dials again
	}
}

// dial notes connections while they are open.
func (n *nodes) dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dialed == nil {
		n.dialed = make(map[net.Conn]bool)
	}
	noted := &notedConn{Conn: c, nodes: n}
	n.dialed[noted] = true
	return noted, nil
}

type notedConn struct {
	net.Conn
	nodes *nodes
}

func (c *notedConn) Close() error {
	err := c.Conn.Close()
	go func() { // redial holds the lock as it closes
		c.nodes.mu.Lock()
		defer c.nodes.mu.Unlock()
		delete(c.nodes.dialed, c)
	}()
	return err
}

// update adds what is new in the addresses.
func (n *nodes) update(addrs []string) {
	var fresh []*node
	n.mu.Lock()
	for _, addr := range addrs {
		if addr == "" || len(n.all) >= maxNodes || slices.ContainsFunc(n.all, func(o *node) bool { return o.addr == addr }) {
			continue
		}
		conn, err := grpc.NewClient("passthrough:///"+addr,
			grpc.WithTransportCredentials(grpccreds.NewTLS(n.creds.client())),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
				MinConnectTimeout: 5 * time.Second,
			}),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 4 * time.Second, PermitWithoutStream: true}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
			grpc.WithContextDialer(n.dial), grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
		if err != nil {
			n.log.Warn("node's address is unusable", "addr", addr, "err", err)
			continue
		}
		added := &node{addr: addr, conn: conn, control: agentv1.NewControlClient(conn), gone: make(chan struct{})}
		n.all, fresh = append(n.all, added), append(fresh, added)
	}
	n.mu.Unlock()
	for _, o := range fresh {
		n.added(o)
	}
}

func (n *nodes) addrs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, o := range n.all {
		out = append(out, o.addr)
	}
	return out
}

func (n *nodes) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.all)
}

// order is all nodes, the one that answered last first.
func (n *nodes) order() []*node {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := slices.Clone(n.all)
	if i := slices.Index(out, n.first); i > 0 {
		out[0], out[i] = out[i], out[0]
	}
	return out
}

// call asks one node after the other until one answers, each for at most
// limit. Refusals are *metal.Error. A node whose replica is behind may refuse
// what another accepts, so those of a kind that this can cause are not final
// before every node has been asked.
func (n *nodes) call(ctx context.Context, limit time.Duration, f func(context.Context, agentv1.ControlClient) error) error {
	var lastErr error = errNoNode
	for _, o := range n.order() {
		err := n.one(ctx, o, limit, f)
		if err == nil || ctx.Err() != nil {
			return err
		}
		var refusal *metal.Error
		if !errors.As(err, &refusal) {
			if errors.Is(lastErr, errNoNode) {
				lastErr = err
			}
			continue
		}
		if decided(refusal.Code) && !replicaBehind(refusal.Code) {
			return refusal
		}
		lastErr = refusal
	}
	return lastErr
}

func (n *nodes) one(ctx context.Context, o *node, limit time.Duration, f func(context.Context, agentv1.ControlClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := f(ctx, o.control)
	if err != nil {
		if e, ok := rpcerr.Decode(err); ok {
			return e
		}
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.first = o
	return nil
}

// replicaBehind: what a node says of things that it has not heard of yet.
func replicaBehind(code metal.Code) bool {
	return code == metal.CodeNotFound || code == metal.CodeDenied || code == metal.CodeUnauthenticated || code == metal.CodeNotMember
}

func (n *nodes) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, o := range n.all {
		_ = o.conn.Close() // nothing is under way any more
	}
}
