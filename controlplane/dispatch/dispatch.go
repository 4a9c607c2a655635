// Package dispatch is what only the leader does: it leases racks to agents,
// gives operations to the leases' holders, and watches the steps' deadlines.
package dispatch

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// What a lease promises. Agents stop acting TTL after they sent their last
// acknowledged renewal; the leader waits Skew longer, for clocks that run at
// different speeds.
const (
	TTL  = 15 * time.Second
	Skew = 2 * time.Second
)

const (
	lostAfter   = 30 * time.Second      // without a holder, until its servers show agent_lost
	pendingLate = time.Minute           // until an operation that waits for an agent shows late
	again       = 5 * time.Second       // until a refused or failed command is proposed again
	gather      = 10 * time.Millisecond // changes that come together are looked at together
	lookShare   = 9                     // rests at least so many times as long as a look took: 40,000 open operations take long
	proposeWait = 10 * time.Second      // for one command
	inFlight    = 16                    // commands at once
	longestNap  = 30 * time.Second      // between looks when nothing is due
	loanGrace   = time.Minute           // past the end of a lent address, until it is taken back
)

// Consensus is what dispatch needs of this node's Raft.
type Consensus interface {
	// ProposeIn returns what the state machine answered; NO_LEADER when this node
	// does not lead in that term, and the command is in no log.
	ProposeIn(ctx context.Context, term uint64, cmd *logpb.Command) (*fsm.Result, error)
	// VerifyLeaderIn returns nil when a majority, asked after the call began,
	// still takes this node for the leader of that term.
	VerifyLeaderIn(ctx context.Context, term uint64) error
	View() *state.View
	// Changed is closed at the next publication of a View.
	Changed() <-chan struct{}
}

// Dispatcher is made once a node; it works while Run runs.
type Dispatcher struct {
	raft Consensus
	log  *slog.Logger
	made time.Time

	mu   sync.Mutex
	term *term     // nil: this node does not lead
	led  time.Time // when it last did
}

// term is what a leader remembers; it is forgotten with the leadership.
type term struct {
	ctx    context.Context // ends with the leadership
	number uint64          // raft's
	began  time.Time
	hasty  bool          // leaders may be changing all the time: see silence.go
	wake   chan struct{} // capacity 1: a lease has changed in memory
	mu     sync.Mutex
	leases map[string]*lease           // by rack ID
	tried  map[string]time.Time        // when a command was last proposed, by its key
	asked  map[string]map[string]asked // by rack and agent ID
}

// New returns a Dispatcher, idle until Run.
func New(raft Consensus, log *slog.Logger) *Dispatcher {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Dispatcher{raft: raft, log: log, made: time.Now()}
}

// Run does the leader's work of a term until ctx ends. It must be called after the
// term's barrier, when the state holds everything that former leaders have granted
// and marked.
func (d *Dispatcher) Run(ctx context.Context, number uint64) {
	t := d.begin(ctx, number)
	var wg sync.WaitGroup
	wg.Go(func() { d.watchSilence(t) })
	defer func() {
		wg.Wait()
		d.mu.Lock()
		d.term, d.led = nil, time.Now()
		d.mu.Unlock()
	}()
	for ctx.Err() == nil {
		changed := d.raft.Changed()
		began := time.Now()
		next := d.look(t, d.raft.View(), began)
		if !d.rest(t, changed, next, max(gather, lookShare*time.Since(began))) {
			return
		}
	}
}

func (d *Dispatcher) begin(ctx context.Context, number uint64) *term {
	now := time.Now()
	t := &term{ctx: ctx, number: number, began: now, wake: make(chan struct{}, 1), leases: map[string]*lease{}, tried: map[string]time.Time{}, asked: map[string]map[string]asked{}}
	for r := range d.raft.View().Racks() {
		if r.Lease.Epoch > 0 {
			// As if renewed this moment: a former leader may have acknowledged
			// a renewal just before, to the holder or to one dropped since. Where
			// the state has a mark, none has for so long before the mark, and
			// none after it.
			t.leases[r.ID] = &lease{agent: r.Lease.Agent, renewed: now.Add(-r.Lease.Silent), marked: r.Lease.Silent}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	t.hasty = now.Sub(d.made) < recentTerm || !d.led.IsZero() && now.Sub(d.led) < recentTerm
	d.term = t
	return t
}

// rest waits for a change or until next, and then a little for others. It is false
// when the term has ended.
func (d *Dispatcher) rest(t *term, changed <-chan struct{}, next time.Time, gather time.Duration) bool {
	timer := time.NewTimer(max(time.Until(next), gather))
	defer timer.Stop()
	select {
	case <-changed:
	case <-t.wake:
	case <-timer.C:
		return true
	case <-t.ctx.Done():
		return false
	}
	pause := time.NewTimer(gather)
	defer pause.Stop()
	select {
	case <-pause.C:
		return true
	case <-t.ctx.Done():
		return false
	}
}

// look proposes what is due and returns when it must look again at the latest.
func (d *Dispatcher) look(t *term, v *state.View, now time.Time) time.Time {
	p := &plan{term: t, now: now, next: now.Add(longestNap)}
	for op := range v.OpenOperations("") {
		p.operation(v, op)
	}
	for r := range v.Racks() {
		p.rack(v, r)
		p.warm(v, r)
	}
	d.propose(t, p.due)
	if len(p.due) > 0 { // answers change the state; failures are tried again
		p.before(now.Add(again))
	}
	return p.next
}

// command is one thing to propose; key says when two are the same.
type command struct {
	key string
	cmd *logpb.Command
}

// propose sends commands, several at once, and waits for their end.
func (d *Dispatcher) propose(t *term, due []command) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, inFlight)
	for _, c := range due {
		select {
		case slots <- struct{}{}:
		case <-t.ctx.Done():
		}
		if t.ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			d.one(t, c)
		})
	}
	wg.Wait()
}

func (d *Dispatcher) one(t *term, c command) {
	ctx, cancel := context.WithTimeout(t.ctx, proposeWait)
	defer cancel()
	c.cmd.Header = header()
	res, err := d.raft.ProposeIn(ctx, t.number, c.cmd)
	switch {
	case err != nil:
		d.log.Warn("leader's command failed", "command", fsm.Name(c.cmd), "key", c.key, "err", err)
	case res.Err != nil: // the state has moved on; the next look sees it
		d.log.Debug("leader's command was refused", "command", fsm.Name(c.cmd), "key", c.key, "err", res.Err)
	default:
		d.log.Info("leader's command done", "command", fsm.Name(c.cmd), "key", c.key)
	}
}

func header() *logpb.Header {
	return &logpb.Header{Time: time.Now().UnixNano(), Principal: "system", Role: string(metal.RoleAdmin)}
}
