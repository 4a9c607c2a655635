package rpc

import (
	"context"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

type nodes struct {
	agentv1.UnimplementedNodesServer
	*API
}

func (s *nodes) ReadIndex(ctx context.Context, _ *agentv1.ReadIndexRequest) (*agentv1.ReadIndexResponse, error) {
	if !s.Proposer.IsLeader() {
		return nil, metal.Errorf(metal.CodeNoLeader, "node %s is not the leader", s.NodeID)
	}
	idx, err := s.Proposer.ReadIndex(ctx)
	if err != nil {
		return nil, err
	}
	return &agentv1.ReadIndexResponse{Index: idx}, nil
}

func (s *nodes) LeaderGone(ctx context.Context, req *agentv1.LeaderGoneRequest) (*agentv1.LeaderGoneResponse, error) {
	w := s.Raft.LeaderGone(ctx, req.GetLeaderId(), req.GetTerm())
	return &agentv1.LeaderGoneResponse{Gone: w.Gone, LastLogTerm: w.LastTerm, LastLogIndex: w.LastIndex}, nil
}
