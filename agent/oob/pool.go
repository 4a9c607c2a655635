package oob

import (
	"context"
	"sync"

	"bmc/agent/oob/goipmi"
)

// Pool keeps one controller per address, and so at most one command session
// per management controller, for as long as the agent may use them. The sessions
// of all IPMI controllers share one socket.
type Pool struct {
	hub    goipmi.Hub
	slots  chan struct{} // of sweeps' goroutines that wait for a controller
	mu     sync.Mutex
	open   map[string]*controller // by protocol and address
	openWG sync.WaitGroup         // those goroutines
}

// NewPool returns an empty pool.
func NewPool() *Pool {
	return &Pool{open: make(map[string]*controller), slots: make(chan struct{}, sweepSlots)}
}

// Get returns the controller of cfg's address. When the credentials changed, the
// old one's session is closed before the new one opens its own. It opens nothing by
// itself.
func (p *Pool) Get(cfg Config) Controller { return p.get(cfg) }

func (p *Pool) get(cfg Config) *controller {
	key := cfg.Protocol + " " + cfg.Address
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.open[key]
	if old != nil && old.same(cfg) {
		return old
	}
	c := newController(cfg)
	c.hub, c.former = &p.hub, old
	p.open[key] = c
	return c
}

func (c *controller) same(cfg Config) bool {
	return c.cfg == cfg.withDefaults()
}

// Close ends every session, in parallel; the pool stays usable. Sweeps' contexts
// have ended before.
func (p *Pool) Close(ctx context.Context) {
	p.openWG.Wait()
	p.logout(ctx, func(*controller) bool { return true })
}

// Release ends the sessions that were opened under a lease. An agent calls it
// when the lease is lost: standbys hold no session.
func (p *Pool) Release(ctx context.Context, l Lease) {
	p.logout(ctx, func(c *controller) bool { return c.cfg.Lease == l })
}

// logout keeps the controllers: who still has one must find the same as who
// asks for it anew.
func (p *Pool) logout(ctx context.Context, which func(*controller) bool) {
	p.mu.Lock()
	var chosen []*controller
	for _, c := range p.open {
		if which(c) {
			chosen = append(chosen, c)
		}
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range chosen {
		wg.Go(func() { _ = c.Close(ctx) }) // a session that stays ends by itself
	}
	wg.Wait()
}
