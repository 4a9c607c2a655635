package agent

import (
	"context"
	"errors"
	"log/slog"
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
}

// nodes connects to every control-plane node that is known. Nodes are only
// added: one that is gone costs a dial every few seconds until a restart.
type nodes struct {
	creds *credentials
	log   *slog.Logger
	added func(*node) // called once for each, without the lock

	mu    sync.Mutex
	all   []*node
	first *node // answered last
}

var errNoNode = metal.Errorf(metal.CodeNoLeader, "no control-plane node is known or answers")

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
			grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
		if err != nil {
			n.log.Warn("node's address is unusable", "addr", addr, "err", err)
			continue
		}
		added := &node{addr: addr, conn: conn, control: agentv1.NewControlClient(conn)}
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
	return code == metal.CodeNotFound || code == metal.CodeDenied || code == metal.CodeUnauthenticated
}

func (n *nodes) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, o := range n.all {
		_ = o.conn.Close() // nothing is under way any more
	}
}
