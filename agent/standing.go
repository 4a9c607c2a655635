package agent

import (
	"context"
	"sync"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/pause"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

const (
	standingEvery = time.Second
	standingLimit = time.Second // of one agent's answer
	// standingFor is how long an agent's word counts: a dead one's machines wait so long.
	standingFor = 3 * time.Second
	// confirmedFor is how long what is known counts as confirmed by the leader's last
	// answer: that of a renewal, each five seconds. A stream alone says nothing for
	// a quarter of a minute after a cable was pulled.
	confirmedFor = 10 * time.Second
	// answersAfter is how long a DHCP server runs until others rely on it: one that
	// cannot have its port ends at once.
	answersAfter = 2 * time.Second
)

// heard is what another agent last said of a rack.
type heard struct {
	*agentv1.RackStanding
	at time.Time
}

// above says whether an agent's word on what machines shall boot goes before
// another's. The lease's holder runs the operations: nobody knows better. Of agents
// that hold none, one that the control plane confirms does; of those that are all cut
// off, the one that knows the newest.
func above(a, b *agentv1.RackStanding) bool {
	switch {
	case a.GetHeld() != b.GetHeld():
		return a.GetHeld()
	case a.GetConfirmed() != b.GetConfirmed():
		return a.GetConfirmed()
	case a.GetConfirmed(): // they may differ by what is on its way
		return false
	case a.GetGeneration() != b.GetGeneration():
		return a.GetGeneration() > b.GetGeneration()
	}
	return a.GetRevision() > b.GetRevision()
}

// standing is how well this agent knows the rack; the lock is held. A lease says that
// this agent knows best only once a node has told it the rack: one that has just got
// it may know machines as rented that were released meanwhile.
func (r *rack) standing() *agentv1.RackStanding {
	s := &agentv1.RackStanding{Rack: r.conf.Name, Generation: r.spec.GetGeneration(), Revision: r.revision,
		Answers: !r.answering.IsZero() && r.now().Sub(r.answering) >= answersAfter}
	if r.lease != nil {
		_, held := r.lease.Held()
		s.Held = held && len(r.live) > 0
		s.Confirmed = len(r.live) > 0 && r.lease.confirmed()
	}
	return s
}

// better is the agent that shall answer network boots instead of this one, or nil,
// and whether this one holds the lease and has been told the rack; the lock is held.
func (r *rack) better() (other *agentv1.Endpoint, held bool) {
	best := r.standing()
	if best.GetHeld() {
		return nil, true
	}
	for _, e := range r.agents {
		if h, ok := r.heard[e.GetAgentId()]; ok && h.GetAnswers() && r.now().Sub(h.at) < standingFor && above(h.RackStanding, best) {
			best, other = h.RackStanding, e
		}
	}
	return other, false
}

// hears takes another agent's word.
func (r *rack) hears(agent string, s *agentv1.RackStanding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.heard == nil {
		r.heard = make(map[string]heard)
	}
	r.heard[agent] = heard{s, r.now()}
}

// served notes whether the rack's DHCP server runs.
func (r *rack) served(runs bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answering = time.Time{}
	if runs {
		r.answering = r.now()
	}
}

// askStandings asks the other agents of racks that this one does not answer for, each
// second, until ctx ends.
func (a *Agent) askStandings(ctx context.Context) {
	for pause.For(ctx, standingEvery) == nil {
		req := &agentv1.StandingRequest{}
		for _, r := range a.racks {
			r.mu.RLock()
			if !r.standing().GetHeld() {
				req.Racks = append(req.Racks, r.conf.Name)
				for _, mac := range r.asking.now(time.Now()) {
					req.Asking = append(req.Asking, &agentv1.Asking{Rack: r.conf.Name, Mac: mac})
				}
			}
			r.mu.RUnlock()
		}
		if len(req.Racks) == 0 {
			continue
		}
		var wg sync.WaitGroup
		for _, p := range a.otherAgents() {
			if p, ok := p.(*peerAgent); ok {
				wg.Go(func() { a.askStanding(ctx, p, req) })
			}
		}
		wg.Wait()
	}
}

// askStanding leaves what was heard before as it is when there is no answer.
func (a *Agent) askStanding(ctx context.Context, p *peerAgent, req *agentv1.StandingRequest) {
	ctx, cancel := context.WithTimeout(ctx, standingLimit)
	defer cancel()
	resp, err := p.client.Standing(ctx, req)
	if err != nil {
		a.log.Debug("another agent does not say what it knows", "peer", p.id, "err", err)
		return
	}
	for _, s := range resp.GetRacks() {
		for _, r := range a.racks {
			if r.conf.Name == s.GetRack() {
				r.hears(p.id, s)
			}
		}
	}
}

// Standing implements the Peers service.
func (s *peerService) Standing(ctx context.Context, req *agentv1.StandingRequest) (*agentv1.StandingResponse, error) {
	if !s.isAgent(ctx) {
		return nil, rpcerr.Encode(metal.Errorf(metal.CodeUnauthenticated, "this is for agents of this cluster"), "")
	}
	resp := &agentv1.StandingResponse{}
	for _, r := range s.racks {
		for _, name := range req.GetRacks() {
			if name == r.conf.Name {
				r.mu.RLock()
				resp.Racks = append(resp.Racks, r.standingFor(req.GetAsking()))
				r.mu.RUnlock()
			}
		}
	}
	return resp, nil
}
