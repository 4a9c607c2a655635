package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"bmc/fsm"
	"bmc/fsm/state"
	"bmc/metal"
)

// inBubble runs a test in fake time: hours of partitions cost milliseconds.
func inBubble(t *testing.T, n int, f func(t *testing.T, c *cluster)) {
	synctest.Test(t, func(t *testing.T) { f(t, newCluster(t, n)) })
}

func TestEveryNodeReadsWhatWasWritten(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		for i := range 20 {
			name := fmt.Sprintf("p-%d", i)
			c.propose(c.leader(), project(name))
			for _, m := range c.members {
				v, err := m.LinearizableView(c.ctx(5 * time.Second))
				if err != nil || !has(v, name) {
					t.Fatalf("%s misses %s: %v", m.id, name, err)
				}
			}
		}
	})
}

// Waiting for raft's commit index would hang here: elections and barriers move
// it, and never reach the state machine.
func TestIdleClusterAnswersAtOnce(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		for range 3 {
			time.Sleep(time.Hour)
			old := c.leader()
			for _, m := range c.members {
				began := time.Now()
				if _, err := m.LinearizableView(c.ctx(5 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(began); d > 100*time.Millisecond {
					t.Fatalf("%s took %s", m.id, d)
				}
			}
			if err := old.TransferLeadership(c.ctx(10*time.Second), ""); err != nil {
				t.Fatal(err)
			}
			c.await("another leads", func() bool { return !old.IsLeader() && c.leader() != old })
		}
	})
}

func TestPausedFollowerBlocksAndThenAnswersTheNewValue(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		leader := c.leader()
		slow := c.others(leader)[0]
		slow.fsm.pause()
		c.propose(leader, project("new"))
		if has(slow.StaleView(), "new") {
			t.Fatal("the pause does not work")
		}
		if _, err := slow.LinearizableView(c.ctx(time.Minute)); metal.CodeOf(err) != metal.CodeDeadline {
			t.Fatalf("a paused follower answered: %v", err)
		}
		type answer struct {
			v   *state.View
			err error
		}
		got := make(chan answer, 1)
		go func() {
			v, err := slow.LinearizableView(c.ctx(time.Hour))
			got <- answer{v, err}
		}()
		synctest.Wait()
		select {
		case a := <-got:
			t.Fatalf("answered while paused: %v", a.err)
		default:
		}
		slow.fsm.resume()
		if a := <-got; a.err != nil || !has(a.v, "new") {
			t.Fatalf("after the pause: %v", a.err)
		}
	})
}

func TestIsolatedLeaderStepsDown(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		old := c.leader()
		c.propose(old, project("before"))
		c.isolate(old)
		synctest.Wait() // what had left before has arrived
		// It still believes that it leads; nothing it says then counts.
		if _, err := old.LinearizableView(c.ctx(10 * time.Second)); err == nil {
			t.Fatal("a leader that nobody confirms answered a linearizable read")
		}
		c.heal()
		old = c.leader()
		c.isolate(old)
		if _, err := old.Propose(c.ctx(10*time.Second), system(project("lost"))); metal.CodeOf(err) != metal.CodeUnknownOutcome {
			t.Fatalf("a minority accepted a write: %v", err)
		}
		if _, err := old.LinearizableView(c.ctx(10 * time.Second)); err == nil {
			t.Fatal("a minority answered a linearizable read")
		}
		c.await("it steps down", func() bool { return !old.IsLeader() })
		if _, err := old.Propose(c.ctx(10*time.Second), system(project("refused"))); metal.CodeOf(err) != metal.CodeNoLeader {
			t.Fatalf("after stepping down: %v", err)
		}
		fresh := c.leader(c.others(old)...)
		c.propose(fresh, project("during"))
		time.Sleep(2 * time.Hour)
		c.propose(c.leader(c.others(old)...), project("later"))
		c.heal()
		for _, m := range c.members {
			var v *state.View
			c.await("it reads again", func() bool {
				var err error
				v, err = m.LinearizableView(c.ctx(5 * time.Second))
				return err == nil
			})
			for _, name := range []string{"before", "during", "later"} {
				if !has(v, name) {
					t.Errorf("%s lost %s", m.id, name)
				}
			}
			if has(v, "lost") {
				t.Errorf("%s has what was never acknowledged by a quorum and was replaced", m.id)
			}
		}
		c.sameHash()
	})
}

func (c *cluster) sameHash() {
	c.t.Helper()
	c.await("all replicas are equal", func() bool {
		a, b, d := c.members[0].StaleView(), c.members[1].StaleView(), c.members[2].StaleView()
		return a.Hash() == b.Hash() && b.Hash() == d.Hash()
	})
}

func TestLeaderLoss(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		old := c.leader()
		if !<-old.lead {
			t.Fatal("the leader's work did not start")
		}
		c.propose(old, project("one"))
		began := time.Now()
		c.stop(old)
		if <-old.lead {
			t.Fatal("the leader's work did not end")
		}
		fresh := c.leader(c.others(old)...)
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("a new leader took %s", d)
		}
		if !<-fresh.lead {
			t.Fatal("the new leader's work did not start")
		}
		c.propose(fresh, project("two"))
		v, err := c.others(old)[0].LinearizableView(c.ctx(5 * time.Second))
		if err != nil || !has(v, "one") || !has(v, "two") {
			t.Fatalf("after the loss: %v", err)
		}
	})
}

func TestRestartFromSnapshot(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		m := c.leader()
		for i := range 5 {
			c.propose(m, project(fmt.Sprintf("p-%d", i)))
		}
		r, err := m.Snapshot(c.ctx(10 * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := readAll(r); err != nil || len(b) == 0 {
			t.Fatalf("snapshot: %d bytes, %v", len(b), err)
		}
		if r, err = m.Snapshot(c.ctx(10 * time.Second)); err != nil { // nothing new
			t.Fatal(err)
		}
		_ = r.Close()
		c.stop(m)
		again := c.make(m.id)
		again.store, again.snaps = m.store, m.snaps
		for i := range c.members {
			if c.members[i] == m {
				c.members[i] = again
			}
		}
		c.wire()
		c.start(again)
		var v *state.View
		c.await("it reads again", func() bool {
			v, err = again.LinearizableView(c.ctx(5 * time.Second))
			return err == nil
		})
		for i := range 5 {
			if !has(v, fmt.Sprintf("p-%d", i)) {
				t.Errorf("p-%d is lost", i)
			}
		}
	})
}

func TestRestoreReplacesEverywhere(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		m := c.leader()
		c.propose(m, project("kept"))
		var backup bytes.Buffer
		if err := fsm.WriteSnapshot(&backup, m.StaleView()); err != nil {
			t.Fatal(err)
		}
		for i := range 30 {
			c.propose(m, project(fmt.Sprintf("gone-%d", i)))
		}
		if err := m.Restore(c.ctx(time.Minute), bytes.NewReader(backup.Bytes()), int64(backup.Len()), 0, nil, raise(m)); err != nil {
			t.Fatal(err)
		}
		c.propose(c.leader(), project("after"))
		for _, o := range c.members {
			var v *state.View
			c.await("it reads", func() bool {
				var err error
				v, err = o.LinearizableView(c.ctx(5 * time.Second))
				return err == nil
			})
			if !has(v, "kept") || !has(v, "after") || has(v, "gone-1") {
				t.Errorf("%s: kept %v, after %v, gone %v", o.id, has(v, "kept"), has(v, "after"), has(v, "gone-1"))
			}
		}
		c.sameHash()
		// A new leader that holds the hole in its log answers reads, too.
		c.enfranchise()
		old := c.leader()
		c.stop(old)
		if _, err := c.leader(c.others(old)...).LinearizableView(c.ctx(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestMembers(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		m := c.leader()
		gone := c.others(m)[0]
		if err := gone.RemoveServer(c.ctx(5*time.Second), m.id); metal.CodeOf(err) != metal.CodeNoLeader {
			t.Fatalf("a follower changed the group: %v", err)
		}
		// The living one would leave the leader with the dead one, and nothing to commit by.
		c.isolate(gone)
		if err := m.RemoveServer(c.ctx(5*time.Second), c.others(m)[1].id); metal.CodeOf(err) != metal.CodeWrongState {
			t.Fatalf("the last that answers was removed: %v", err)
		}
		c.propose(m, project("as-before"))
		began := time.Now()
		if err := m.RemoveServer(c.ctx(5*time.Second), gone.id); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took >= time.Second/2 {
			t.Errorf("it waited %v for the one that was to go", took)
		}
		if got := m.Members(); len(got) != 2 {
			t.Fatalf("members %+v", got)
		}
	})
}

func TestProposeIsBounded(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		m := c.leader()
		m.fsm.pause()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if _, err := m.Propose(ctx, system(project("slow"))); metal.CodeOf(err) != metal.CodeUnknownOutcome {
			t.Fatalf("got %v", err)
		}
		m.fsm.resume()
		c.await("it is applied after all", func() bool { return has(m.StaleView(), "slow") })
	})
}

func TestWasNotDone(t *testing.T) {
	for err, want := range map[error]bool{
		raft.ErrNotLeader: true, raft.ErrEnqueueTimeout: true, raft.ErrLeadershipTransferInProgress: true,
		raft.ErrLeadershipLost: false, raft.ErrRaftShutdown: false, raft.ErrAbortedByRestore: false,
		context.DeadlineExceeded: false, errors.New("disk"): false,
	} {
		if wasNotDone(err) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
}
