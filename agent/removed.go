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
	// restoredSay is how often the log says that a restored backup does not know us.
	restoredSay = time.Minute
)

// errRemoved ends an agent that an operator has taken out.
var errRemoved = metal.Errorf(metal.CodeWrongState, "this agent was removed from the cluster: it answers no machine any more").
	WithHint("bmc cluster join-token --role agent --rack RACK; move data_dir away, and start it with that token " +
		"(if a backup was restored, keep a copy of data_dir: it is what the racks are compared with)")

// youngerThan is what an operator reads of an agent that joined after the backup was
// made which the cluster was restored from.
const youngerThan = "the nodes were restored from a backup that does not know this agent: it goes on answering its machines from what it knew, and starts nothing"

const rejoin = "bmc cluster join-token --role agent --rack RACK; stop it, keep a copy of data_dir, remove identity.json from it and nothing else, and start it " +
	"with that token: what it knows is compared with the backup. Or, if the backup is right: bmc rack thaw RACK, and stop it"

// admission gathers what nodes say of this agent being a member. Without a word of
// theirs an agent serves for ever: its rented servers depend on it. What it knows is
// of no use any more, and harms, once it has been removed. A node says no only after
// it has asked its leader, and one is not enough: it may belong to a cluster that was
// restored from a backup while the others go on. A node of a higher generation than
// is known here is no word against us: its backup may be older than this agent.
type admission struct {
	now func() time.Time

	mu      sync.Mutex
	follows map[string]int       // streams that have synced, by node's address
	refused map[string]time.Time // the newest no
	since   time.Time            // all that have answered said no
	newer   time.Time            // the newest no of a higher generation; zero: none
	said    time.Time            // when the log last had it
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
	if len(m.follows) > 0 || !m.newer.IsZero() && now.Sub(m.newer) <= refusalFor {
		m.since = now
		return
	}
	if len(m.refused) >= known/2+1 || now.Sub(m.since) >= refusedFor {
		m.once.Do(func() { close(m.removed) })
	}
}

// restored notes a no of a higher generation, and returns whether to tell it now.
func (m *admission) restored() (tell bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.newer = m.now()
	if tell = m.said.IsZero() || m.newer.Sub(m.said) >= restoredSay; tell {
		m.said = m.newer
	}
	return tell
}

// refused takes a node's NOT_A_MEMBER. An agent that was never told a rack has nothing
// to lose; nodes of older software do not say their generation.
func (a *Agent) refused(n *node, e *metal.Error) {
	generation, told := a.generation()
	switch {
	case !told || e.Generation == nil || *e.Generation == generation:
		a.admission.refuse(n.addr, a.nodes.count())
	case *e.Generation > generation:
		if a.admission.restored() {
			a.log.Error(youngerThan, "node", n.addr, "generation", *e.Generation, "known", generation, "hint", rejoin)
		}
	default: // a node of the past, that was left out of a restore
	}
}

// generation is the highest that this agent knows of; told: it was told a rack.
func (a *Agent) generation() (generation uint64, told bool) {
	for _, r := range a.racks {
		r.mu.RLock()
		generation, told = max(generation, r.spec.GetGeneration()), told || r.spec != nil
		r.mu.RUnlock()
	}
	return generation, told
}
