package agent

import (
	"context"
	"time"

	"bmc/agent/oob"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/pause"
	"bmc/metal"
)

const (
	reconcileLook  = 2 * time.Second
	reconcileRead  = 25 * time.Second // of the controllers' powers
	reconcileLimit = 10 * time.Second // of one node's answer
	reconcileAgain = 10 * time.Minute // when the rack stayed frozen: a person decides
)

// knowledge is what was known of a rack before a backup was restored. A backup
// may be older than what the rack has lived through since: until the rack is
// thawed, its machines are answered from here, the file on disk keeps it, and
// nothing that the backup wants is begun.
type knowledge struct {
	revision uint64
	spec     *agentv1.RackSpec
	servers  map[string]*agentv1.ServerSpec
}

// freeze compares a rack's new spec with the present one, and keeps what is
// known aside or lets it go; the lock is held.
func (r *rack) freeze(next *agentv1.RackSpec) {
	switch {
	case !next.GetFrozen():
		r.before = nil
	case r.before == nil && next.GetGeneration() > r.spec.GetGeneration() && r.spec != nil:
		r.before = &knowledge{revision: r.revision, spec: r.spec, servers: r.servers}
		// Copied before changes are applied to it.
		servers := make(map[string]*agentv1.ServerSpec, len(r.servers))
		for id, s := range r.servers {
			servers[id] = s
		}
		r.servers = servers
	}
}

// answers is what machines are answered from; the lock is held.
func (r *rack) answers() (*agentv1.RackSpec, map[string]*agentv1.ServerSpec) {
	if r.before != nil {
		return r.before.spec, r.before.servers
	}
	return r.spec, r.servers
}

// assignable holds back what a frozen rack is assigned; the lock is held.
func (r *rack) assignable(all []*agentv1.Assignment) []*agentv1.Assignment {
	if r.spec.GetFrozen() {
		return nil
	}
	return all
}

// frozen returns what is to be told of a rack that waits for its agent, and the
// generation that it waits in; nil: it does not wait. An agent that knew nothing
// says so, with an empty list.
func (r *rack) frozen() (known *knowledge, generation uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !r.spec.GetFrozen() {
		return nil, 0
	}
	if r.before == nil {
		return &knowledge{}, r.spec.GetGeneration()
	}
	return r.before, r.spec.GetGeneration()
}

// reconcile tells what was known of a frozen rack, once this agent holds its
// lease, and again from time to time while the rack stays frozen.
func (a *Agent) reconcile(ctx context.Context, r *rack, l *lease) {
	var told uint64 // generation
	var next time.Time
	for pause.For(ctx, reconcileLook) == nil {
		known, generation := r.frozen()
		_, held := l.Held()
		if known == nil || !held || told == generation && time.Now().Before(next) {
			continue
		}
		frozen, err := a.tellKnown(ctx, r, l, known, generation)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.log.Warn("what was known of a frozen rack is not told yet", "rack", r.conf.Name, "err", err)
		default:
			a.log.Info("told what was known of a frozen rack", "rack", r.conf.Name, "generation", generation, "servers", len(known.servers), "frozen", frozen)
			told, next = generation, time.Now().Add(reconcileAgain)
		}
	}
}

func (a *Agent) tellKnown(ctx context.Context, r *rack, l *lease, known *knowledge, generation uint64) (frozen bool, err error) {
	req := &agentv1.ReconcileRequest{Rack: r.conf.Name, Generation: generation, Revision: &known.revision}
	powers := a.powers(ctx, r, l, known)
	for id, s := range known.servers {
		power := powers[id]
		if power == "" {
			power = metal.PowerUnknown
		}
		req.Servers = append(req.Servers, &agentv1.KnownServer{ServerId: id, Name: s.GetName(), State: s.GetState(), Hostname: s.GetHostname(),
			Revision: s.GetRevision(), Power: string(power)})
	}
	for _, k := range a.ops.Known() {
		req.Operations = append(req.Operations, &agentv1.KnownOperation{OperationId: k.Operation, Attempt: k.Attempt, DoneSteps: k.DoneSteps})
	}
	err = a.nodes.call(ctx, reconcileLimit, func(ctx context.Context, c agentv1.ControlClient) error {
		resp, err := c.Reconcile(ctx, req)
		frozen = resp.GetFrozen()
		return err
	})
	return frozen, err
}

// powers reads what the controllers of known servers say now, as far as they
// answer. The credentials are not kept on disk: after a restart the backup's
// are what there is.
func (a *Agent) powers(ctx context.Context, r *rack, l *lease, known *knowledge) map[string]metal.Power {
	var ids []string
	var cfgs []oob.Config
	for id, s := range known.servers {
		if s.GetOob().GetAddress() == "" {
			s, _ = r.server(id)
		}
		if s.GetOob().GetAddress() != "" {
			ids, cfgs = append(ids, id), append(cfgs, a.oobConfig(l, s))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, reconcileRead)
	defer cancel()
	out := make(map[string]metal.Power)
	for i, reading := range a.pool.Status(ctx, cfgs) {
		if reading.Err == nil {
			out[ids[i]] = reading.Power
		}
	}
	return out
}
