package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/status"

	"bmc/internal/rpcerr"
)

// chase is one call's way through the nodes.
type chase struct {
	f        *failover
	first    int                             // node to begin at; -1: the current one
	patience func(at int) time.Duration      // how long a node is waited for before the next one is asked, too; nil: for ever
	limit    time.Duration                   // of a call whose context has no deadline; 0: none, nor has an attempt
	call     func(context.Context, *outcome) // one attempt

	start  time.Time
	once   sync.Once // makes all
	all    *attempts
	began  time.Time // the newest attempt,
	last   int       // and where; -1: all nodes were being asked
	asked  int       // node that is asked next
	n      int       // attempts begun
	failed int       // attempts that came to nothing
	pause  time.Duration
	tried  []int          // nodes
	why    map[int]reason // each was not reached
	err    error          // of the newest attempt that came to nothing
	noted  bool
}

// result is what a chase came to.
type result struct {
	outcome
	err error
}

// try makes a call at the first node, then at the others in turn, round by round, and
// returns the attempt that counts: the first answer. A node that says nothing is not
// waited for alone when its patience is over; one that gives up, or sends us
// elsewhere, is followed at once.
//
// The first attempt runs in the caller's goroutine: nearly always it is the only one,
// and another goroutine for it would cost more than all else here.
func (c *chase) try(ctx context.Context) (outcome, error) {
	o := outcome{at: c.first}
	if c.first < 0 {
		c.f.mu.Lock()
		o.at = c.f.current
		c.f.mu.Unlock()
	}
	nodes := len(c.f.conns)
	c.start = time.Now()
	c.began, c.last = c.start, o.at
	c.n, c.asked = 1, (o.at+1)%nodes
	mine, stop := c.bounded(c.f.authorized(ctx), 0)
	defer stop()
	var beside *time.Timer
	var came chan result
	if c.patience != nil && nodes > 1 {
		came = make(chan result, 1)
		beside = time.AfterFunc(c.patience(o.at), func() {
			won, err := c.run(ctx)
			stop() // the attempt below, so that it writes no more into the caller's message
			came <- result{won, err}
		})
	}
	c.call(mine, &o)
	o.err = timed(mine, o.err)
	if beside == nil || beside.Stop() {
		if o.err == nil {
			c.f.answered(o, c.first, false)
			return o, nil
		}
		c.attempts().done <- o
		return c.run(ctx)
	}
	c.attempts().done <- o
	r := <-came
	return r.outcome, r.err
}

// attempts are made when there are several: few calls need them.
func (c *chase) attempts() *attempts {
	c.once.Do(func() {
		c.all = newAttempts(len(c.f.conns))
		c.all.busy[c.last] = true
	})
	return c.all
}

// bounded is the context of attempt n, and what ends it; with several nodes, a bound of
// its own leaves time for the others. That bound is kept here and does not travel as
// a deadline: it would be another header at each call, to encode, decode and remember,
// and another timer at the node. The caller's own does travel.
func (c *chase) bounded(ctx context.Context, n int) (context.Context, func()) {
	bound := c.limit
	if _, ok := ctx.Deadline(); ok {
		bound = 0
	}
	if nodes := len(c.f.conns); nodes > 1 && c.limit > 0 {
		wait := c.f.cfg.answerWait << min(n/nodes, 8)
		if bound == 0 || wait < bound {
			bound = wait
		}
	}
	if bound == 0 {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(bound, func() { cancel(errBound) })
	return ctx, func() { timer.Stop(); cancel(nil) }
}

// errBound is the cause of an attempt's end by its own bound.
var errBound = errors.New("the attempt took too long")

// timed is an attempt's error, which says so when it was the bound that ended it.
func timed(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errBound) {
		return status.FromContextError(context.DeadlineExceeded).Err()
	}
	return err
}

// run goes on after the first attempt has begun: when that has come to nothing, or
// beside it.
func (c *chase) run(ctx context.Context) (outcome, error) {
	if _, ok := ctx.Deadline(); !ok && c.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, c.start.Add(c.limit))
		defer cancel()
	}
	f, all := c.f, c.attempts()
	all.ctx, all.cancel = context.WithCancel(f.authorized(ctx))
	defer all.end()
	wait := time.NewTimer(0)
	defer wait.Stop()
	next := func() {
		if c.next(); c.patience != nil && c.last >= 0 {
			wait.Reset(c.patience(c.last))
		}
	}
	for {
		var more <-chan time.Time
		if c.pause > 0 || c.patience != nil && c.idle() {
			more = wait.C
		}
		select {
		case o := <-all.done:
			delete(all.busy, o.at)
			if o.err == nil {
				all.end()
				f.answered(o, c.first, c.n > 1 && c.failed == 0)
				return o, nil
			}
			if ctx.Err() != nil || !(elsewhere(o.err) || late(o.err)) {
				return o, decode(o.err)
			}
			if o.at == c.first {
				f.forgetLeader()
			}
			if err := c.gone(o); err != nil {
				return o, err
			}
			if free := len(f.conns) - len(all.busy); c.n >= len(f.conns) && c.failed%free == 0 { // a round is over
				c.pause = min(firstPause<<min((c.n-1)/len(f.conns), 4), time.Second)
				wait.Reset(c.pause)
				continue
			}
			next()
		case <-more:
			if c.pause == 0 && c.last >= 0 { // the node may have been reached since
				if left := c.patience(c.last) - time.Since(c.began); left > 0 {
					wait.Reset(left)
					continue
				}
			}
			next()
		case <-ctx.Done():
			if c.err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return outcome{}, c.gaveUp(c.err)
			}
			return outcome{}, decode(status.FromContextError(ctx.Err()).Err())
		}
	}
}

// idle says whether the next node is not being asked now, in the first round: later
// rounds are for nodes that may be slow.
func (c *chase) idle() bool { return c.n < len(c.f.conns) && !c.all.busy[c.asked] }

// next asks the next node that is not being asked already; c.last says which.
func (c *chase) next() {
	c.pause, c.began, c.last = 0, time.Now(), -1
	for range c.f.conns {
		at := c.asked
		c.asked = (at + 1) % len(c.f.conns)
		if !c.all.busy[at] {
			if c.f.cfg.OnResend != nil {
				c.f.cfg.OnResend()
			}
			n := c.n
			c.all.start(n, at, func(ctx context.Context, o *outcome) {
				ctx, stop := c.bounded(ctx, n)
				defer stop()
				c.call(ctx, o)
				o.err = timed(ctx, o.err)
			})
			c.n, c.last = n+1, at
			return
		}
	}
}

// gone takes note of an attempt that came to nothing; an error when patience has
// run out.
func (c *chase) gone(o outcome) error {
	nodes := len(c.f.conns)
	c.failed, c.err = c.failed+1, o.err
	if c.why == nil {
		c.why = map[int]reason{}
	}
	if _, before := c.why[o.at]; !before {
		c.tried = append(c.tried, o.at)
	}
	c.why[o.at] = c.f.reach[o.at].why(o.err)
	rounds := 1
	if late(o.err) { // there are nodes, which may be slow: each gets a longer try
		rounds = 2
	}
	if time.Since(c.start) >= c.f.cfg.Patience && c.failed >= rounds*nodes || c.hopeless() {
		return c.gaveUp(o.err)
	}
	if !c.noted && c.f.cfg.OnRetry != nil && c.failed >= nodes {
		c.noted = true
		text := why(o.err)
		if r := c.why[o.at]; r.text != "" {
			text += " (" + c.f.cfg.Addresses[o.at] + ": " + r.text + ")"
		}
		c.f.cfg.OnRetry(text)
	}
	return nil
}

// hopeless says whether no node can be reached however often it is tried: each has a
// certificate that we do not accept, or is no node.
func (c *chase) hopeless() bool {
	for at := range c.f.conns {
		if !c.why[at].forGood {
			return false
		}
	}
	return true
}

// gaveUp keeps a node's own reason and names who was asked.
func (c *chase) gaveUp(err error) error {
	var addrs, reasons []string
	for _, at := range c.tried {
		addrs, reasons = append(addrs, c.f.cfg.Addresses[at]), append(reasons, c.why[at].text)
	}
	e, ok := rpcerr.Decode(err)
	if !ok {
		return unreachable(together(addrs, reasons), err)
	}
	named := *e
	named.Message += " (tried " + join(addrs) + ")"
	return &named
}
