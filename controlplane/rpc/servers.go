package rpc

import (
	"context"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// maxSSHKeys bounds how many keys one server gets.
const maxSSHKeys = 64

type servers struct {
	bmcv1.UnimplementedServersServer
	*API
}

func (s *servers) CreateServer(ctx context.Context, req *bmcv1.CreateServerRequest) (*bmcv1.Operation, error) {
	if err := validateCreate(req); err != nil {
		return nil, err
	}
	opID, err := s.newID("op")
	if err != nil {
		return nil, err
	}
	create := &logpb.CreateServer{OperationId: opID, Name: req.GetName(), Size: req.GetSize(),
		Image: req.GetImage(), Rack: req.GetRack(), SshKeys: req.GetSshKeys()}
	if len(req.GetUserData()) > 0 {
		if create.UserData, err = s.Sealer.Seal(req.GetUserData(), opID+userDataAD); err != nil {
			return nil, err
		}
	}
	build := func(v *state.View) (*logpb.Command, error) {
		project, err := s.projectOf(ctx, v, req.GetProject())
		if err != nil {
			return nil, err
		}
		create.Project = project.ID
		return &logpb.Command{Command: &logpb.Command_CreateServer{CreateServer: create}}, nil
	}
	if req.GetDryRun() {
		v, err := s.linearizable(ctx)
		if err != nil {
			return nil, err
		}
		cmd, err := build(v)
		if err != nil {
			return nil, err
		}
		return s.plan(ctx, v, cmd)
	}
	res, err := s.change(ctx, req, build)
	if err != nil {
		return nil, err
	}
	return s.started(ctx, res)
}

// Associated data of sealed secrets: the ID of what they belong to, and these.
const (
	userDataAD = "/user-data" // after the deploy operation's ID
	oobAD      = "/oob"       // after the server's ID
)

func validateCreate(req *bmcv1.CreateServerRequest) error {
	if err := metal.ValidateName("name", req.GetName()); err != nil {
		return err
	}
	if len(req.GetUserData()) > metal.MaxUserData {
		return metal.Invalid("user_data", "has %d bytes, more than %d", len(req.GetUserData()), metal.MaxUserData)
	}
	if len(req.GetSshKeys()) > maxSSHKeys {
		return metal.Invalid("ssh_keys", "are more than %d", maxSSHKeys)
	}
	if d := req.GetExpiresIn(); d.GetSeconds() != 0 || d.GetNanos() != 0 {
		return metal.Invalid("expires_in", "must be empty: rentals that end by themselves are not supported yet")
	}
	return nil
}

// plan answers a dry run: what Apply would say, and nothing happens.
func (a *API) plan(ctx context.Context, v *state.View, cmd *logpb.Command) (*bmcv1.Operation, error) {
	res, err := a.dryRun(ctx, v, cmd)
	if err != nil {
		return nil, err
	}
	op, ok := res.Value.(*metal.Operation)
	if !ok {
		return &bmcv1.Operation{}, nil
	}
	return a.withServer(ctx, v, op), nil
}

func (a *API) dryRun(ctx context.Context, v *state.View, cmd *logpb.Command) (*fsm.Result, error) {
	id := caller(ctx)
	cmd.Header = &logpb.Header{Time: a.Now().UnixNano(), Principal: id.principal, Role: string(id.role)}
	if !id.operates() {
		cmd.Header.Project = id.project
	}
	res := fsm.Plan(v, cmd)
	if res.Err != nil {
		return nil, res.Err
	}
	return res, nil
}

// mutate proposes a command that answers an operation.
func (a *API) mutate(ctx context.Context, req mutation, cmd *logpb.Command) (*bmcv1.Operation, error) {
	res, err := a.propose(ctx, req, cmd)
	if err != nil {
		return nil, err
	}
	return a.started(ctx, res)
}

// started is the operation of a command that was proposed.
func (a *API) started(ctx context.Context, res *fsm.Result) (*bmcv1.Operation, error) {
	v := a.Proposer.StaleView() // Apply has run here
	if op, ok := v.Operation(res.OperationID); ok {
		return a.withServer(ctx, v, op), nil
	}
	if op, ok := res.Value.(*metal.Operation); ok {
		return a.withServer(ctx, v, op), nil
	}
	return nil, errResultGone
}

var errResultGone = metal.Errorf(metal.CodeNotFound, "the request was done before; the operation that it started is no longer kept")

// withServer shows an operation with its server after the change.
func (a *API) withServer(ctx context.Context, v *state.View, op *metal.Operation) *bmcv1.Operation {
	out := toOperation(v, op)
	if srv, ok := v.Server(op.ServerID); ok && caller(ctx).visible(srv) {
		out.Server = toServer(v, srv, caller(ctx).operates())
	}
	return out
}

func (s *servers) GetServer(ctx context.Context, req *bmcv1.GetServerRequest) (*bmcv1.Server, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	srv, err := s.resolve(ctx, v, req.GetRef())
	if err != nil {
		return nil, err
	}
	out, err := sentServer(v, srv, caller(ctx).operates())
	if err != nil {
		return nil, err
	}
	if caller(ctx).operates() {
		out.Watts = s.watts.of(srv.ID, s.Now())
	}
	return out, nil
}

func (s *servers) ListServers(ctx context.Context, req *bmcv1.ListServersRequest) (*bmcv1.ListServersResponse, error) {
	size, err := pageSize(req.GetPageSize(), maxServers)
	if err != nil {
		return nil, err
	}
	token, _, err := parsePageToken("servers", req.GetPageToken())
	if err != nil {
		return nil, err
	}
	sel, err := metal.ParseSelector(req.GetSelector())
	if err != nil {
		return nil, err
	}
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	f := state.ServerFilter{Rented: req.GetRented(), Selector: sel, After: token.After, Project: caller(ctx).scope()}
	status, err := stateFilter(&f, req.GetState())
	if err != nil {
		return nil, err
	}
	if req.GetRack() != "" {
		rack, err := v.ResolveRack(req.GetRack())
		if err != nil {
			return nil, err
		}
		f.RackID = rack.ID
	}
	resp := &bmcv1.ListServersResponse{Revision: v.Revision()}
	if req.GetAllowStale() {
		resp.Age = s.age()
	}
	page := newServerPage(v, size, caller(ctx).operates())
	for row := range v.ServerRows(f) {
		if status != "" && tenantStatus(row.Server) != status {
			continue
		}
		if page.rows == size || page.full() {
			resp.NextPageToken = pageToken{List: "servers", After: page.last}.encode()
			break
		}
		if err := page.add(row); err != nil {
			return nil, err
		}
	}
	page.into(resp)
	return resp, nil
}

// tenantStatuses are the words that only tenants know; the others are states, too.
var tenantStatuses = map[string]bool{"provisioning": true, "running": true, "stopped": true}

// stateFilter reads a state, or one of the words that only tenants know.
func stateFilter(f *state.ServerFilter, s string) (status string, err error) {
	if s == "" {
		return "", nil
	}
	if tenantStatuses[s] {
		f.Rented = true
		return s, nil
	}
	switch st := metal.State(s); st {
	case metal.StateDiscovered, metal.StateEnrolling, metal.StateInspecting, metal.StateAvailable, metal.StateDeploying,
		metal.StateActive, metal.StateRescuing, metal.StateRescue, metal.StateReleasing, metal.StateCleaning,
		metal.StateFailed, metal.StateQuarantined, metal.StateRetired:
		f.State = st
		return "", nil
	}
	return "", metal.Invalid("state", "%q is no state of a server", s).WithHint("bmc list --state available")
}

func (s *servers) RestartServer(ctx context.Context, req *bmcv1.RestartServerRequest) (*bmcv1.Operation, error) {
	return s.onServer(ctx, req, 0, func(ref *logpb.ServerRef, opID string) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_RestartServer{RestartServer: &logpb.RestartServer{
			Server: ref, OperationId: opID, Hard: req.GetHard()}}}
	})
}

func (s *servers) SetPower(ctx context.Context, req *bmcv1.SetPowerRequest) (*bmcv1.Operation, error) {
	if w := metal.Power(req.GetWanted()); w != metal.PowerOn && w != metal.PowerOff {
		return nil, metal.Invalid("wanted", "must be on or off, not %q", req.GetWanted())
	}
	return s.onServer(ctx, req, 0, func(ref *logpb.ServerRef, opID string) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_SetPower{SetPower: &logpb.SetPower{
			Server: ref, OperationId: opID, Wanted: req.GetWanted(), Hard: req.GetHard()}}}
	})
}

func (s *servers) DestroyServer(ctx context.Context, req *bmcv1.DestroyServerRequest) (*bmcv1.Operation, error) {
	return s.onServer(ctx, req, req.GetResourceVersion(), func(ref *logpb.ServerRef, opID string) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_DestroyServer{DestroyServer: &logpb.DestroyServer{
			Server: ref, OperationId: opID}}}
	})
}

func (s *servers) RetryServer(ctx context.Context, req *bmcv1.RetryServerRequest) (*bmcv1.Operation, error) {
	return s.onServer(ctx, req, 0, func(ref *logpb.ServerRef, opID string) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_RetryServer{RetryServer: &logpb.RetryServer{
			Server: ref, OperationId: opID}}}
	})
}

// serverMutation is a mutation of the one server that ref names.
type serverMutation interface {
	mutation
	GetRef() string
}

// onServer proposes a command about one server. A retry is answered before its
// name is looked up: by then the name may mean another server, or none.
func (a *API) onServer(ctx context.Context, req serverMutation, resourceVersion uint64,
	build func(ref *logpb.ServerRef, opID string) *logpb.Command) (*bmcv1.Operation, error) {
	opID, err := a.newID("op")
	if err != nil {
		return nil, err
	}
	var before *bmcv1.Operation // what the request started when it was done before
	res, err := a.change(ctx, req, func(v *state.View) (*logpb.Command, error) {
		done, err := a.replayed(ctx, v, req)
		if err != nil {
			return nil, err
		}
		if done != nil {
			op, ok := v.Operation(done.OperationID)
			if !ok {
				return nil, errResultGone
			}
			before = a.withServer(ctx, v, op)
			return nil, nil
		}
		srv, err := a.resolve(ctx, v, req.GetRef())
		if err != nil {
			return nil, err
		}
		return build(serverRef(srv, resourceVersion), opID), nil
	})
	if res == nil || err != nil {
		return before, err
	}
	return a.started(ctx, res)
}
