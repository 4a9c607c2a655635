package rpc

import (
	"context"

	agentv1 "bmc/api/agent/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/metal"
)

// maxKnown bounds the servers, and the operations, of one Reconcile.
const maxKnown = 5000

// Reconcile records what an agent knew before a backup was restored.
func (s *control) Reconcile(ctx context.Context, req *agentv1.ReconcileRequest) (*agentv1.ReconcileResponse, error) {
	if len(req.GetServers()) > maxKnown || len(req.GetOperations()) > maxKnown {
		return nil, metal.Invalid("servers", "are more than %d", maxKnown)
	}
	r, err := s.rack(ctx, s.Proposer.StaleView(), req.GetRack())
	if err != nil {
		return nil, err
	}
	m := &logpb.ReconcileRack{RackId: r.ID, AgentId: caller(ctx).agent, Generation: req.GetGeneration()}
	if s.Proposer.StaleView().Meta().FeatureLevel >= fsm.ToldLevel {
		m.Revision = req.Revision // absent is not 0
	}
	for _, k := range req.GetServers() {
		m.Servers = append(m.Servers, &logpb.KnownServer{ServerId: k.GetServerId(), Name: k.GetName(), State: k.GetState(),
			Hostname: k.GetHostname(), Revision: k.GetRevision(), Power: k.GetPower()})
	}
	for _, k := range req.GetOperations() {
		m.Operations = append(m.Operations, &logpb.KnownOperation{OperationId: k.GetOperationId(), ServerId: k.GetServerId(),
			Kind: k.GetKind(), Attempt: int64(k.GetAttempt()), DoneSteps: k.GetDoneSteps()})
	}
	res, err := s.proposeAs(ctx, caller(ctx).principal, "", nil, &logpb.Command{Command: &logpb.Command_ReconcileRack{ReconcileRack: m}})
	if err != nil {
		return nil, err
	}
	frozen, ok := res.Value.(bool)
	return &agentv1.ReconcileResponse{Frozen: frozen || !ok}, nil
}
