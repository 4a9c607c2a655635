package consensus

import (
	"context"
	"fmt"

	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/metal"
)

// Propose puts a command into the log and returns what the state machine
// answered once it was applied here. Errors: NO_LEADER when the command is
// certainly in no log, so another node may be asked; UNKNOWN_OUTCOME when it
// may or may not be applied some day, so only the same request ID is safe.
func (n *Node) Propose(ctx context.Context, cmd *logpb.Command) (*fsm.Result, error) {
	return n.ProposeIn(ctx, 0, cmd)
}

// ProposeIn is Propose of a command that was built by this node's state in the
// term that LeaderTerm answered before it was looked at; 0: in any term.
// NO_LEADER when this node leads in another term by now: a leader between may
// have acknowledged what the command's builder has not seen. Where the state knows
// terms (fsm.TermLevel), a command that has waited in raft's queue until a later term
// is refused as well; before, it counts.
func (n *Node) ProposeIn(ctx context.Context, term uint64, cmd *logpb.Command) (*fsm.Result, error) {
	now := n.LeaderTerm()
	if now == 0 || term != 0 && term != now {
		return nil, errNoLeader(nil)
	}
	if n.diverged.Load() {
		return nil, metal.Errorf(metal.CodeDiverged, "the nodes' states differ and no majority agrees: nothing is changed until they are repaired").
			WithHint("bmc cluster peers")
	}
	if n.fsm.View().Meta().FeatureLevel >= fsm.TermLevel && cmd.GetHeader() != nil {
		cmd.Header.Term = term
	}
	data, err := fsm.Encode(cmd)
	if err != nil {
		return nil, &metal.Error{Code: metal.CodeInvalid, Message: "the request cannot be recorded", Err: err}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := hitPropose(cmd, "before"); err != nil {
		return nil, err
	}
	if n.LeaderTerm() != now { // encoding took its time
		return nil, errNoLeader(nil)
	}
	f := n.raft.Apply(data, n.conf.Timing.Enqueue)
	if err := n.await(ctx, f); err != nil {
		if wasNotDone(err) {
			return nil, errNoLeader(err)
		}
		return nil, &metal.Error{Code: metal.CodeUnknownOutcome,
			Message: "the leader went away before it answered: the change may or may not have happened",
			Hint:    "repeat the command with the same request ID", Err: err}
	}
	if err := hitPropose(cmd, "after"); err != nil {
		return nil, err
	}
	res, ok := f.Response().(*fsm.Result)
	if !ok {
		return nil, fmt.Errorf("the state machine answered %T to %s", f.Response(), fsm.Name(cmd))
	}
	if res.Err != nil && res.Err.Code == metal.CodeNoLeader { // of a later term
		return nil, errNoLeader(res.Err)
	}
	return res, nil
}
