package agent

import (
	"sync"
	"time"

	"bmc/metal"
)

const (
	// refusalFor is how long a node's no counts; a watcher asks again every five
	// seconds at most.
	refusalFor = 20 * time.Second
	// refusedFor is how long those who answer must all say no when they are fewer
	// than half of the nodes.
	refusedFor = 30 * time.Second
)

// errRemoved ends an agent that an operator has taken out.
var errRemoved = metal.Errorf(metal.CodeWrongState, "this agent was removed from the cluster: it answers no machine any more").
	WithHint("bmc cluster join-token --role agent --rack RACK; empty data_dir, and start it with that token")

// admission gathers what nodes say of this agent being a member. Without a word of
// theirs an agent serves for ever: its rented servers depend on it. What it knows is
// of no use any more, and harms, once it has been removed. A node says no only after
// it has asked its leader, and one is not enough: it may belong to a cluster that was
// restored from a backup while the others go on.
type admission struct {
	now func() time.Time

	mu      sync.Mutex
	follows map[string]int       // streams that have synced, by node's address
	refused map[string]time.Time // the newest no
	since   time.Time            // all that have answered said no
	once    sync.Once
	removed chan struct{} // closed when it is certain
}

func newAdmission() *admission {
	return &admission{now: time.Now, follows: make(map[string]int), refused: make(map[string]time.Time), removed: make(chan struct{})}
}

// follow notes that a node has taken us, until the returned function is called.
func (m *admission) follow(addr string) (end func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.follows[addr]++
	clear(m.refused)
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.follows[addr]--; m.follows[addr] == 0 {
			delete(m.follows, addr)
		}
	}
}

// refuse notes a node's no. known is how many nodes there are.
func (m *admission) refuse(addr string, known int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	for addr, at := range m.refused {
		if now.Sub(at) > refusalFor {
			delete(m.refused, addr)
		}
	}
	if len(m.refused) == 0 { // nobody has said so lately
		m.since = now
	}
	m.refused[addr] = now
	if len(m.follows) > 0 {
		m.since = now
		return
	}
	if len(m.refused) >= known/2+1 || now.Sub(m.since) >= refusedFor {
		m.once.Do(func() { close(m.removed) })
	}
}
