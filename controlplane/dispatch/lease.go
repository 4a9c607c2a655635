package dispatch

import (
	"context"
	"slices"
	"time"

	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/internal/mutant"
	"bmc/metal"
)

// lease is what the leader remembers of a rack beside the state. It outlives
// the state's own record: an agent that was dropped there still acts until its
// time is over.
type lease struct {
	agent   string    // that last renewed; "": somebody, before this term
	renewed time.Time // arrival of its last acknowledged renewal
	granting,
	doubt bool // a grant is under way; one ended with an unknown outcome

	seen     bool          // it was renewed or granted in this term
	marked   time.Duration // silence that the log says, or may come to say
	busy     chan struct{} // a mark is being written, or taken back; closed at the end
	clearing bool          // it is being taken back, for the holder
}

// acknowledge counts a renewal. The term's lock is held.
func (l *lease) acknowledge(arrival time.Time) {
	if arrival.After(l.renewed) {
		l.renewed = arrival
	}
	l.seen = true
}

// expires is when a successor may be let in.
func (l *lease) expires() time.Time { return l.renewed.Add(TTL + Skew) }

// Lease is the answer to a renewal.
type Lease struct {
	Held       bool
	Generation uint64
	Epoch      uint64
	TTL        time.Duration // from the moment when the agent sent its request
	Holder     string        // when not held; "" when nobody is known to
}

func (d *Dispatcher) current() *term {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.term
}

func errNotLeading() error {
	return metal.Errorf(metal.CodeNoLeader, "this node is not the leader").WithHint("bmc cluster peers")
}

// RenewLease takes or renews a rack's lease for an agent. A renewal is
// acknowledged once leadership was confirmed after its arrival: a leader that
// was replaced cannot prolong what its successor has let run out. If the log may
// say that the lease was silent, that is taken back first. An agent that says that it
// cannot run operations gets no lease while another one asks that can. Errors: NO_LEADER, PERMISSION_DENIED, NOT_FOUND, UNKNOWN_OUTCOME.
func (d *Dispatcher) RenewLease(ctx context.Context, agentID, rackID string) (Lease, error) {
	t := d.current()
	if t == nil {
		return Lease{}, errNotLeading()
	}
	arrival := time.Now()
	if err := d.authority(agentID, rackID); err != nil {
		return Lease{}, err
	}
	if err := d.raft.VerifyLeaderIn(ctx, t.number); err != nil && !mutant.On("no-verify-leader") {
		return Lease{}, err
	}
	for {
		r, ok := d.raft.View().Rack(rackID)
		if !ok {
			return Lease{}, metal.Errorf(metal.CodeNotFound, "there is no rack %s", rackID)
		}
		if t.yields(rackID, agentID) { // what it holds runs out, as if it were dead
			return Lease{Generation: r.Lease.Generation, Epoch: r.Lease.Epoch, TTL: TTL}, nil
		}
		verdict, holder, busy := t.judge(r, agentID, arrival)
		switch verdict {
		case renewed:
			return heldAs(r.Lease), nil
		case refused:
			return Lease{Generation: r.Lease.Generation, Epoch: r.Lease.Epoch, TTL: TTL, Holder: holder}, nil
		case marked:
			return d.clear(ctx, t, r, arrival)
		case grantable:
			return d.grant(ctx, t, r, agentID, arrival)
		case waits:
			select {
			case <-busy:
			case <-ctx.Done():
				return Lease{}, ctx.Err()
			}
		}
	}
}

func heldAs(l metal.Lease) Lease {
	return Lease{Held: true, Generation: l.Generation, Epoch: l.Epoch, TTL: TTL}
}

// authority refuses agents that may not serve a rack.
func (d *Dispatcher) authority(agentID, rackID string) error {
	v := d.raft.View()
	if _, ok := v.Rack(rackID); !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no rack %s", rackID)
	}
	a, ok := v.Agent(agentID)
	if !ok {
		return metal.Errorf(metal.CodeDenied, "agent %s is not a member of this cluster", agentID)
	}
	if !slices.Contains(a.Racks, rackID) {
		return metal.Errorf(metal.CodeDenied, "agent %s may not serve rack %s", a.Name, rackID)
	}
	return nil
}

type verdict int

const (
	refused verdict = iota // somebody else has it, or a grant is under way
	renewed
	grantable // and noted as being granted: grant must follow
	marked    // and noted as being cleared: clear must follow
	waits     // for busy, to be judged again
)

// judge decides on a renewal under one lock, so that a renewal and a grant to
// somebody else cannot both win.
func (t *term) judge(r *metal.Rack, agentID string, arrival time.Time) (_ verdict, holder string, busy <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.leases[r.ID]
	if l == nil {
		l = &lease{}
		t.leases[r.ID] = l
	}
	switch {
	case l.granting:
		return refused, l.agent, nil
	case r.Lease.Agent == agentID && l.agent == agentID && !l.doubt:
		if l.busy != nil {
			return waits, "", l.busy
		}
		if l.marked+r.Lease.Silent > 0 && !mutant.On("keep-mark") {
			l.busy, l.clearing = make(chan struct{}), true
			return marked, "", nil
		}
		if !time.Now().Before(l.expires()) {
			t.nudge() // it had run out: what waited for an agent may go on
		}
		l.acknowledge(arrival)
		return renewed, "", nil
	case l.clearing: // the holder is back
		return refused, l.agent, nil
	case l.agent != agentID && !l.renewed.IsZero() && time.Now().Before(l.expires()) && !mutant.On("early-grant"):
		return refused, l.agent, nil
	}
	l.granting = true
	return grantable, "", nil
}

// settled proposes a command that decides about a lease. Its own deadline, not the
// caller's, bounds it: the caller may be gone, the rack must not stay in doubt for that.
func (d *Dispatcher) settled(ctx context.Context, t *term, cmd *logpb.Command) (*fsm.Result, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), proposeWait)
	defer cancel()
	stop := context.AfterFunc(t.ctx, cancel)
	defer stop()
	cmd.Header = header()
	return d.raft.ProposeIn(ctx, t.number, cmd)
}

// grant proposes a new epoch.
func (d *Dispatcher) grant(ctx context.Context, t *term, r *metal.Rack, agentID string, arrival time.Time) (Lease, error) {
	res, err := d.settled(ctx, t, &logpb.Command{Command: &logpb.Command_GrantLease{
		GrantLease: &logpb.GrantLease{RackId: r.ID, AgentId: agentID, ExpectedEpoch: r.Lease.Epoch}}})
	t.mu.Lock()
	l := t.leases[r.ID]
	l.granting = false
	switch {
	case err != nil:
		l.doubt = l.doubt || metal.CodeOf(err) != metal.CodeNoLeader
	case res.Err == nil:
		l.agent, l.renewed, l.doubt = agentID, arrival, false
		l.seen, l.marked = true, 0 // a mark of before is of another epoch
	}
	t.mu.Unlock()
	if err != nil {
		return Lease{}, err
	}
	if res.Err != nil {
		if res.Err.Code == metal.CodeStaleEpoch { // a grant in doubt was applied after all
			return d.settle(t, r.ID, agentID)
		}
		return Lease{}, res.Err
	}
	granted, ok := res.Value.(metal.Lease)
	if !ok {
		granted = metal.Lease{Agent: agentID, Epoch: r.Lease.Epoch + 1}
	}
	d.log.Info("rack leased", "rack", r.ID, "agent", agentID, "epoch", granted.Epoch)
	t.nudge()
	return heldAs(granted), nil
}

// settle takes the state's word for who holds a rack. Its holder gets a whole
// TTL: when its grant was answered is not known.
func (d *Dispatcher) settle(t *term, rackID, agentID string) (Lease, error) {
	r, ok := d.raft.View().Rack(rackID)
	if !ok {
		return Lease{}, metal.Errorf(metal.CodeNotFound, "there is no rack %s", rackID)
	}
	t.mu.Lock()
	l := t.leases[rackID]
	l.agent, l.renewed, l.doubt = r.Lease.Agent, time.Now(), false
	t.mu.Unlock()
	// Even for the caller: it asks again, and is acknowledged properly.
	return Lease{Generation: r.Lease.Generation, Epoch: r.Lease.Epoch, TTL: TTL, Holder: r.Lease.Agent}, nil
}

// held says whether the holder in the state has renewed in time, as far as
// this leader knows.
func (t *term) held(r *metal.Rack, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.leases[r.ID]
	return l != nil && r.Lease.Agent != "" && l.agent == r.Lease.Agent && now.Before(l.expires())
}

// silentSince is when the rack's last lease ran out, or will.
func (t *term) silentSince(r *metal.Rack) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.leases[r.ID]; l != nil {
		return l.expires()
	}
	return t.began.Add(TTL + Skew)
}

// nudge makes Run look again.
func (t *term) nudge() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}
