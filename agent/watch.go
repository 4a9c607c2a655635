package agent

import (
	"context"
	"errors"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/pause"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

const (
	watchPauseMin = 200 * time.Millisecond
	watchPauseMax = 5 * time.Second
	saveEvery     = 250 * time.Millisecond
	reassignEvery = 10 * time.Second
)

// watch follows a rack at one node until ctx ends.
func (a *Agent) watch(ctx context.Context, n *node, r *rack) {
	wait := watchPauseMin
	for ctx.Err() == nil {
		synced, err := a.follow(ctx, n, r)
		r.gone(n.addr)
		if ctx.Err() != nil {
			return
		}
		if synced {
			wait = watchPauseMin
		}
		if e, ok := rpcerr.Decode(err); ok {
			if e.Code == metal.CodeNotMember {
				a.refused(n, e)
			}
			a.log.Warn("rack is not to be watched at this node", "rack", r.conf.Name, "node", n.addr, "err", e)
		} else {
			a.log.Debug("rack's stream broke", "rack", r.conf.Name, "node", n.addr, "err", err)
		}
		if pause.For(ctx, wait) != nil {
			return
		}
		wait = min(2*wait, watchPauseMax)
	}
}

// follow reads one stream. A snapshot, or a change in several messages, counts
// when it is complete.
func (a *Agent) follow(ctx context.Context, n *node, r *rack) (synced bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := n.control.WatchRack(ctx, &agentv1.WatchRackRequest{Rack: r.conf.Name})
	if err != nil {
		return false, err
	}
	var all *agentv1.RackUpdate // gathered until it is complete
	var generation uint64       // that the stream is in
	for {
		m, err := stream.Recv()
		if err != nil {
			return synced, err
		}
		switch {
		case m.GetReset_():
			all = &agentv1.RackUpdate{Reset_: true}
		case all == nil && !synced:
			return false, errors.New("the stream begins without a snapshot")
		case all == nil:
			all = &agentv1.RackUpdate{}
		}
		gather(all, m)
		if all.GetReset_() && !m.GetSynced() || m.GetMore() {
			continue
		}
		whole := all
		all = nil
		if whole.GetRack() != nil {
			generation = whole.GetRack().GetGeneration()
		}
		if !whole.GetReset_() {
			_ = a.take(r, func() (change, error) { return r.apply(generation, whole), nil })
			continue
		}
		err = a.take(r, func() (change, error) { return r.replace(n.addr, whole) })
		if errors.Is(err, errPast) {
			return false, err // ask again, by and by
		}
		if !synced {
			defer a.admission.follow(n.addr)()
			a.log.Info("rack is followed", "rack", r.conf.Name, "node", n.addr, "revision", whole.GetRevision())
		}
		synced = true
	}
}

// gather adds a message to what it is part of.
func gather(into, m *agentv1.RackUpdate) {
	into.Revision = max(into.GetRevision(), m.GetRevision())
	if m.GetRack() != nil {
		into.Rack = m.GetRack()
	}
	into.Upserts = append(into.GetUpserts(), m.GetUpserts()...)
	into.Removed = append(into.GetRemoved(), m.GetRemoved()...)
	into.Assignments = append(into.GetAssignments(), m.GetAssignments()...)
	into.Withdrawn = append(into.GetWithdrawn(), m.GetWithdrawn()...)
}

// take makes a change and lets it reach the operations, before another stream's
// change of the same rack does.
func (a *Agent) take(r *rack, f func() (change, error)) error {
	r.turn.Lock()
	defer r.turn.Unlock()
	c, err := f()
	if err != nil {
		return err
	}
	select {
	case a.renamed <- struct{}{}:
	default:
	}
	if c.reset {
		var ids []string
		for _, as := range c.assigned {
			ids = append(ids, as.GetOperationId())
		}
		a.ops.Keep(ids, func(serverID string) bool { _, ok := r.server(serverID); return ok })
	}
	for _, id := range c.withdrawn {
		a.ops.Withdraw(id)
	}
	for _, as := range c.assigned {
		a.ops.Assign(as)
	}
	return nil
}

// reassign hands out what is assigned again and again: a run that stopped over
// a refusal or a full disk resumes. What runs is not disturbed.
func (a *Agent) reassign(ctx context.Context) {
	for pause.For(ctx, reassignEvery) == nil {
		for _, r := range a.racks {
			_ = a.take(r, func() (change, error) { return change{assigned: r.assigned()}, nil })
		}
	}
}

// keepSaved writes a rack's file whenever it is behind, a few times a second at
// most, and once more at the end.
func (a *Agent) keepSaved(ctx context.Context, r *rack) {
	for {
		select {
		case <-r.dirty:
		case <-ctx.Done():
			select {
			case <-r.dirty:
				a.saveRack(r)
			default:
			}
			return
		}
		a.saveRack(r)
		_ = pause.For(ctx, saveEvery)
	}
}

func (a *Agent) saveRack(r *rack) {
	if err := r.save(); err != nil {
		a.log.Error("boot decisions not saved", "rack", r.conf.Name, "err", err)
		select {
		case r.dirty <- struct{}{}: // try again
		default:
		}
	}
}
