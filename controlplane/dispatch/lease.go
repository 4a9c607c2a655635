package dispatch

import (
	"context"
	"slices"
	"sync"
	"time"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// lease is what the leader remembers of a rack's lease beside the log.
type lease struct {
	mu      sync.Mutex // serializes renewals and takeovers of one rack
	renewed time.Time  // carries the monotonic clock
	lost    *bool      // what the servers' agent_lost was last made to say
}

// Lease is the answer to a renewal.
type Lease struct {
	Held       bool
	Generation uint64
	Epoch      uint64
	TTL        time.Duration
	Holder     string // agent ID, when not held
}

// errNotLeading is what an agent gets that asks a node which does not lead.
func errNotLeading() error {
	return metal.Errorf(metal.CodeNoLeader, "this node does not lead")
}

func (d *Dispatcher) lease(rackID string) (*lease, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leases == nil {
		return nil, errNotLeading()
	}
	l := d.leases[rackID]
	if l == nil { // a rack made in this term: nobody can hold it yet
		l = &lease{renewed: time.Now()}
		d.leases[rackID] = l
	}
	return l, nil
}

// holder returns the agent that may act on a rack now and until when, or "".
func (d *Dispatcher) holder(r *metal.Rack, now time.Time) (string, time.Time) {
	l, err := d.lease(r.ID)
	if err != nil || r.Lease.Agent == "" {
		return "", time.Time{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	expires := l.renewed.Add(TTL + Skew)
	if !now.Before(expires) {
		return "", time.Time{}
	}
	return r.Lease.Agent, expires
}

// RenewLease renews the lease of a rack for its holder, or grants it to an
// agent when nobody's runs. A renewal is acknowledged only after a majority,
// asked after its arrival, has confirmed this leader: a later leader then knows
// of no older moment. Errors: NO_LEADER, NOT_FOUND, PERMISSION_DENIED.
func (d *Dispatcher) RenewLease(ctx context.Context, agentID, rackID string) (Lease, error) {
	l, err := d.lease(rackID)
	if err != nil {
		return Lease{}, err
	}
	if err := d.raft.VerifyLeader(ctx); err != nil {
		return Lease{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	v := d.raft.View()
	r, err := allowed(v, agentID, rackID)
	if err != nil {
		return Lease{}, err
	}
	now := time.Now()
	switch {
	case r.Lease.Agent == agentID:
		l.renewed = now
		d.wake()
		return held(r.Lease), nil
	case r.Lease.Agent != "" && now.Before(l.renewed.Add(TTL+Skew)):
		return Lease{TTL: TTL, Holder: r.Lease.Agent}, nil
	}
	return d.grant(ctx, l, r, agentID)
}

// grant proposes the takeover; the rack's lock is held, so that no renewal of
// the former holder comes in between.
func (d *Dispatcher) grant(ctx context.Context, l *lease, r *metal.Rack, agentID string) (Lease, error) {
	res, err := d.raft.Propose(ctx, &logpb.Command{
		Header: &logpb.Header{Time: time.Now().UnixNano(), Principal: "system"},
		Command: &logpb.Command_GrantLease{GrantLease: &logpb.GrantLease{
			RackId: r.ID, AgentId: agentID, ExpectedEpoch: r.Lease.Epoch}}})
	if err != nil {
		return Lease{}, err
	}
	if res.Err != nil {
		return Lease{}, res.Err
	}
	granted, ok := res.Value.(metal.Lease)
	if !ok {
		return Lease{}, metal.Errorf(metal.CodeInternal, "a granted lease is a %T", res.Value)
	}
	l.renewed = time.Now()
	d.log.Info("rack has a new lease holder", "rack", r.Name, "agent", agentID, "epoch", granted.Epoch)
	d.wake()
	return held(granted), nil
}

func held(l metal.Lease) Lease {
	return Lease{Held: true, Generation: l.Generation, Epoch: l.Epoch, TTL: TTL, Holder: l.Agent}
}

// allowed returns the rack if the agent's record names it.
func allowed(v *state.View, agentID, rackID string) (*metal.Rack, error) {
	r, ok := v.Rack(rackID)
	if !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "there is no rack %q", rackID)
	}
	a, ok := v.Agent(agentID)
	if !ok || !slices.Contains(a.Racks, r.ID) {
		return nil, metal.Errorf(metal.CodeDenied, "this agent may not serve rack %s", r.Name)
	}
	return r, nil
}

func (d *Dispatcher) wake() {
	select {
	case d.poke <- struct{}{}:
	default:
	}
}

// reportLost makes the condition agent_lost of a rack's servers say whether
// somebody holds its lease: one command an edge.
func (d *Dispatcher) reportLost(ctx context.Context, v *state.View, r *metal.Rack, lost bool) error {
	l, err := d.lease(r.ID)
	if err != nil {
		return err
	}
	l.mu.Lock()
	known := l.lost != nil && *l.lost == lost
	l.mu.Unlock()
	if known || (lost && r.Lease.Epoch == 0) { // a rack that never had an agent has lost none
		return nil
	}
	o := &logpb.Observe{RackId: r.ID}
	for s := range v.Servers(state.ServerFilter{RackID: r.ID}) {
		if _, has := s.Conditions[metal.ConditionAgentLost]; has == lost {
			continue
		}
		seen := &logpb.Observation{ServerId: s.ID}
		if lost {
			seen.Raised, seen.Message = []string{string(metal.ConditionAgentLost)}, "no agent holds the lease of rack "+r.Name
		} else {
			seen.Cleared = []string{string(metal.ConditionAgentLost)}
		}
		o.Observations = append(o.Observations, seen)
	}
	if len(o.Observations) > 0 {
		if err := d.propose(ctx, &logpb.Command{Command: &logpb.Command_Observe{Observe: o}}); err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.lost = &lost
	l.mu.Unlock()
	return nil
}
