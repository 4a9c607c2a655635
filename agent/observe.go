package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"bmc/agent/oob"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/pause"
	"bmc/metal"
)

const (
	// sweepEvery is the time between two sweeps over a rack, give or take a
	// quarter, so that racks drift apart. It keeps sessions alive, which end after
	// 60 s without a word (IPMI 2.0 section 6.12.15).
	sweepEvery   = 10 * time.Second
	sweepLimit   = 9500 * time.Millisecond
	observeLimit = 10 * time.Second
	raiseAfter   = 4 // failed readings in a row, each one tried
)

// observed is what the control plane was last told of a server.
type observed struct {
	power    metal.Power
	raised   bool
	told     bool // raised was told at all
	failures int
}

// observer reads a rack's power while its lease is held, and reports edges.
type observer struct {
	agent *Agent
	rack  *rack
	lease *lease
	known map[string]*observed // by server
	epoch uint64               // that known was told under
}

func (o *observer) run(ctx context.Context) {
	for {
		wait := leaseCheck
		if epoch, held := o.lease.Held(); held {
			began := time.Now()
			o.sweep(ctx, epoch)
			wait = max(time.Second, sweepEvery*3/4+rand.N(sweepEvery/2)-time.Since(began))
		}
		if pause.For(ctx, wait) != nil {
			return
		}
	}
}

// sweep skips servers with an operation: its controller is in use, and its
// steps report what they read. What has answered is reported while others have not.
func (o *observer) sweep(ctx context.Context, epoch uint64) {
	if epoch != o.epoch {
		o.known, o.epoch = make(map[string]*observed), epoch
	}
	var servers []*agentv1.ServerSpec
	var cfgs []oob.Config
	for _, s := range o.rack.all() {
		if s.GetOob().GetAddress() != "" && !o.agent.ops.Busy(s.GetId()) {
			servers, cfgs = append(servers, s), append(cfgs, o.agent.oobConfig(o.lease, s))
		}
	}
	for batch := range o.agent.pool.Sweep(ctx, sweepLimit, cfgs) {
		if ctx.Err() == nil {
			o.took(ctx, servers, batch)
		}
	}
}

func (o *observer) took(ctx context.Context, servers []*agentv1.ServerSpec, batch []oob.Result) {
	req := &agentv1.ReportObservationsRequest{Rack: o.rack.conf.Name, Epoch: o.epoch}
	news := make(map[string]observed)
	for _, r := range batch {
		if errors.Is(r.Err, oob.ErrUnfinished) || errors.Is(r.Err, oob.ErrLease) {
			continue // out of time, or no longer ours: which says nothing of this one
		}
		s := servers[r.Index]
		if now, _ := o.rack.server(s.GetId()); now.GetWarmBootId() != s.GetWarmBootId() || o.agent.ops.Busy(s.GetId()) {
			continue // an operation has been at it since it was read
		}
		next, obs := o.edge(s, r.Reading)
		if obs != nil {
			req.Observations = append(req.Observations, obs)
		}
		news[s.GetId()] = next
	}
	if len(req.Observations) > 0 && !o.tell(ctx, req) {
		o.keepFailures(news)
		return // the edges come again with the next sweep
	}
	for id, n := range news {
		o.known[id] = &n
	}
}

// edge compares a reading with what was told; nil: no news.
func (o *observer) edge(s *agentv1.ServerSpec, r oob.Reading) (observed, *agentv1.Observation) {
	now := observed{}
	if was := o.known[s.GetId()]; was != nil {
		now = *was
	}
	obs := &agentv1.Observation{ServerId: s.GetId()}
	raised := now.raised
	if r.Err != nil {
		if !r.Remembered {
			now.failures++
		}
		raised = raised || now.failures >= raiseAfter
	} else {
		now.failures, raised = 0, false
		if r.Power != now.power {
			now.power, obs.Power = r.Power, string(r.Power)
		}
	}
	if raised != now.raised || !now.told && (r.Err == nil || raised) {
		now.raised, now.told = raised, true
		obs.Conditions = map[string]bool{string(metal.ConditionOOBUnreachable): raised}
		if raised {
			var e *metal.Error
			if errors.As(r.Err, &e) {
				obs.Message = e.Message // without the cause, which is for logs
			}
		}
	}
	if obs.Power == "" && obs.Conditions == nil {
		return now, nil
	}
	return now, obs
}

func (o *observer) keepFailures(news map[string]observed) {
	for id, n := range news {
		if o.known[id] == nil {
			o.known[id] = &observed{}
		}
		o.known[id].failures = n.failures
	}
}

func (o *observer) tell(ctx context.Context, req *agentv1.ReportObservationsRequest) bool {
	err := o.agent.nodes.call(ctx, observeLimit, func(ctx context.Context, c agentv1.ControlClient) error {
		_, err := c.ReportObservations(ctx, req)
		return err
	})
	if err != nil && ctx.Err() == nil {
		o.agent.log.Debug("observations not taken", "rack", req.GetRack(), "err", err)
	}
	return err == nil
}

// oobConfig is a server's controller as package oob wants it.
func (a *Agent) oobConfig(l *lease, s *agentv1.ServerSpec) oob.Config {
	o := s.GetOob()
	return oob.Config{
		Lease: l, Log: a.log,
		Server: s.GetName(), Protocol: o.GetProtocol(), Address: o.GetAddress(),
		Username: o.GetUsername(), Password: o.GetPassword(), CipherSuite: int(o.GetCipherSuite()),
	}
}
