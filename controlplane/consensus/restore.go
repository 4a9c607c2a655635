package consensus

import (
	"context"
	"errors"
	"io"

	"github.com/hashicorp/raft"

	"bmc/metal"
)

// Restore replaces the whole state by a snapshot's, which the caller has
// checked, at the leader; the others get it as an installed snapshot. Commands
// under way end with an unknown outcome. above is the snapshot's own revision:
// what is proposed next gets a higher index. then proposes that, RaiseGeneration,
// even when the caller has left.
//
// Raft puts a restored snapshot into the leader's own store alone. A leader that
// loses its place before a majority has it would be left with a state that
// nobody else has, silently. So the leader first takes the others' votes: from
// then on none of them can be elected, because its own log, which has the hole
// of the restore, stays ahead of theirs. They vote again, by AddVoter, once they
// have caught up. A leader that stops in between leads again when it is back;
// one whose disk is lost in between costs a recovery of another node, with the
// state of before. Errors: NO_LEADER and UNKNOWN_OUTCOME of the votes, when
// nothing was restored; BUSY; what then returns.
func (n *Node) Restore(ctx context.Context, r io.Reader, size int64, above uint64, then func(context.Context) error) error {
	if !n.IsLeader() {
		return errNoLeader(nil)
	}
	if !n.voting.TryLock() {
		return errRestoring()
	}
	defer n.voting.Unlock()
	if err := n.takeVotes(ctx); err != nil {
		return err
	}
	// The timeout is for raft's ear only. Raft reads r to its end whoever waits.
	err := n.raft.Restore(&raft.SnapshotMeta{Version: raft.SnapshotVersionMax, ID: "restored", Index: above, Size: size}, r, 0)
	n.scan.reset()
	switch {
	case err == nil:
		return then(context.WithoutCancel(ctx))
	case wasNotDone(err):
		return errNoLeader(err)
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
		return &metal.Error{Code: metal.CodeUnknownOutcome, Message: "the leader went away while it restored a snapshot", Hint: "bmc cluster peers", Err: err}
	}
	return &metal.Error{Code: metal.CodeWrongState, Message: "the snapshot was not restored: " + err.Error(), Hint: "bmc cluster peers", Err: err}
}

// takeVotes makes this node the only voter.
func (n *Node) takeVotes(ctx context.Context) error {
	for _, m := range n.Members() {
		if !m.Voter || m.ID == n.id {
			continue
		}
		n.log.Warn("a node has no vote until it has the restored state", "node", m.ID, "addr", m.Address)
		if err := n.reconfigure(ctx, "restore a snapshot", n.raft.DemoteVoter(raft.ServerID(m.ID), 0, n.conf.Timing.Enqueue)); err != nil {
			return err
		}
	}
	if n.otherVoters() { // another led in between
		return errNoLeader(nil)
	}
	return ctx.Err()
}

func errRestoring() error {
	return metal.Errorf(metal.CodeBusy, "a snapshot is being restored, or a node is being made a voter: try again in a moment").WithHint("bmc cluster peers")
}

// Restoring says whether no member can be made a voter now.
func (n *Node) Restoring() bool {
	if !n.voting.TryLock() {
		return true
	}
	n.voting.Unlock()
	return false
}
