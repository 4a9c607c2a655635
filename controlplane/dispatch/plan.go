package dispatch

import (
	"fmt"
	"maps"
	"time"

	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/internal/mutant"
	"bmc/metal"
)

// plan is one look at the state: what is due now, and when to look again.
// Everything is computed from the state, so a new leader needs no memory of
// the old one's timers.
type plan struct {
	term *term
	now  time.Time
	next time.Time
	due  []command
}

// before makes sure that the next look comes by t.
func (p *plan) before(t time.Time) {
	if t.Before(p.next) {
		p.next = t
	}
}

// add makes a command due unless the same one was proposed just now: what is
// refused again and again must not spin.
func (p *plan) add(key string, cmd *logpb.Command) {
	t := p.term
	t.mu.Lock()
	defer t.mu.Unlock()
	if at, ok := t.tried[key]; ok && p.now.Sub(at) < again {
		p.before(at.Add(again))
		return
	}
	maps.DeleteFunc(t.tried, func(_ string, at time.Time) bool { return p.now.Sub(at) >= again })
	t.tried[key] = p.now
	p.due = append(p.due, command{key, cmd})
}

// operation assigns one and watches its deadline.
func (p *plan) operation(v *state.View, op *metal.Operation) {
	s, ok := v.Server(op.ServerID)
	if !ok {
		return
	}
	r, ok := v.Rack(s.RackID)
	if !ok {
		return
	}
	if p.assign(op, r) {
		return // its deadline is set anew
	}
	if op.State == metal.OperationPending {
		p.pending(op, r)
		return
	}
	p.deadline(op)
}

// assign gives an operation to the holder of its rack's lease, unless it has it.
func (p *plan) assign(op *metal.Operation, r *metal.Rack) bool {
	if op.State != metal.OperationPending && (op.Agent == r.Lease.Agent && op.Epoch == r.Lease.Epoch || mutant.On("no-reassign")) {
		return false
	}
	if r.HoldsBack(op) || r.Lease.Agent == "" || !p.term.held(r, p.now) { // a frozen rack refuses it, time and again
		return false
	}
	p.add(fmt.Sprintf("assign/%s/%d/%s/%d", op.ID, op.Attempt, r.Lease.Agent, r.Lease.Epoch),
		&logpb.Command{Command: &logpb.Command_AssignOperation{AssignOperation: &logpb.AssignOperation{
			OperationId: op.ID, Attempt: int64(op.Attempt), AgentId: r.Lease.Agent, Epoch: r.Lease.Epoch}}})
	return true
}

// pending marks an operation late that waits for an agent for too long, and not for an
// operator to thaw its rack.
func (p *plan) pending(op *metal.Operation, r *metal.Rack) {
	if op.Late || r.Stopped() && op.Started.IsZero() {
		return
	}
	if at := waitsSince(op).Add(pendingLate); p.now.Before(at) {
		p.before(at)
		return
	}
	p.late(op, "")
}

// deadline marks a step late half-way, and ends it when its time is over.
func (p *plan) deadline(op *metal.Operation) {
	if op.Deadline.IsZero() {
		return
	}
	step := op.Current()
	if !p.now.Before(op.Deadline) {
		p.add(fmt.Sprintf("expire/%s/%d/%s", op.ID, op.Attempt, step),
			&logpb.Command{Command: &logpb.Command_ExpireStep{ExpireStep: &logpb.ExpireStep{
				OperationId: op.ID, Attempt: int64(op.Attempt), Step: string(step)}}})
		return
	}
	p.before(op.Deadline)
	if mutant.On("no-alarm") {
		return
	}
	half := op.Deadline.Add(-fsm.StepDeadline(step) / 2)
	switch {
	case op.Late:
	case p.now.Before(half):
		p.before(half)
	default:
		p.late(op, step)
	}
}

func (p *plan) late(op *metal.Operation, step metal.Step) {
	p.add(fmt.Sprintf("late/%s/%d/%s", op.ID, op.Attempt, step),
		&logpb.Command{Command: &logpb.Command_MarkLate{MarkLate: &logpb.MarkLate{
			OperationId: op.ID, Attempt: int64(op.Attempt), Step: string(step)}}})
}

// loans takes back addresses that were lent to machines that nobody knows. Those
// that end within a minute go together.
func (p *plan) loans(v *state.View, r *metal.Rack) {
	var first time.Time
	for l := range v.Loans(r.ID) {
		if first.IsZero() || l.Expires.Before(first) {
			first = l.Expires
		}
	}
	if first.IsZero() {
		return
	}
	if at := first.Add(loanGrace); p.now.Before(at) {
		p.before(at)
		return
	}
	p.add("loans/"+r.ID, &logpb.Command{Command: &logpb.Command_ExpireLoans{ExpireLoans: &logpb.ExpireLoans{RackId: r.ID}}})
}

// rack raises agent_lost on the servers of a rack whose agent has been silent
// for a while, and clears it when one has the rack again.
func (p *plan) rack(v *state.View, r *metal.Rack) {
	p.loans(v, r)
	if r.Lease.Epoch == 0 {
		return // it never had an agent: nothing is lost
	}
	lost := false
	if !p.term.held(r, p.now) {
		at := p.term.silentSince(r).Add(lostAfter)
		if lost = !p.now.Before(at); !lost {
			p.before(at)
			return
		}
	} else {
		p.before(p.term.silentSince(r))
	}
	var obs []*logpb.Observation
	for s := range v.Servers(state.ServerFilter{RackID: r.ID}) {
		if _, shown := s.Conditions[metal.ConditionAgentLost]; shown == lost {
			continue
		}
		o := &logpb.Observation{ServerId: s.ID}
		if lost {
			o.Raised, o.Message = []string{string(metal.ConditionAgentLost)}, "no agent of rack "+r.Name+" has answered for a while"
		} else {
			o.Cleared = []string{string(metal.ConditionAgentLost)}
		}
		obs = append(obs, o)
	}
	if len(obs) > 0 {
		p.add(fmt.Sprintf("agent-lost/%s/%d/%v", r.ID, r.Lease.Epoch, lost),
			&logpb.Command{Command: &logpb.Command_Observe{Observe: &logpb.Observe{RackId: r.ID, Observations: obs}}})
	}
}

// waitsSince is when an operation last began to wait for an agent.
func waitsSince(op *metal.Operation) time.Time {
	if op.Queued.IsZero() { // of before feature level 2
		return op.Created
	}
	return op.Queued
}
