package consensus

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// raise is what follows a restore.
func raise(m *member) func(context.Context) error {
	return func(ctx context.Context) error {
		res, err := m.Propose(ctx, system(&logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{}}}))
		if err != nil {
			return err
		}
		if res.Err != nil {
			return res.Err
		}
		return nil
	}
}

// backup saves a state with "kept" in it, and writes "gone-N" after it.
func (c *cluster) backup() *bytes.Buffer {
	c.t.Helper()
	m := c.leader()
	c.propose(m, project("kept"))
	out := new(bytes.Buffer)
	if err := fsm.WriteSnapshot(out, m.StaleView()); err != nil {
		c.t.Fatal(err)
	}
	for i := range 3 {
		c.propose(m, project(fmt.Sprintf("gone-%d", i)))
	}
	return out
}

// event is a reader that does something when raft begins to read.
type event struct {
	io.Reader
	begin func()
}

func (e *event) Read(p []byte) (int, error) {
	if e.begin != nil {
		e.begin()
		e.begin = nil
	}
	return e.Reader.Read(p)
}

// enfranchise does what the leader's promoter does.
func (c *cluster) enfranchise() {
	c.t.Helper()
	m := c.leader()
	for _, o := range m.Members() {
		if o.Voter {
			continue
		}
		for _, other := range c.members {
			if other.id == o.ID {
				c.await("it has caught up", func() bool { return other.StaleView().Hash() == m.StaleView().Hash() })
			}
		}
		if err := m.AddVoter(c.ctx(10*time.Second), o.ID, o.Address); err != nil {
			c.t.Fatal(err)
		}
	}
}

// A leader that is cut off in the middle of a restore is replaced by nobody and
// has its state taken over by the others: it does not stay behind with it.
func TestLeaderCutOffWhileItRestores(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		saved := c.backup()
		m := c.leader()
		cut := &event{Reader: saved, begin: func() {
			c.isolate(m)
			time.Sleep(time.Minute) // the others would have elected one of them long since
			for _, o := range c.others(m) {
				if o.IsLeader() {
					t.Errorf("%s leads beside the one that restores", o.id)
				}
			}
			if err := m.AddVoter(c.ctx(time.Second), c.others(m)[0].id, c.others(m)[0].id); metal.CodeOf(err) != metal.CodeBusy {
				t.Errorf("a voter was added during a restore: %v", err)
			}
		}}
		if err := m.Restore(c.ctx(5*time.Minute), cut, int64(saved.Len()), 0, nil, raise(m)); err != nil {
			t.Fatal(err)
		}
		c.heal()
		c.enfranchise()
		c.sameHash()
		if v := c.others(m)[0].StaleView(); !has(v, "kept") || has(v, "gone-1") || v.Meta().Generation != 1 {
			t.Errorf("kept %v, gone %v, generation %d", has(v, "kept"), has(v, "gone-1"), v.Meta().Generation)
		}
		for _, o := range c.leader().Members() {
			if !o.Voter {
				t.Errorf("%s has no vote", o.ID)
			}
		}
		c.stop(m)
		c.propose(c.leader(c.others(m)...), project("after"))
	})
}

// A leader that loses its place before the restore begins has restored nothing.
func TestLeaderLostBeforeItRestores(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		saved := c.backup()
		m := c.leader()
		c.isolate(m)
		err := m.Restore(c.ctx(5*time.Minute), saved, int64(saved.Len()), 0, nil, raise(m))
		if code := metal.CodeOf(err); code != metal.CodeUnknownOutcome && code != metal.CodeNoLeader {
			t.Errorf("a leader without followers restored: %v", err)
		}
		c.leader(c.others(m)...)
		c.heal()
		c.await("one leads", func() bool { return c.leader().IsLeader() })
		c.enfranchise()
		c.propose(c.leader(), project("after"))
		c.sameHash()
		if v := m.StaleView(); !has(v, "gone-1") || !has(v, "after") {
			t.Errorf("gone %v, after %v", has(v, "gone-1"), has(v, "after"))
		}
	})
}

// A node that is down while another restores has the state when it is back,
// whichever of them it is, and the cluster goes on without it until then.
func TestRestoreWithADeadNode(t *testing.T) {
	for _, size := range []int{3, 5} {
		for first := range size - 1 {
			t.Run(fmt.Sprintf("%d nodes, from %d on", size, first), func(t *testing.T) {
				inBubble(t, size, func(t *testing.T, c *cluster) {
					saved := c.backup()
					m := c.leader()
					others, dead := c.others(m), map[*member]bool{}
					for i := range (size - 1) / 2 { // as many as may be dead
						dead[others[(first+i)%len(others)]] = true
					}
					for d := range dead {
						c.isolate(d)
					}
					if err := m.Restore(c.ctx(5*time.Minute), saved, int64(saved.Len()), 0, nil, raise(m)); err != nil {
						t.Fatal(err)
					}
					for _, o := range others {
						if !dead[o] {
							c.await("it has caught up", func() bool { return o.StaleView().Hash() == m.StaleView().Hash() })
							if err := m.AddVoter(c.ctx(10*time.Second), o.id, o.id); err != nil {
								t.Fatal(err)
							}
						}
					}
					c.propose(m, project("meanwhile"))
					c.heal()
					c.enfranchise()
					c.sameHash()
				})
			})
		}
	}
}

// A node whose log's disk is full answers heartbeats, and has no part in a majority:
// it loses its vote before one that works, whichever of them it is.
func TestRestoreWithAFullDisk(t *testing.T) {
	for i := range 2 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, c *cluster) {
				saved := c.backup()
				m := c.leader()
				c.others(m)[i].fill(true)
				if err := m.Restore(c.ctx(5*time.Minute), saved, int64(saved.Len()), 0, nil, raise(m)); err != nil {
					t.Fatal(err)
				}
				c.others(m)[i].fill(false)
				c.enfranchise()
				c.sameHash()
			})
		})
	}
}

// Where too few voters answer, nothing is changed: neither the state nor the votes.
func TestRestoreWithoutAMajority(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		saved := c.backup()
		m := c.leader()
		for _, o := range c.others(m) {
			c.isolate(o)
		}
		if err := m.Restore(c.ctx(5*time.Minute), saved, int64(saved.Len()), 0, nil, raise(m)); err == nil {
			t.Fatal("restored")
		}
		for _, o := range m.Members() {
			if !o.Voter {
				t.Errorf("%s has no vote", o.ID)
			}
		}
		c.heal()
		c.propose(c.leader(), project("after"))
		c.sameHash()
		if v := c.leader().StaleView(); !has(v, "gone-1") {
			t.Error("it was restored")
		}
	})
}

// A restore that no longer fits the state is refused, whether that was so before the
// votes were taken or came about meanwhile: nothing is restored, and who lost a vote
// gets it back.
func TestRestoreThatNoLongerFits(t *testing.T) {
	stale := metal.Errorf(metal.CodeConflict, "another was restored")
	for _, tt := range []struct {
		name   string
		asked  int // times, of which the last refuses
		voters int
	}{{"before", 1, 3}, {"meanwhile", 2, 1}} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, c *cluster) {
				saved := c.backup()
				m := c.leader()
				asked := 0
				fits := func(now *state.View) error {
					if err := m.AddVoter(c.ctx(time.Second), c.others(m)[0].id, c.others(m)[0].id); metal.CodeOf(err) != metal.CodeBusy {
						t.Errorf("asked while others can restore: %v", err)
					}
					if !has(now, "gone-2") {
						t.Error("asked about an old state")
					}
					if asked++; asked == tt.asked {
						return stale
					}
					return nil
				}
				err := m.Restore(c.ctx(time.Minute), saved, int64(saved.Len()), 0, fits, func(context.Context) error {
					t.Error("it goes on")
					return nil
				})
				if metal.CodeOf(err) != metal.CodeConflict || asked != tt.asked {
					t.Errorf("%v, asked %d times", err, asked)
				}
				voters := 0
				for _, o := range m.Members() {
					if o.Voter {
						voters++
					}
				}
				if voters != tt.voters {
					t.Errorf("%d voters, want %d", voters, tt.voters)
				}
				c.enfranchise()
				c.propose(m, project("after"))
				c.sameHash()
				if v := m.StaleView(); !has(v, "gone-2") || v.Meta().Generation != 0 {
					t.Errorf("gone %v, generation %d", has(v, "gone-2"), v.Meta().Generation)
				}
			})
		})
	}
}
