package dispatch

import (
	"slices"
	"strings"
	"time"

	"bmc/metal"
)

// recent is how long an agent counts as one of its rack's after it last asked
// for the lease; agents ask every five seconds, standbys too.
const recent = 2 * time.Minute

// Endpoint is where a rack's machines reach one of its agents.
type Endpoint struct {
	Agent    string // ID
	Address  string // on the rack's network
	HTTPPort uint32
	TLSPort  uint32
	Ramdisk  string // version of the one that it serves; "": not known
	Unfit    bool   // it says that it cannot run operations
}

// asked is what an agent last said of itself. It is a hint to machines and
// lives in memory only: a new leader hears it again within seconds.
type asked struct {
	endpoint Endpoint
	at       time.Time
	served   time.Time // since when its ramdisk is this version
}

// Note remembers where an agent is on a rack's network.
func (d *Dispatcher) Note(rackID string, e Endpoint) {
	t := d.current()
	if t == nil || e.Address == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked[rackID] == nil {
		t.asked[rackID] = map[string]asked{}
	}
	now := time.Now()
	a := asked{endpoint: e, at: now, served: now}
	if was, ok := t.asked[rackID][e.Agent]; ok && was.endpoint.Ramdisk == e.Ramdisk {
		a.served = was.served
	} else {
		t.nudge() // servers that wait in another version are to move
	}
	t.asked[rackID][e.Agent] = a
}

// spareFor is how old the word of an agent may be that is to have another's lease.
const spareFor = 12 * time.Second

// yields says whether an agent should lose a rack's lease: it says that it cannot run
// operations, and another one, which has asked for the lease just now, can.
func (t *term) yields(rackID, agentID string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.asked[rackID][agentID].endpoint.Unfit {
		return false
	}
	for id, a := range t.asked[rackID] {
		if id != agentID && !a.endpoint.Unfit && time.Since(a.at) < spareFor {
			return true
		}
	}
	return false
}

// Agents lists the agents that asked for a rack's lease lately; its holder first. It is
// partial while this node does not lead for longer than that: others may have asked its
// predecessor.
func (d *Dispatcher) Agents(r *metal.Rack) (out []Endpoint, partial bool) {
	t := d.current()
	if t == nil {
		return nil, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, a := range t.asked[r.ID] {
		if time.Since(a.at) > recent {
			delete(t.asked[r.ID], id)
			continue
		}
		out = append(out, a.endpoint)
	}
	slices.SortFunc(out, func(a, b Endpoint) int {
		switch {
		case (a.Agent == r.Lease.Agent) == (b.Agent == r.Lease.Agent):
			return strings.Compare(a.Agent, b.Agent)
		case a.Agent == r.Lease.Agent:
			return -1
		}
		return 1
	})
	return out, time.Since(t.began) < recent
}
