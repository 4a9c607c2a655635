package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"bmc/metal"
)

const (
	transferSettles = 15 * time.Second // until a failed transfer must have let go of writes
	transferLook    = 100 * time.Millisecond
)

// TransferLeadership hands leadership to a voter, or to the most up-to-date
// one when id is empty. It does not leave a leader that refuses writes: raft
// keeps refusing them while a failed transfer's goroutine waits, which it may
// do for ever (hashicorp/raft#696). A leader that has not let go in time stops
// its process; another is elected.
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	if n.raft.State() != raft.Leader {
		return errNoLeader(nil)
	}
	if !n.otherVoters() && id != n.id {
		return metal.Errorf(metal.CodeWrongState, "there is no other voter to hand leadership to: let a node join, or wait until one has caught up").WithHint("bmc cluster peers")
	}
	var f raft.Future
	if id == "" {
		f = n.raft.LeadershipTransfer()
	} else {
		m, ok := n.member(id)
		if !ok || !m.Voter {
			return metal.Errorf(metal.CodeWrongState, "node %s is not a voter", id).WithHint("bmc cluster peers")
		}
		if id == n.id {
			return nil
		}
		f = n.raft.LeadershipTransferToServer(raft.ServerID(m.ID), raft.ServerAddress(m.Address))
	}
	err := n.await(ctx, f)
	if err == nil {
		return nil
	}
	// In the background: the caller has its answer.
	n.wg.Go(func() { n.letGo() })
	return &metal.Error{Code: metal.CodeWrongState, Message: "leadership was not handed on; this node still leads or another was elected",
		Hint: "bmc cluster peers", Err: fmt.Errorf("hand on leadership: %w", err)}
}

// letGo waits until this node accepts writes again or leads no longer.
func (n *Node) letGo() {
	limit := time.Now().Add(transferSettles)
	for {
		if n.raft.State() != raft.Leader {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), n.conf.Timing.Enqueue)
		err := n.await(ctx, n.raft.Barrier(n.conf.Timing.Enqueue))
		cancel()
		if err == nil || !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
			return
		}
		if time.Now().After(limit) {
			n.conf.Fatal(errors.New("a failed transfer of leadership has left this leader refusing writes; it stops so that another is elected"))
			return
		}
		timer := time.NewTimer(transferLook)
		select {
		case <-timer.C:
		case <-n.closed:
			timer.Stop()
			return
		}
	}
}

func (n *Node) member(id string) (Member, bool) {
	for _, m := range n.Members() {
		if m.ID == id {
			return m, true
		}
	}
	return Member{}, false
}
