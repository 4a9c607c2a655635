package client

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// A node that has said nothing for hedgeAfter is not waited for alone: the next is
// asked, too, and the first answer counts (as connections are made by RFC 8305). Where
// it was the slow node that answered after all, asking twice was work for nothing, and
// the client waits longer from then on, up to hedgeAtMost: a cluster under load must
// not get each call twice.
const (
	hedgeAfter  = 300 * time.Millisecond
	hedgeAtMost = 5 * time.Second
	// mutationFactor is how much longer the answer to a mutation is waited for at a node
	// that has taken it: each further one is another entry in the log, and slow commits
	// are a sign of load.
	mutationFactor = 7
)

// patience is how long a call waits for a node before the next one is asked, too; nil: for
// ever.
func (f *failover) patience(method string, args any) func(at int) time.Duration {
	if once[method] {
		return nil
	}
	mutation := false
	if m, ok := args.(proto.Message); ok {
		mutation = shapeOf(m.ProtoReflect().Descriptor()).requestID != nil
	}
	return func(at int) time.Duration {
		d := f.hedge.delay()
		if mutation && f.conns[at].GetState() == connectivity.Ready {
			d = max(d, mutationFactor*f.cfg.hedgeAfter)
		}
		return d
	}
}

// hedge is how long a client waits before it asks a second node.
type hedge struct {
	mu    sync.Mutex
	after time.Duration
}

func (h *hedge) delay() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.after
}

// won takes note of which of several nodes asked has answered.
func (h *hedge) won(firstAsked bool, least time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !firstAsked {
		h.after = least
		return
	}
	h.after = min(2*h.after, max(hedgeAtMost, least))
}

// once are the methods that two nodes must not run at the same time: a mutation
// without a request ID.
var once = map[string]bool{
	"/bmc.v1.Cluster/TransferLeader": true,
}

// outcome is what an attempt came to.
type outcome struct {
	n      int // of the attempt, from 0
	at     int // node
	reply  any
	header metadata.MD
	err    error
}

// attempts are those of one call that are under way, each at another node.
type attempts struct {
	ctx    context.Context // of all but the first
	cancel context.CancelFunc
	wg     sync.WaitGroup // of all but the first
	done   chan outcome
	busy   map[int]bool // nodes
}

func newAttempts(nodes int) *attempts {
	return &attempts{done: make(chan outcome, nodes), busy: make(map[int]bool, nodes)}
}

// start begins attempt n at a node that is not busy.
func (a *attempts) start(n, at int, call func(ctx context.Context, o *outcome)) {
	a.busy[at] = true
	a.wg.Go(func() {
		o := outcome{n: n, at: at}
		call(a.ctx, &o)
		a.done <- o // there is room for one of each node
	})
}

// end stops those that are still under way and waits for them, so that none writes
// into the caller's message any more.
func (a *attempts) end() {
	a.cancel()
	a.wg.Wait()
}

// keep moves a reply into the caller's message, unless it was written there.
func keep(reply, got any) {
	dst, ok := reply.(proto.Message)
	src, ok2 := got.(proto.Message)
	if !ok || !ok2 || dst == src {
		return
	}
	proto.Reset(dst)
	proto.Merge(dst, src)
}

// fresh is an empty message like reply; nil: none can be made.
func fresh(reply any) any {
	if m, ok := reply.(proto.Message); ok {
		return m.ProtoReflect().New().Interface()
	}
	return nil
}

// connected waits until one of the nodes takes connections, from the given one on,
// the next joining in each time that hedgeAfter has passed, and returns it; where
// none does in connectWait, the given one.
func (f *failover) connected(ctx context.Context, at int) int {
	if len(f.conns) == 1 {
		return at
	}
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	type answer struct {
		node  int
		ready bool
	}
	answers := make(chan answer, len(f.conns))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n, refused := 0, 0; refused < len(f.conns); {
		select {
		case a := <-answers:
			if a.ready {
				return a.node
			}
			refused++
			if n < len(f.conns) {
				timer.Reset(0)
			}
		case <-ctx.Done():
			return at
		case <-timer.C:
			i := (at + n) % len(f.conns)
			wg.Go(func() { answers <- answer{i, becomesReady(ctx, f.conns[i])} })
			if n++; n < len(f.conns) {
				timer.Reset(f.cfg.hedgeAfter)
			}
		}
	}
	return at
}

// becomesReady says whether a connection is made before it fails or ctx ends.
func becomesReady(ctx context.Context, c *grpc.ClientConn) bool {
	for s := c.GetState(); s != connectivity.TransientFailure && s != connectivity.Shutdown; s = c.GetState() {
		if s == connectivity.Ready {
			return true
		}
		if s == connectivity.Idle {
			c.Connect()
		}
		if !c.WaitForStateChange(ctx, s) {
			return false
		}
	}
	return false
}
