package oob

import (
	"context"
	"sync"
	"time"

	"bmc/metal"
)

const (
	sweepWidth = 16               // controllers that a sweep asks at a time
	sweepEach  = 12 * time.Second // for one of them: some hang, and the others want their turn
)

// Pool keeps one controller per address, and so at most one command session
// per management controller, for as long as the agent may use them.
type Pool struct {
	mu   sync.Mutex
	open map[string]*controller // by protocol and address
}

// NewPool returns an empty pool.
func NewPool() *Pool { return &Pool{open: make(map[string]*controller)} }

// Get returns the controller of cfg's address. When the credentials changed,
// the old one's session is closed in passing. It opens nothing by itself.
func (p *Pool) Get(ctx context.Context, cfg Config) Controller {
	key := cfg.Protocol + " " + cfg.Address
	p.mu.Lock()
	old := p.open[key]
	if old != nil && old.same(cfg) {
		p.mu.Unlock()
		return old
	}
	c := newController(cfg)
	p.open[key] = c
	p.mu.Unlock()
	if old != nil {
		_ = old.Close(ctx) // its session would end by itself
	}
	return c
}

func (c *controller) same(cfg Config) bool {
	return c.cfg == cfg.withDefaults()
}

// Close ends every session, in parallel; the pool stays usable.
func (p *Pool) Close(ctx context.Context) { p.logout(ctx, func(*controller) bool { return true }) }

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

// Reading is one controller's answer in a sweep.
type Reading struct {
	Power metal.Power
	Err   error // *metal.Error
}

// Status reads the power of many controllers, a few at a time. The answers are
// in cfgs' order; after ctx has ended the rest is PowerUnknown.
func (p *Pool) Status(ctx context.Context, cfgs []Config) []Reading {
	out := make([]Reading, len(cfgs))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(sweepWidth, len(cfgs)) {
		wg.Go(func() {
			for i := range next {
				out[i] = p.read(ctx, cfgs[i])
			}
		})
	}
	for i := range cfgs {
		next <- i
	}
	close(next)
	wg.Wait()
	return out
}

func (p *Pool) read(ctx context.Context, cfg Config) Reading {
	ctx, cancel := context.WithTimeout(ctx, sweepEach)
	defer cancel()
	power, err := p.Get(ctx, cfg).Power(ctx)
	return Reading{Power: power, Err: err}
}
