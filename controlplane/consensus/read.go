package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"bmc/fsm/state"
	"bmc/internal/mutant"
	"bmc/metal"
)

// ReadIndex answers, at the leader, the index that a reader's state machine
// must have recorded so that a read begun now misses no acknowledged write
// (Raft, section 6.4). The order matters: the term's barrier has passed, so the
// commit index covers former terms; it is taken first; only then is leadership
// confirmed by a quorum, in that very term: a node that lost its place and won it
// back meanwhile has a commit index that lacks another's writes. Reads that wait
// together share one such round. NO_LEADER when this node does not lead.
func (n *Node) ReadIndex(ctx context.Context) (uint64, error) {
	if !n.IsLeader() {
		return 0, errNoLeader(nil)
	}
	return n.here.index(ctx)
}

func (n *Node) readIndex(ctx context.Context) (uint64, error) {
	return n.readIndexIn(ctx, n.LeaderTerm())
}

// readIndexIn is readIndex of a term that LeaderTerm answered before.
func (n *Node) readIndexIn(ctx context.Context, term uint64) (uint64, error) {
	if term == 0 {
		return 0, errNoLeader(nil)
	}
	commit := n.raft.CommitIndex()
	if err := n.verify(ctx, term); err != nil {
		return 0, err
	}
	return n.scan.lastCommand(commit, n.logs, n.fsm.CommandIndex)
}

// VerifyLeader returns nil once a quorum has confirmed that this node leads, in
// answers to requests that were sent after the call. NO_LEADER otherwise.
func (n *Node) VerifyLeader(ctx context.Context) error { return n.verify(ctx, n.raft.CurrentTerm()) }

// VerifyLeaderIn is VerifyLeader of a term that LeaderTerm answered, or Leading
// was given, before.
func (n *Node) VerifyLeaderIn(ctx context.Context, term uint64) error { return n.verify(ctx, term) }

// verify is VerifyLeader of one term.
func (n *Node) verify(ctx context.Context, term uint64) error {
	mark := n.witness.mark()
	for {
		err := n.await(ctx, n.raft.VerifyLeader())
		switch {
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
			return err
		case err != nil:
			return errNoLeader(err)
		case n.raft.CurrentTerm() != term:
			return errNoLeader(nil)
		case n.witness.confirmed(raft.ServerID(n.id), n.raft.GetConfiguration().Configuration().Servers, term, mark):
			return nil
		}
		// Answers to earlier requests: each peer has one heartbeat under way, so
		// that the next one is of after the call.
	}
}

// LinearizableView answers a View that holds every write acknowledged before
// the call, at any node.
func (n *Node) LinearizableView(ctx context.Context) (*state.View, error) {
	if mutant.On("no-read-index") {
		return n.fsm.View(), nil
	}
	ask := n.ReadIndex
	if !n.IsLeader() {
		ask = n.there.index
	}
	idx, err := ask(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.fsm.WaitCommandIndex(ctx, idx); err != nil {
		return nil, &metal.Error{Code: metal.CodeDeadline, Message: "this node has not caught up in time", Hint: "bmc cluster peers", Err: err}
	}
	return n.fsm.View(), nil
}

// scanned remembers how far the committed log was looked through for commands.
// What is committed never changes, so each entry is looked at once a term.
type scanned struct {
	mu      sync.Mutex
	upTo    uint64
	command uint64 // last command at or below upTo
}

func (s *scanned) reset() {
	s.mu.Lock()
	s.upTo, s.command = 0, 0
	s.mu.Unlock()
}

// lastCommand is the index of the last command at or below commit. Raft's own
// entries (no-ops, barriers, configurations) never reach the state machine, so
// a reader that waited for the commit index of an idle cluster would hang.
func (s *scanned) lastCommand(commit uint64, logs raft.LogStore, applied func() uint64) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	floor := max(s.command, applied())
	from := max(s.upTo, floor)
	found := floor
	var entry raft.Log
	for i := commit; i > from; i-- {
		err := logs.GetLog(i, &entry)
		if errors.Is(err, raft.ErrLogNotFound) {
			// A snapshot has replaced it and all before it, and the state
			// machine had applied those when it was taken.
			found = max(found, applied())
			break
		}
		if err != nil {
			return 0, fmt.Errorf("read log entry %d: %w", i, err)
		}
		if entry.Type == raft.LogCommand {
			found = i
			break
		}
	}
	if commit > s.upTo {
		s.upTo, s.command = commit, found
	}
	return found, nil
}

// watchLeadership runs the leader's work while this node leads.
func (n *Node) watchLeadership(ctx context.Context) {
	defer close(n.done)
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case leads := <-n.raft.LeaderCh():
			stop()
			stop = func() {}
			if leads {
				stop = n.startLeading(ctx)
			} else {
				n.log.Info("leadership lost", "node", n.id)
			}
			n.announce()
		case <-n.leaders:
			n.announce()
		case <-ctx.Done():
			return
		}
	}
}

// startLeading returns a func that ends the work and waits for its end. Two
// quick changes may arrive as one; a second "leads" therefore starts anew.
func (n *Node) startLeading(ctx context.Context) func() {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		term := n.raft.CurrentTerm()
		if err := n.barrier(ctx); err != nil {
			n.log.Warn("barrier of the new term failed", "node", n.id, "term", term, "err", err)
			return
		}
		n.scan.reset()
		n.ready.Store(term)
		n.announce()
		n.log.Info("leadership gained", "node", n.id, "term", term)
		n.conf.Leading(ctx, term)
	}()
	return func() {
		n.ready.Store(0)
		cancel()
		<-done
	}
}

// barrier waits until every command of former terms is applied here. It tries
// again while this node leads: a timeout leaves a leader that does no work.
func (n *Node) barrier(ctx context.Context) error {
	for {
		err := n.await(ctx, n.raft.Barrier(n.conf.Timing.Enqueue))
		if err == nil || ctx.Err() != nil || n.raft.State() != raft.Leader {
			return err
		}
		timer := time.NewTimer(n.conf.Timing.Lease)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

func (n *Node) announce() {
	n.mu.Lock()
	close(n.change)
	n.change = make(chan struct{})
	n.mu.Unlock()
}
