package rpc

import (
	"context"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/metal"
)

// CancelOperation ends what runs. The answer is the operation that cleans up
// after it, where there is one.
func (s *operations) CancelOperation(ctx context.Context, req *bmcv1.CancelOperationRequest) (*bmcv1.Operation, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	done, err := s.replayed(ctx, v, req)
	if err != nil {
		return nil, err
	}
	if done != nil {
		if op, ok := v.Operation(done.OperationID); ok {
			return s.withServer(ctx, v, op), nil
		}
		return nil, errResultGone
	}
	id := req.GetId()
	if id == "" {
		srv, err := s.resolve(ctx, v, req.GetRef())
		if err != nil {
			return nil, err
		}
		if id = srv.Operation; id == "" {
			return nil, metal.Errorf(metal.CodeWrongState, "nothing is under way on %s", req.GetRef()).WithHint("bmc operation list --server %s", req.GetRef())
		}
	}
	op, err := s.operation(ctx, v, id)
	if err != nil {
		return nil, err
	}
	srv, ok := v.Server(op.ServerID)
	if !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "the server of operation %s is gone", op.ID)
	}
	if err := rents(caller(ctx), srv); err != nil {
		return nil, err
	}
	next, err := s.newID("op")
	if err != nil {
		return nil, err
	}
	return s.mutate(ctx, req, &logpb.Command{Command: &logpb.Command_CancelOperation{CancelOperation: &logpb.CancelOperation{
		OperationId: op.ID, FollowUpId: next, Server: serverRef(srv, 0)}}})
}

// rents refuses a tenant whose rental is over: it still sees the machine until that is
// wiped, but to stop the wipe, or to have the next tenant find a hold, is not its to do.
func rents(id *identity, srv *metal.Server) error {
	if id.operates() || srv.Rental != nil && !srv.Rental.Released {
		return nil
	}
	name := srv.Name
	if srv.Rental != nil {
		name = srv.Rental.Name
	}
	return metal.Errorf(metal.CodeDenied, "the rental of %s is over: what is done to the machine now is for operators", name).WithHint("bmc list")
}

// CleanServer wipes a server that nobody rents, again.
func (s *inventory) CleanServer(ctx context.Context, req *bmcv1.CleanServerRequest) (*bmcv1.Operation, error) {
	return s.onServer(ctx, req, 0, func(ref *logpb.ServerRef, opID string) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_CleanServer{CleanServer: &logpb.CleanServer{Server: ref, OperationId: opID}}}
	})
}

// change proposes a command about one server that starts no operation, and
// answers the server as it is then.
func (s *inventory) change(ctx context.Context, req serverMutation, build func(ref *logpb.ServerRef) *logpb.Command) (*bmcv1.Server, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	done, err := s.replayed(ctx, v, req)
	if err != nil {
		return nil, err
	}
	id := ""
	if done != nil {
		id = done.ResultID
	} else {
		srv, err := s.resolve(ctx, v, req.GetRef())
		if err != nil {
			return nil, err
		}
		if err := rents(caller(ctx), srv); err != nil {
			return nil, err
		}
		res, err := s.propose(ctx, req, build(serverRef(srv, 0)))
		if err != nil {
			return nil, err
		}
		id, v = res.ID, s.Proposer.StaleView() // Apply has run here
	}
	srv, ok := v.Server(id)
	if !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "the request was done before; the server is gone")
	}
	return toServer(v, srv, caller(ctx).operates()), nil
}

func (s *inventory) QuarantineServer(ctx context.Context, req *bmcv1.QuarantineServerRequest) (*bmcv1.Server, error) {
	if len(req.GetReason()) > fsm.MaxReason {
		return nil, metal.Invalid("reason", "is longer than %d bytes", fsm.MaxReason)
	}
	return s.change(ctx, req, func(ref *logpb.ServerRef) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_QuarantineServer{QuarantineServer: &logpb.QuarantineServer{Server: ref, Reason: req.GetReason()}}}
	})
}

func (s *inventory) RetireServer(ctx context.Context, req *bmcv1.RetireServerRequest) (*bmcv1.Server, error) {
	return s.change(ctx, req, func(ref *logpb.ServerRef) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_RetireServer{RetireServer: &logpb.RetireServer{Server: ref}}}
	})
}

// SetHold sets or clears a hold. Tenants may protect their own servers; the
// others are for operators.
func (s *inventory) SetHold(ctx context.Context, req *bmcv1.SetHoldRequest) (*bmcv1.Server, error) {
	if metal.Hold(req.GetHold()) != metal.HoldProtected && !caller(ctx).operates() {
		return nil, metal.Errorf(metal.CodeDenied, "only operators may set or clear %q", req.GetHold()).WithHint("bmc whoami")
	}
	return s.change(ctx, req, func(ref *logpb.ServerRef) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Server: ref, Hold: req.GetHold(), On: req.GetOn()}}}
	})
}

// ThawRack is an operator's word that a restored backup is right.
func (s *inventory) ThawRack(ctx context.Context, req *bmcv1.ThawRackRequest) (*bmcv1.Rack, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	r, err := v.ResolveRack(req.GetRef())
	if err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_ThawRack{ThawRack: &logpb.ThawRack{RackId: r.ID}}}); err != nil {
		return nil, err
	}
	return s.GetRack(ctx, &bmcv1.GetRackRequest{Ref: r.ID})
}

// FreezeRacks has nothing new start in racks, or takes that back.
func (s *inventory) FreezeRacks(ctx context.Context, req *bmcv1.FreezeRacksRequest) (*bmcv1.FreezeRacksResponse, error) {
	if len(req.GetReason()) > fsm.MaxReason || req.GetThaw() && req.GetReason() != "" {
		return nil, metal.Invalid("reason", "is for freezing, and has at most %d bytes", fsm.MaxReason)
	}
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, ref := range req.GetRefs() {
		r, err := v.ResolveRack(ref)
		if err != nil {
			return nil, err
		}
		ids = append(ids, r.ID)
	}
	if len(req.GetRefs()) == 0 {
		for r := range v.Racks() {
			ids = append(ids, r.ID)
		}
	}
	if len(ids) == 0 {
		return nil, metal.Errorf(metal.CodeNotFound, "there are no racks").WithHint("bmc inventory apply -f FILE")
	}
	if _, err := s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_FreezeRacks{
		FreezeRacks: &logpb.FreezeRacks{RackIds: ids, Thaw: req.GetThaw(), Reason: req.GetReason()}}}); err != nil {
		return nil, err
	}
	v = s.Proposer.StaleView() // Apply has run here
	counts, resp := rackCounts(v), &bmcv1.FreezeRacksResponse{}
	for _, id := range ids {
		if r, ok := v.Rack(id); ok {
			resp.Racks = append(resp.Racks, s.cost(v, toRack(v, r, counts[id][0], counts[id][1])))
		}
	}
	return resp, nil
}
