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
