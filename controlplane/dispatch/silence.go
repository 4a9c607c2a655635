package dispatch

import (
	"context"
	"time"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// When a silent lease is marked in the log, so that the next leader does not begin
// to count it anew. Agents renew every 5 s, and wait 3 s at most for a node's
// answer: the marks of a lease that was renewed in this term come later.
const (
	firstMark  = 8 * time.Second
	secondMark = 12 * time.Second
	// hasteMark is between marks of a lease that no leader of late has seen renewed:
	// this one may not live for long either.
	hasteMark    = time.Second
	recentTerm   = 30 * time.Second // a leader that led before, or was started, so recently is hasty
	silenceNap   = 2 * time.Second  // between looks when nothing is due: less than firstMark, for leases that are new
	silenceLevel = 5                // feature level that knows marks
)

// nextMark is the silence at which a lease is to be marked next; 0: never. More
// than TTL+Skew says nothing more.
func (t *term) nextMark(l *lease) time.Duration {
	switch {
	case l.marked >= TTL+Skew:
		return 0
	case !l.seen && (t.hasty || l.marked > 0):
		return min(l.marked+hasteMark, TTL+Skew)
	case l.marked < firstMark:
		return firstMark
	case l.marked < secondMark:
		return secondMark
	}
	return 0
}

// watchSilence writes marks until the term ends.
func (d *Dispatcher) watchSilence(t *term) {
	for {
		v := d.raft.View()
		nap := silenceNap
		if v.Meta().FeatureLevel >= silenceLevel {
			var due []*logpb.Silence
			var busy chan struct{}
			if due, busy, nap = t.silent(v, time.Now()); len(due) > 0 {
				d.mark(t, due, busy)
			}
		}
		timer := time.NewTimer(nap)
		select {
		case <-timer.C:
		case <-t.ctx.Done():
			timer.Stop()
			return
		}
	}
}

// silent notes which leases are to be marked, by one command, and how long it is
// until the next. What it has noted counts as marked whatever becomes of the command.
func (t *term) silent(v *state.View, now time.Time) (due []*logpb.Silence, busy chan struct{}, nap time.Duration) {
	busy, nap = make(chan struct{}), silenceNap
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range v.Racks() {
		l := t.leases[r.ID]
		if l == nil || l.granting || l.doubt || l.busy != nil || r.Lease.Epoch == 0 {
			continue
		}
		at := t.nextMark(l)
		if at == 0 {
			continue
		}
		silence := now.Sub(l.renewed)
		if silence < at {
			nap = min(nap, at-silence)
			continue
		}
		l.marked, l.busy = min(silence, TTL+Skew), busy
		nap = min(nap, hasteMark)
		due = append(due, &logpb.Silence{RackId: r.ID, Epoch: r.Lease.Epoch, Silent: int64(l.marked)})
	}
	return due, busy, nap
}

// mark proposes marks. Renewals of those leases wait for its end: raft keeps the
// order in which it is given commands, so that a clear comes after the mark even
// if the mark's outcome is unknown.
func (d *Dispatcher) mark(t *term, due []*logpb.Silence, busy chan struct{}) {
	d.one(t, command{"silence", &logpb.Command{Command: &logpb.Command_MarkSilence{MarkSilence: &logpb.MarkSilence{Racks: due}}}})
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range due {
		t.leases[s.GetRackId()].busy = nil
	}
	close(busy)
}

// clear takes a mark back and acknowledges the renewal for which that was asked. A
// commit in this term is word enough that it leads: who leads in a later one was
// elected after the renewal's arrival, and has this command in its log.
func (d *Dispatcher) clear(ctx context.Context, t *term, r *metal.Rack, arrival time.Time) (Lease, error) {
	res, err := d.settled(ctx, t, &logpb.Command{Command: &logpb.Command_ClearSilence{
		ClearSilence: &logpb.ClearSilence{RackId: r.ID, Epoch: r.Lease.Epoch}}})
	t.mu.Lock()
	l := t.leases[r.ID]
	close(l.busy)
	l.busy, l.clearing = nil, false
	if err == nil && res.Err == nil {
		l.marked = 0
		l.acknowledge(arrival)
	}
	t.mu.Unlock()
	if err != nil {
		return Lease{}, err
	}
	if res.Err != nil { // the agent was removed, or a backup restored
		return Lease{}, res.Err
	}
	t.nudge() // it may have run out: what waited for an agent may go on
	return heldAs(r.Lease), nil
}
