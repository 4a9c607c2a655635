package consensus

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"bmc/fsm/state"
	"bmc/internal/pause"
	"bmc/metal"
)

// entryAgain is after how long raft has surely sent an entry again, and not pipelined,
// to who has refused it: up to twice its CommitTimeout of 50 ms, and the way there.
const entryAgain = 200 * time.Millisecond

// answerLook is the part of Timing.Election between two looks at who answers.
const answerLook = 20

// Restore replaces the whole state by a snapshot's, which the caller has
// checked, at the leader; the others get it as an installed snapshot. Commands
// under way end with an unknown outcome. above is the snapshot's own revision:
// what is proposed next gets a higher index. then proposes that, RaiseGeneration,
// even when the caller has left.
//
// The caller has raised the snapshot above a state that it looked at before. fits,
// unless nil, says whether that still holds: another restore may have been under way
// meanwhile. It is asked while no other can be, about a state with all that was
// committed in it, last right before the snapshot is installed.
//
// Raft puts a restored snapshot into the leader's own store alone. A leader that
// loses its place before a majority has it would be left with a state that
// nobody else has, silently. So the leader first takes the others' votes: from
// then on none of them can be elected, because its own log, which has the hole
// of the restore, stays ahead of theirs. They vote again, by AddVoter, once they
// have caught up. A leader that stops in between leads again when it is back;
// one whose disk is lost in between costs a recovery of another node, with the
// state of before. Errors: WRONG_STATE when too few voters answer, NO_LEADER and
// UNKNOWN_OUTCOME of the votes, when nothing was restored; BUSY; what fits and then return.
func (n *Node) Restore(ctx context.Context, r io.Reader, size int64, above uint64, fits func(*state.View) error, then func(context.Context) error) error {
	if !n.IsLeader() {
		return errNoLeader(nil)
	}
	if !n.voting.TryLock() {
		return errRestoring()
	}
	defer n.voting.Unlock()
	if fits == nil {
		fits = func(*state.View) error { return nil }
	}
	if err := fits(n.StaleView()); err != nil { // before a vote is taken
		return err
	}
	if err := n.takeVotes(ctx); err != nil {
		return err
	}
	if err := fits(n.StaleView()); err != nil { // takeVotes has waited for a barrier
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

// takeVotes makes this node the only voter. A change of the votes counts once a
// majority of those that are left has it, so those that do not answer lose theirs
// first: were it the other way round, a leader with a dead voter beside it could
// change nothing any more, not even this back. Each is asked anew before each change,
// and none is made that those who answer could not carry. What is interrupted here
// the leader's promoter undoes, as it does after a restore: who has caught up votes again.
func (n *Node) takeVotes(ctx context.Context) error {
	term := n.LeaderTerm()
	for {
		voters, answer, err := n.answering(ctx, func(voters []Member, answer map[string]bool) bool { return len(answer) == len(voters) })
		if err != nil {
			return err
		}
		alive := 1
		for _, m := range voters {
			if answer[m.ID] {
				alive++
			}
		}
		switch all := len(voters) + 1; {
		case term == 0 || n.LeaderTerm() != term: // another led in between
			return errNoLeader(nil)
		case len(voters) == 0:
			return ctx.Err()
		case alive <= all/2:
			return metal.Errorf(metal.CodeWrongState, "%d of %d voters answer: a snapshot is restored when a majority does; nothing was restored. "+
				"Start the others, or remove those that are gone for good", alive, all).WithHint("bmc cluster peers")
		}
		m := voters[0]
		if i := slices.IndexFunc(voters, func(m Member) bool { return !answer[m.ID] }); i >= 0 {
			m = voters[i]
		}
		n.log.Warn("a node has no vote until it has the restored state", "node", m.ID, "addr", m.Address, "answers", answer[m.ID])
		if err := n.reconfigure(ctx, "restore a snapshot", n.raft.DemoteVoter(raft.ServerID(m.ID), 0, n.conf.Timing.Enqueue)); err != nil {
			return err
		}
	}
}

// answering is the other voters, and which of them accept heartbeats that are sent
// from now on, and an entry: one whose disk is full answers, and has no part in a
// majority. It waits until that is enough, at most as long as raft may take between two
// to one that has failed.
func (n *Node) answering(ctx context.Context, enough func(voters []Member, answer map[string]bool) bool) (voters []Member, answer map[string]bool, err error) {
	term, mark := n.raft.CurrentTerm(), n.witness.mark()
	// An entry, and a heartbeat, to each at once.
	for _, f := range []raft.Future{n.raft.Barrier(n.conf.Timing.Enqueue), n.raft.VerifyLeader()} {
		if err := n.await(ctx, f); err != nil {
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
			return nil, nil, errNoLeader(err)
		}
	}
	for _, m := range n.Members() {
		if m.Voter && m.ID != n.id {
			voters = append(voters, m)
		}
	}
	limited, cancel := context.WithTimeout(ctx, n.conf.Timing.Election)
	defer cancel()
	_ = pause.For(limited, entryAgain) // the entry counts once a majority has it: a no comes later
	for {
		answer = map[string]bool{}
		for _, m := range voters {
			if n.witness.accepts(raft.ServerID(m.ID), term, mark) {
				answer[m.ID] = true
			}
		}
		if enough(voters, answer) || pause.For(limited, n.conf.Timing.Election/answerLook) != nil {
			return voters, answer, ctx.Err()
		}
	}
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
