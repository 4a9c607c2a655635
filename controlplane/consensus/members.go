package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"bmc/metal"
)

// Member is one entry of the group's configuration.
type Member struct {
	ID, Address string
	Voter       bool
}

// Members is the newest configuration that this node knows.
func (n *Node) Members() []Member {
	var out []Member
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		out = append(out, Member{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return out
}

// AddNonvoter lets a new member receive the log; at the leader.
func (n *Node) AddNonvoter(ctx context.Context, id, addr string) error {
	return n.reconfigure(ctx, "add a member", n.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, n.conf.Timing.Enqueue))
}

// AddVoter makes a member count; at the leader, once it has caught up. Errors:
// BUSY while a restore needs the leader to be the only voter.
func (n *Node) AddVoter(ctx context.Context, id, addr string) error {
	if !n.voting.TryLock() {
		return errRestoring()
	}
	defer n.voting.Unlock()
	return n.reconfigure(ctx, "promote a member", n.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(addr), 0, n.conf.Timing.Enqueue))
}

// Spare refuses to let a member go without which no majority of the voters that are
// left answers: the change could not be committed, and nothing after it. It asks them,
// at the leader. Errors: WRONG_STATE, NO_LEADER.
func (n *Node) Spare(ctx context.Context, id string) error {
	if m, ok := n.member(id); !ok || !m.Voter {
		return nil
	}
	// Nobody need wait for one that does not answer: it may be the one to go.
	count := func(voters []Member, answer map[string]bool) (left, alive int) {
		if self, ok := n.member(n.id); ok && self.Voter && id != n.id {
			left, alive = 1, 1
		}
		for _, m := range voters {
			if m.ID == id {
				continue
			}
			if left++; answer[m.ID] {
				alive++
			}
		}
		return left, alive
	}
	voters, answer, err := n.answering(ctx, func(voters []Member, answer map[string]bool) bool {
		left, alive := count(voters, answer)
		return alive > left/2
	})
	if err != nil {
		return err
	}
	left, alive := count(voters, answer)
	if alive <= left/2 {
		return metal.Errorf(metal.CodeWrongState, "of the %d voters that would be left %d answer: nothing could be changed any more, not even this back. "+
			"Start the others, or remove those first that do not answer", left, alive).WithHint("bmc cluster peers")
	}
	return nil
}

// RemoveServer takes a member out; at the leader. Errors: those of Spare.
func (n *Node) RemoveServer(ctx context.Context, id string) error {
	if err := n.Spare(ctx, id); err != nil {
		return err
	}
	return n.reconfigure(ctx, "remove a member", n.raft.RemoveServer(raft.ServerID(id), 0, n.conf.Timing.Enqueue))
}

func (n *Node) reconfigure(ctx context.Context, what string, f raft.IndexFuture) error {
	err := n.await(ctx, f)
	switch {
	case err == nil:
		return nil
	case wasNotDone(err):
		return errNoLeader(err)
	}
	return &metal.Error{Code: metal.CodeUnknownOutcome, Message: "the leader went away, or time ran out, while it tried to " + what, Hint: "bmc cluster peers", Err: err}
}

// Term, commit index and applied index as raft has them.
func (n *Node) Term() uint64         { return n.raft.CurrentTerm() }
func (n *Node) CommitIndex() uint64  { return n.raft.CommitIndex() }
func (n *Node) AppliedIndex() uint64 { return n.raft.AppliedIndex() }

// Snapshot takes a fresh snapshot and opens it.
func (n *Node) Snapshot(ctx context.Context) (io.ReadCloser, error) {
	f := n.raft.Snapshot()
	err := n.await(ctx, f)
	if err == nil {
		_, r, err := f.Open()
		return r, err
	}
	if !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil, fmt.Errorf("take a snapshot: %w", err)
	}
	list, err := n.snaps.List()
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	if len(list) == 0 {
		return nil, metal.Errorf(metal.CodeNotFound, "there is nothing to snapshot yet")
	}
	_, r, err := n.snaps.Open(list[0].ID)
	return r, err
}

// Move changes a member's address; at the leader.
func (n *Node) Move(ctx context.Context, id, addr string) error {
	m, ok := n.member(id)
	switch {
	case !ok:
		return metal.Errorf(metal.CodeNotFound, "node %s is no member", id).WithHint("bmc cluster peers")
	case m.Address == addr:
		return nil
	case m.Voter:
		return n.AddVoter(ctx, id, addr)
	}
	return n.AddNonvoter(ctx, id, addr)
}

// LeaderContact is how long ago this node heard from the leader: 0 at the
// leader, negative when it never has.
func (n *Node) LeaderContact() time.Duration {
	if n.IsLeader() {
		return 0
	}
	last := n.raft.LastContact()
	if last.IsZero() {
		return -1
	}
	return time.Since(last)
}

// SetDiverged freezes changes while the replicas' states differ and no
// majority says which is right.
func (n *Node) SetDiverged(on bool) {
	if n.diverged.Swap(on) != on {
		n.log.Error("the nodes' states differ and no majority agrees: changes are refused", "node", n.id, "frozen", on)
	}
}
