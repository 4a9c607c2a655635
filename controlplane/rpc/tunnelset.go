package rpc

import (
	"context"
	"sync"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"

	"google.golang.org/grpc"
)

// Bounds of tunnels.
const (
	tunnelDialWait = 15 * time.Second // for the agent to answer an offer
	tunnelIdle     = 10 * time.Minute // without a byte in either direction
	maxTunnels     = 512              // open at once on one node
	offerQueue     = 16
)

// agentSide is the agent's half of a tunnel.
type agentSide = grpc.BidiStreamingServer[agentv1.TunnelData, agentv1.TunnelData]

// tunnelSet pairs users' tunnels with the agents that are connected to this
// node. Agents connect to every node, so no other node is asked.
type tunnelSet struct {
	mu      sync.Mutex
	links   map[string][]*agentLink // by agent ID; newest last
	waiting map[string]*tunnel      // offered, not yet taken, by tunnel ID
	open    int
}

// agentLink is one agent's open Tunnels stream.
type agentLink struct {
	agent  string
	offers chan *agentv1.TunnelOffer
	gone   <-chan struct{}
}

// tunnel is an offer until an agent takes it.
type tunnel struct {
	id    string
	agent string
	taken chan takenTunnel // capacity 1
	done  chan struct{}    // closed when the user's side has ended
}

// takenTunnel is an agent's answer to an offer.
type takenTunnel struct {
	side    agentSide
	failure string // why it could not dial
}

func newTunnelSet() *tunnelSet {
	return &tunnelSet{links: map[string][]*agentLink{}, waiting: map[string]*tunnel{}}
}

// connect registers an agent's Tunnels stream until disconnect.
func (s *tunnelSet) connect(ctx context.Context, agent string) *agentLink {
	l := &agentLink{agent: agent, offers: make(chan *agentv1.TunnelOffer, offerQueue), gone: ctx.Done()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links[agent] = append(s.links[agent], l)
	return l
}

func (s *tunnelSet) disconnect(l *agentLink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	links := s.links[l.agent]
	for i, x := range links {
		if x == l {
			links = append(links[:i:i], links[i+1:]...)
			break
		}
	}
	if len(links) == 0 {
		delete(s.links, l.agent)
		return
	}
	s.links[l.agent] = links
}

// link returns the newest stream of the first of the agents that is connected.
func (s *tunnelSet) link(agents []string) *agentLink {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range agents {
		if links := s.links[a]; len(links) > 0 {
			return links[len(links)-1]
		}
	}
	return nil
}

// offer asks the first connected agent to dial; release must be called when
// the user's side ends.
func (s *tunnelSet) offer(ctx context.Context, agents []string, o *agentv1.TunnelOffer) (t *tunnel, release func(), err error) {
	l := s.link(agents)
	if l == nil {
		return nil, nil, metal.Errorf(metal.CodeNoAgent, "no agent of the rack is connected to this node")
	}
	t = &tunnel{id: o.GetTunnelId(), agent: l.agent, taken: make(chan takenTunnel, 1), done: make(chan struct{})}
	s.mu.Lock()
	if s.open >= maxTunnels {
		s.mu.Unlock()
		return nil, nil, metal.Errorf(metal.CodeNoCapacity, "this node carries %d tunnels already, its most", maxTunnels)
	}
	s.open++
	s.waiting[t.id] = t
	s.mu.Unlock()
	release = func() {
		s.mu.Lock()
		s.open--
		delete(s.waiting, t.id)
		s.mu.Unlock()
		close(t.done)
	}
	timer := time.NewTimer(tunnelDialWait)
	defer timer.Stop()
	select {
	case l.offers <- o:
		return t, release, nil
	case <-l.gone:
		err = metal.Errorf(metal.CodeNoAgent, "the rack's agent went away")
	case <-timer.C:
		err = metal.Errorf(metal.CodeNoAgent, "the rack's agent takes no tunnels at the moment")
	case <-ctx.Done():
		err = ctx.Err()
	}
	release()
	return nil, nil, err
}

// take hands the agent's stream to the user's side that waits for it.
func (s *tunnelSet) take(agent string, head *agentv1.TunnelData, side agentSide) (*tunnel, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.waiting[head.GetTunnelId()]
	if !ok || t.agent != agent {
		return nil, metal.Errorf(metal.CodeNotFound, "no tunnel %s waits for this agent", head.GetTunnelId())
	}
	delete(s.waiting, t.id)
	t.taken <- takenTunnel{side, head.GetError()} // capacity 1, and taken out of waiting: sent once
	return t, nil
}
