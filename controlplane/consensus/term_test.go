package consensus

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"bmc/fsm"
	"bmc/metal"
)

// Who looked at its state, lost its place and won it back must not go on where it
// was: the leader between has acknowledged what was not looked at.
func TestWhatBeganInAnEarlierTermIsRefused(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		first := c.leader()
		term := first.LeaderTerm()
		if term == 0 {
			t.Fatal("a leader without a term")
		}
		hand := func(from, to *member) {
			t.Helper()
			if err := from.TransferLeadership(c.ctx(10*time.Second), to.id); err != nil {
				t.Fatal(err)
			}
			c.await("the other leads", to.IsLeader)
		}
		between := c.others(first)[0]
		hand(first, between)
		if got := first.LeaderTerm(); got != 0 {
			t.Errorf("a follower leads in term %d", got)
		}
		c.propose(between, project("between"))
		hand(between, first)

		if _, err := first.readIndexIn(c.ctx(10*time.Second), term); metal.CodeOf(err) != metal.CodeNoLeader {
			t.Errorf("a read that began before: %v", err)
		}
		if _, err := first.ProposeIn(c.ctx(10*time.Second), term, system(project("before"))); metal.CodeOf(err) != metal.CodeNoLeader {
			t.Errorf("a command that was built before: %v", err)
		}
		now := first.LeaderTerm()
		if now <= term {
			t.Fatalf("term %d after %d", now, term)
		}
		if _, err := first.readIndexIn(c.ctx(10*time.Second), now); err != nil {
			t.Errorf("a read of now: %v", err)
		}
		if _, err := first.ProposeIn(c.ctx(10*time.Second), now, system(project("after"))); err != nil {
			t.Errorf("a command of now: %v", err)
		}
		// What raft had in its queue all the time, as ProposeIn has put it there.
		var entry raft.Log
		if err := first.logs.GetLog(first.raft.LastIndex(), &entry); err != nil {
			t.Fatal(err)
		}
		cmd, err := fsm.Decode(entry.Data)
		if err != nil || cmd.GetHeader().GetTerm() != now || entry.Term != now {
			t.Fatalf("the entry of term %d says %v, %v", entry.Term, cmd.GetHeader(), err)
		}
		cmd = system(project("queued"))
		cmd.Header.Term = term
		data, err := fsm.Encode(cmd)
		if err != nil {
			t.Fatal(err)
		}
		f := first.raft.Apply(data, time.Second)
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		if res, ok := f.Response().(*fsm.Result); !ok || res.Err == nil || res.Err.Code != metal.CodeNoLeader {
			t.Errorf("a command that was queued before: %+v", f.Response())
		}
		v, err := first.LinearizableView(c.ctx(10 * time.Second))
		if err != nil || has(v, "before") || !has(v, "between") || !has(v, "after") || has(v, "queued") {
			t.Errorf("what was refused must not be there, the rest must: %v", err)
		}
	})
}
