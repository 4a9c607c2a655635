package consensus

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"bmc/metal"
)

// stalling is a network on which the order to stand at once gets no answer.
type stalling struct {
	*raft.InmemTransport
	stalled chan struct{} // while open
}

func (s stalling) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	<-s.stalled
	return s.InmemTransport.TimeoutNow(id, target, args, resp)
}

func TestTransfer(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		old := c.leader()
		next := c.others(old)[1]
		if err := next.TransferLeadership(c.ctx(5*time.Second), old.id); metal.CodeOf(err) != metal.CodeNoLeader {
			t.Errorf("a follower hands on: %v", err)
		}
		if err := old.TransferLeadership(c.ctx(5*time.Second), "node-x"); metal.CodeOf(err) != metal.CodeWrongState {
			t.Errorf("to nobody: %v", err)
		}
		if err := old.TransferLeadership(c.ctx(5*time.Second), next.id); err != nil {
			t.Fatal(err)
		}
		c.await("the other leads", next.IsLeader)
		c.propose(next, project("after"))
	})
}

// The only voter says that there is nobody, at once.
func TestTransferToNobody(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, c *cluster) {
		m := c.leader()
		if err := m.TransferLeadership(c.ctx(5*time.Second), ""); metal.CodeOf(err) != metal.CodeWrongState {
			t.Errorf("%v", err)
		}
		c.propose(m, project("after"))
	})
}

// A transfer to a voter that cannot be reached fails, and the leader accepts
// writes again.
func TestTransferToDeadVoter(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		old := c.leader()
		dead := c.others(old)[0]
		c.isolate(dead)
		c.propose(old, project("before")) // which the dead one lacks
		if err := old.TransferLeadership(c.ctx(5*time.Second), dead.id); err == nil {
			t.Fatal("leadership went to a node that nobody reaches")
		}
		c.await("writes go on", func() bool {
			m := c.leader(old, c.others(old)[1])
			_, err := m.Propose(c.ctx(5*time.Second), system(project("after")))
			return err == nil
		})
		c.heal()
	})
}

// A transfer whose order is never answered leaves a leader that refuses writes
// for ever (hashicorp/raft#696). Here it stops, and another is elected.
func TestStuckTransferStopsTheLeader(t *testing.T) {
	stalled := make(map[string]chan struct{})
	fatal := make(map[string]error)
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		// Each node is opened again, on a network that stalls.
		for _, m := range c.members {
			stalled[m.id] = make(chan struct{})
		}
		for _, m := range c.members {
			c.stop(m)
			_, m.trans = raft.NewInmemTransport(raft.ServerAddress(m.id))
			m.fsm, m.closed = newPausable(), false
		}
		c.wire()
		for _, m := range c.members {
			conf := c.config(m)
			conf.Transport = stalling{m.trans, stalled[m.id]}
			conf.Fatal = func(err error) {
				c.mu.Lock()
				fatal[m.id] = err
				c.mu.Unlock()
				c.isolate(m) // as a process that has exited
			}
			n, err := Open(conf)
			if err != nil {
				t.Fatal(err)
			}
			m.Node = n
		}
		old := c.leader()
		if err := old.TransferLeadership(c.ctx(5*time.Second), c.others(old)[0].id); err == nil {
			t.Fatal("the transfer went through")
		}
		if _, err := old.Propose(c.ctx(5*time.Second), system(project("refused"))); err == nil {
			t.Fatal("raft lets go of a stuck transfer by itself: letGo is no longer needed")
		}
		c.await("the stuck leader stops", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return fatal[old.id] != nil })
		next := c.leader(c.others(old)...)
		c.propose(next, project("after"))
		for _, ch := range stalled {
			close(ch)
		}
		c.heal()
	})
}
