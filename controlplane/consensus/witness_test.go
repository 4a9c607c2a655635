package consensus

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"bmc/metal"
)

// holding is a network on which the answers to one node's requests can be held
// up, as in the sockets of a process that was stopped.
type holding struct {
	*raft.InmemTransport
	mu   sync.Mutex
	gate chan struct{} // nil: answers come through
	held int           // answers that wait
}

func (h *holding) hold() {
	h.mu.Lock()
	h.gate = make(chan struct{})
	h.mu.Unlock()
}

func (h *holding) release() {
	h.mu.Lock()
	close(h.gate)
	h.gate = nil
	h.mu.Unlock()
}

func (h *holding) waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held
}

func (h *holding) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := h.InmemTransport.AppendEntries(id, target, args, resp)
	h.mu.Lock()
	gate := h.gate
	if gate != nil {
		h.held++
	}
	h.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return err
}

func (h *holding) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported // entries go by AppendEntries, too
}

// Answers given before a successor was elected, and read after a call, do not
// confirm it: raft's own VerifyLeader takes them for a quorum.
func TestOldAnswersDoNotConfirm(t *testing.T) {
	nets := map[string]*holding{}
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		for _, m := range c.members {
			c.stop(m)
			_, m.trans = raft.NewInmemTransport(raft.ServerAddress(m.id))
			m.fsm, m.closed = newPausable(), false
			nets[m.id] = &holding{InmemTransport: m.trans}
		}
		c.wire()
		for _, m := range c.members {
			conf := c.config(m)
			conf.Transport = nets[m.id]
			n, err := Open(conf)
			if err != nil {
				t.Fatal(err)
			}
			m.Node = n
		}
		old := c.leader()
		c.propose(old, project("before"))
		synctest.Wait()

		// Two heartbeats are answered, and the answers wait.
		nets[old.id].hold()
		c.await("both answers wait", func() bool { return nets[old.id].waiting() >= 2 })
		// Nobody reaches it any more; it can still tell one to stand at once.
		c.mu.Lock()
		for _, o := range c.others(old) {
			c.cut[[2]string{o.id, old.id}] = true
		}
		c.mu.Unlock()
		c.wire()
		go func() { _ = old.TransferLeadership(c.ctx(time.Minute), c.others(old)[0].id) }()
		synctest.Wait()
		fresh := c.leader(c.others(old)...)
		c.propose(fresh, project("after"))
		if old.raft.State() != raft.Leader {
			t.Fatal("the old leader knows already: nothing is proven")
		}

		answer := make(chan error, 1)
		go func() {
			v, err := old.LinearizableView(c.ctx(10 * time.Second))
			if err == nil && !has(v, "after") {
				t.Error("a read misses a write that was acknowledged before it")
			}
			answer <- err
		}()
		synctest.Wait() // it has asked for confirmation
		nets[old.id].release()
		if err := <-answer; metal.CodeOf(err) != metal.CodeNoLeader {
			t.Errorf("the answer: %v", err)
		}
		c.heal()
	})
}

func TestConfirmed(t *testing.T) {
	voters := []raft.Server{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d", Suffrage: raft.Nonvoter}}
	for _, tc := range []struct {
		name     string
		self     raft.ServerID
		accepted map[raft.ServerID]acceptance
		want     bool
	}{
		{"nobody", "a", nil, false},
		{"one more", "a", map[raft.ServerID]acceptance{"b": {5, 11}}, true},
		{"sent before", "a", map[raft.ServerID]acceptance{"b": {5, 10}, "c": {5, 9}}, false},
		{"of another term", "a", map[raft.ServerID]acceptance{"b": {4, 11}}, false},
		{"one that has no vote", "a", map[raft.ServerID]acceptance{"d": {5, 11}}, false},
		{"a leader without a vote", "d", map[raft.ServerID]acceptance{"b": {5, 11}}, false},
		{"it needs both", "d", map[raft.ServerID]acceptance{"b": {5, 11}, "c": {5, 12}}, true},
	} {
		w := &witness{accepted: tc.accepted}
		if got := w.confirmed(tc.self, voters, 5, 10); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
