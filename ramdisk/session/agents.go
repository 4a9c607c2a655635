package session

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"

	"bmc/internal/pause"
)

// maxAgents bounds what one agent may say of others.
const maxAgents = 16

// learn takes an agent's word of who serves this rack, itself first. One that has
// just started, or heard of a leader that has, knows nobody else yet, so those
// known before are kept, last. The agent that answers now stays the one that is
// asked next.
func (s *Session) learn(addrs []string) {
	var known []string
	for _, a := range addrs {
		if _, _, err := net.SplitHostPort(a); err == nil && !slices.Contains(known, a) && len(known) < maxAgents {
			known = append(known, a)
		}
	}
	now := s.agents[s.at]
	for _, a := range s.agents {
		if !slices.Contains(known, a) && (len(known) < maxAgents || a == now) { // now may go by another name
			known = append(known, a)
		}
	}
	at := slices.Index(known, now)
	if !slices.Equal(known, s.agents) {
		s.cfg.Log.Info("agents of this rack", "addrs", known)
	}
	s.agents, s.at = known, at
}

// elsewhere turns to the next agent: this one has no answer.
func (s *Session) elsewhere() {
	s.Close()
	s.at = (s.at + 1) % len(s.agents)
}

// pause waits with jittered backoff that grows with every round over the
// agents; false says that ctx ended.
func (s *Session) pause(ctx context.Context) bool {
	limit := backoffMax
	if len(s.agents) > 1 {
		limit = roundMax // somebody takes over soon
	}
	d := min(backoffMin<<min(s.tries/len(s.agents), 10), limit)
	s.tries++
	return pause.For(ctx, d/2+rand.N(d)) == nil
}
