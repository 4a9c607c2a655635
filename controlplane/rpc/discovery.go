package rpc

import (
	"context"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/metal"
)

// LendAddress answers from the state where the log has nothing to add: agents
// ask again and again, and a flood of strangers must not fill it.
func (s *control) LendAddress(ctx context.Context, req *agentv1.LendAddressRequest) (*agentv1.LendAddressResponse, error) {
	if _, err := s.rack(ctx, s.Proposer.StaleView(), req.GetRack()); err != nil {
		return nil, err
	}
	return nil, metal.Errorf(metal.CodeDenied, "rack %s has no discovery", req.GetRack())
}

// ReportDiscovered brings what a machine said it is.
func (s *control) ReportDiscovered(ctx context.Context, req *agentv1.ReportDiscoveredRequest) (*agentv1.ReportDiscoveredResponse, error) {
	if _, err := s.rack(ctx, s.Proposer.StaleView(), req.GetRack()); err != nil {
		return nil, err
	}
	return nil, metal.Errorf(metal.CodeDenied, "rack %s has no discovery", req.GetRack())
}

// AcceptIdentity is an operator's word that a server's machine is what it says.
func (s *inventory) AcceptIdentity(ctx context.Context, req *bmcv1.AcceptIdentityRequest) (*bmcv1.Server, error) {
	return s.change(ctx, req, func(ref *logpb.ServerRef) *logpb.Command {
		ref.ResourceVersion = req.GetResourceVersion()
		return &logpb.Command{Command: &logpb.Command_AcceptIdentity{AcceptIdentity: &logpb.AcceptIdentity{Server: ref}}}
	})
}
