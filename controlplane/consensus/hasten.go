package consensus

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
)

const (
	looksPerElection = 20 // how often a follower looks for its leader within Timing.Election
	staggerPart      = 4  // followers stand within Election and this part of it more
)

// hasten makes a follower stand soon after it has heard nothing for a whole
// election timeout. Raft's own timer looks only every one to two timeouts, so
// that it finds a dead leader after one to three; and because a member refuses
// a pre-vote while it still believes in its leader, the slower of two followers
// decides. The election timeout itself is not cut: who hears a heartbeat in
// time never stands. A candidate that fails, mostly because two stood at the
// same moment, tries again after half as long.
func (n *Node) hasten(ctx context.Context) {
	election := n.conf.Timing.Election
	calm := n.raft.ReloadableConfig()
	hurried := calm
	// Raft wants the leader's lease, which cannot be changed, to be no longer.
	hurried.HeartbeatTimeout = max(election/2, n.conf.Timing.Lease)
	hurried.ElectionTimeout = hurried.HeartbeatTimeout

	heard, hurries := time.Now(), false // a start is as good as a heartbeat
	limit := election + stagger(election)
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		// To the millisecond: two that look at the same ticks would stand together.
		pause := election / looksPerElection
		if left := limit - time.Since(heard); !hurries {
			pause = min(pause, max(left, time.Millisecond))
		}
		look.Reset(pause)
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		if n.raft.State() == raft.Leader {
			heard = time.Now()
		}
		if last := n.raft.LastContact(); last.After(heard) {
			heard = last
		}
		late := time.Since(heard) >= limit
		if late == hurries {
			continue
		}
		hurries = late
		config := calm
		if late {
			config = hurried // lowering the timeout makes a follower look at once
		} else {
			limit = election + stagger(election)
		}
		if err := n.raft.ReloadConfig(config); err != nil {
			n.log.Warn("raft's timing was not changed", "node", n.id, "err", err)
		}
	}
}

// stagger keeps two followers from standing at the same moment.
func stagger(election time.Duration) time.Duration {
	return rand.N(election/staggerPart + 1)
}
