package controlplane

import (
	"context"
	"log/slog"
	"slices"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/controlplane/consensus"
	"bmc/controlplane/rpc"
	"bmc/fsm"
)

const (
	promoteEvery = time.Second
	promoteWait  = 3 * time.Second
	closeEnough  = 64 // entries that a member may lack when it is promoted
)

// promoter makes nodes that have joined voters, at the leader. A node counts
// only once it runs and has caught up: a voter that does not answer costs a
// small cluster its quorum.
type promoter struct {
	raft  *consensus.Node
	fsm   *fsm.FSM
	peers *rpc.Peers
	log   *slog.Logger
}

// run works until ctx, the term, ends.
func (p promoter) run(ctx context.Context) {
	tick := time.NewTicker(promoteEvery)
	defer tick.Stop()
	for {
		p.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p promoter) look(ctx context.Context) {
	members := p.raft.Members()
	addrs := make([]string, 0, len(members))
	for _, m := range members {
		addrs = append(addrs, m.Address)
		if _, ok := p.fsm.View().Node(m.ID); !ok && len(members) > 1 {
			p.do(ctx, "removed node is out of the group", m, func(ctx context.Context, id, _ string) error { return p.raft.RemoveServer(ctx, id) })
			continue
		}
		if !m.Voter && !p.raft.Restoring() && p.caughtUp(ctx, m) {
			p.do(ctx, "node is a voter now", m, p.raft.AddVoter)
		}
	}
	p.peers.Retain(addrs)
	for n := range p.fsm.View().Nodes() { // whose joining was interrupted between two commands
		known := func(m consensus.Member) bool { return m.ID == n.ID }
		if !slices.ContainsFunc(members, known) {
			p.do(ctx, "node receives the log now", consensus.Member{ID: n.ID, Address: n.Address}, p.raft.AddNonvoter)
		}
	}
}

func (p promoter) do(ctx context.Context, what string, m consensus.Member, change func(context.Context, string, string) error) {
	ctx, cancel := context.WithTimeout(ctx, promoteWait)
	defer cancel()
	if err := change(ctx, m.ID, m.Address); err != nil {
		p.log.Warn("the group's configuration was not changed", "node", m.ID, "addr", m.Address, "err", err)
		return
	}
	p.log.Info(what, "node", m.ID, "addr", m.Address)
}

// caughtUp asks a member how far it is.
func (p promoter) caughtUp(ctx context.Context, m consensus.Member) bool {
	ctx, cancel := context.WithTimeout(ctx, promoteWait)
	defer cancel()
	conn, err := p.peers.Conn(m.Address)
	if err != nil {
		return false
	}
	resp, err := bmcv1.NewClusterClient(conn).Peers(ctx, &bmcv1.PeersRequest{Local: true})
	if err != nil || len(resp.GetPeers()) != 1 || resp.GetPeers()[0].GetId() != m.ID {
		p.log.Debug("a new node does not answer yet", "node", m.ID, "addr", m.Address, "err", err)
		return false
	}
	self := resp.GetPeers()[0]
	// In a young cluster even a node that has heard nothing lacks little: it
	// must at least have applied its own joining.
	if n, ok := p.fsm.View().Node(m.ID); ok && self.GetRevision() < n.Revision {
		return false
	}
	return self.GetAppliedIndex()+closeEnough >= p.raft.CommitIndex()
}
