// Package dispatch is the leader's loop: it gives open operations to the holder
// of their rack's lease, watches deadlines, and grants racks to agents. It acts
// by proposing commands alone; the FSM has the last word on each, so that what
// two leaders propose in a row does no harm.
package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// Times of a lease. An agent counts TTL from the moment of sending a renewal;
// the leader waits for TTL and Skew from a later moment.
const (
	TTL  = 15 * time.Second
	Skew = 2 * time.Second
)

// pendingLate is how long an operation may wait for an agent before it is late.
const pendingLate = time.Minute

// Consensus is what dispatch needs of this node's Raft.
type Consensus interface {
	Propose(ctx context.Context, cmd *logpb.Command) (*fsm.Result, error)
	// VerifyLeader returns nil when a majority, asked after the call began,
	// still takes this node for the leader.
	VerifyLeader(ctx context.Context) error
	View() *state.View
	// Changed is closed at the next publication of a View.
	Changed() <-chan struct{}
}

// Dispatcher is idle until Run. Its methods are for any goroutine.
type Dispatcher struct {
	raft Consensus
	log  *slog.Logger

	mu     sync.Mutex
	leases map[string]*lease // by rack ID; nil while not leading
	poke   chan struct{}     // wakes the loop when a lease was renewed
}

// New returns a dispatcher for this node.
func New(raft Consensus, log *slog.Logger) *Dispatcher {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Dispatcher{raft: raft, log: log, poke: make(chan struct{}, 1)}
}

// Run leads: call it once this node's term has passed its Barrier, and end ctx
// when leadership is lost. Every lease counts as renewed at the start, since the
// former leader may have just acknowledged a renewal.
func (d *Dispatcher) Run(ctx context.Context) {
	started := time.Now()
	d.mu.Lock()
	d.leases = map[string]*lease{}
	for r := range d.raft.View().Racks() {
		d.leases[r.ID] = &lease{renewed: started}
	}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.leases = nil
		d.mu.Unlock()
	}()
	d.log.Info("dispatch starts")
	defer d.log.Info("dispatch stops")
	for ctx.Err() == nil {
		changed := d.raft.Changed()
		next := d.pass(ctx, d.raft.View())
		t := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-d.poke:
		case <-t.C:
		}
		t.Stop()
	}
}

// idle is how long the loop sleeps at most, and how soon it tries again what
// could not be proposed.
const (
	idle  = 30 * time.Second
	again = 500 * time.Millisecond
)

// pass does what a View asks for and returns when to look again even if nothing
// changes.
func (d *Dispatcher) pass(ctx context.Context, v *state.View) time.Time {
	now := time.Now()
	next := now.Add(idle)
	soon := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for r := range v.Racks() {
		holder, expires := d.holder(r, now)
		if holder != "" {
			soon(expires)
		}
		if err := d.reportLost(ctx, v, r, holder == ""); err != nil {
			d.failed("report the agent of a rack", err, "rack", r.Name)
			soon(now.Add(again))
		}
	}
	for op := range v.OpenOperations("") {
		due, err := d.tend(ctx, v, op, now)
		if err != nil {
			d.failed("move an operation on", err, "operation", op.ID)
			due = now.Add(again)
		}
		soon(due)
	}
	return next
}

// tend assigns an operation and watches its deadline; it returns when to look
// at it again.
func (d *Dispatcher) tend(ctx context.Context, v *state.View, op *metal.Operation, now time.Time) (time.Time, error) {
	far := now.Add(idle)
	s, ok := v.Server(op.ServerID)
	if !ok {
		return far, nil
	}
	r, ok := v.Rack(s.RackID)
	if !ok {
		return far, nil
	}
	holder, _ := d.holder(r, now)
	if holder != "" && (op.Agent != holder || op.Epoch != r.Lease.Epoch) {
		return far, d.propose(ctx, &logpb.Command{Command: &logpb.Command_AssignOperation{AssignOperation: &logpb.AssignOperation{
			OperationId: op.ID, Attempt: int64(op.Attempt), AgentId: holder, Epoch: r.Lease.Epoch}}})
	}
	late, end := deadlines(op)
	switch {
	case !end.IsZero() && !now.Before(end):
		return far, d.propose(ctx, &logpb.Command{Command: &logpb.Command_ExpireStep{ExpireStep: &logpb.ExpireStep{
			OperationId: op.ID, Attempt: int64(op.Attempt), Step: string(op.Current())}}})
	case !op.Late && !late.IsZero() && !now.Before(late):
		step := ""
		if op.State == metal.OperationRunning {
			step = string(op.Current())
		}
		return far, d.propose(ctx, &logpb.Command{Command: &logpb.Command_MarkLate{MarkLate: &logpb.MarkLate{
			OperationId: op.ID, Attempt: int64(op.Attempt), Step: step}}})
	case !op.Late && !late.IsZero():
		return late, nil
	case !end.IsZero():
		return end, nil
	}
	return far, nil
}

// deadlines returns when an operation is late, and when its step has failed;
// zero: never. A pending operation waits for an agent without an end.
func deadlines(op *metal.Operation) (late, end time.Time) {
	if op.State == metal.OperationPending {
		return op.Created.Add(pendingLate), time.Time{}
	}
	if op.Deadline.IsZero() {
		return time.Time{}, time.Time{}
	}
	return op.Deadline.Add(-fsm.StepDeadline(op.Current()) / 2), op.Deadline
}

// propose stamps a command of the system's and hands it to Raft. A refusal by
// the FSM means that the View was old: the next pass sees better.
func (d *Dispatcher) propose(ctx context.Context, cmd *logpb.Command) error {
	cmd.Header = &logpb.Header{Time: time.Now().UnixNano(), Principal: "system"}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := d.raft.Propose(ctx, cmd)
	if err != nil {
		return err
	}
	if r.Err != nil {
		d.log.Debug("a command was refused", "command", fsm.Name(cmd), "err", r.Err)
	}
	return nil
}

func (d *Dispatcher) failed(what string, err error, args ...any) {
	if errors.Is(err, context.Canceled) || metal.CodeOf(err) == metal.CodeNoLeader {
		return // leadership ends; the next leader goes on
	}
	d.log.Warn("could not "+what, append(args, "err", err)...)
}
