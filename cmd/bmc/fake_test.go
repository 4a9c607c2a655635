package main

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

// files are in the fake home folder.
var files = map[string]string{
	"good.yaml":    "racks:\n- {name: r1, subnet: 10.77.1.0/24}\nservers:\n- {name: r1-u01, rack: r1, macs: ['52:54:00:00:00:01'], oob: {protocol: ipmi, address: 10.78.1.1, username: u, password: p}}\n",
	"unknown.yaml": "racks:\n- {name: r1, subnett: 10.77.1.0/24}\n",
	"broken.yaml":  "racks: [\n",
	"empty.yaml":   "",
	"id.pub":       "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGGLvpNvvMDKmarv1hCptEP5rDGAlfXdxflteVQDRaV1 me@example\n",
	"small.img":    "not an image",
	"pw":           "secret\n",
	"private":      "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaA==\n",
	"good.csv":     "name,serial,rack,oob_address,oob_username,oob_password_file,wipe\nr1-u07,XJ42,r1,10.78.1.7,bmc,pw,true\n# a comment\nr1-u08,XJ43,r1,10.78.1.8,bmc,pw,no\n",
	"bad.csv":      "name,serial,wipe\nr1-u07,XJ42,perhaps\n,XJ43,true\nr1-u09,,true\n",
	"column.csv":   "name,serail\nr1-u07,XJ42\n",
}

var at = timestamppb.New(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))

func fakeServers() []*bmcv1.Server {
	return []*bmcv1.Server{
		{Id: "srv-aaaaaaaaaaaaaaaa", Name: "r1-u01", Rack: "r1", Size: "small", State: "active", Status: "running",
			Power: &bmcv1.Power{Wanted: "on", Observed: "on"}, Macs: []string{"52:54:00:00:00:01"}, Address: "10.77.1.11", StateSince: at,
			Hardware: &bmcv1.Hardware{MemoryBytes: 8 << 30, Firmware: "uefi", Disks: []*bmcv1.Disk{{SizeBytes: 1e12}, {SizeBytes: 1e12}}},
			Rental:   &bmcv1.Rental{Name: "web-1", Project: "default", Image: "debian12", User: "debian", Since: at}},
		{Id: "srv-bbbbbbbbbbbbbbbb", Name: "r1-u02", Rack: "r1", Size: "small", State: "failed",
			Power: &bmcv1.Power{Observed: "off"}, Address: "10.77.1.12", StateSince: at,
			Conditions: []*bmcv1.Condition{{Name: "oob_unreachable", Since: at}},
			Failure:    &bmcv1.Failure{From: "enrolling", Step: "boot-ramdisk", Reason: "BMC_MISMATCH", Message: "another machine answered", Hint: "bmc retry r1-u02"}},
	}
}

type fakeServersAPI struct {
	bmcv1.UnimplementedServersServer
}

func refuse(err *metal.Error) error { return rpcerr.Encode(err, "") }

func find(ref string) (*bmcv1.Server, error) {
	for _, s := range fakeServers() {
		if s.GetName() == ref || s.GetId() == ref || s.GetRental().GetName() == ref {
			return s, nil
		}
	}
	return nil, refuse(metal.Errorf(metal.CodeNotFound, "there is no server %q", ref).WithHint("bmc list"))
}

func (fakeServersAPI) GetServer(_ context.Context, r *bmcv1.GetServerRequest) (*bmcv1.Server, error) {
	return find(r.GetRef())
}

func (fakeServersAPI) ListServers(_ context.Context, r *bmcv1.ListServersRequest) (*bmcv1.ListServersResponse, error) {
	var out []*bmcv1.Server
	for _, s := range fakeServers() {
		if (!r.GetRented() || s.GetRental() != nil) && (r.GetState() == "" || s.GetState() == r.GetState()) {
			out = append(out, s)
		}
	}
	if r.GetPageToken() == "" && len(out) > 1 { // two pages
		return &bmcv1.ListServersResponse{Servers: out[:1], NextPageToken: "more"}, nil
	}
	if r.GetPageToken() != "" {
		out = out[1:]
	}
	return &bmcv1.ListServersResponse{Servers: out}, nil
}

func (fakeServersAPI) CreateServer(_ context.Context, r *bmcv1.CreateServerRequest) (*bmcv1.Operation, error) {
	switch {
	case r.GetRequestId() == "":
		return nil, refuse(metal.Invalid("request_id", "is missing"))
	case r.GetName() == "web-1":
		return nil, refuse(metal.Errorf(metal.CodeNameTaken, "the project has a server web-1 already").WithHint("bmc get web-1"))
	case r.GetName() == "some-3":
		return nil, refuse(metal.Errorf(metal.CodeNoCapacity, "no server is free").WithHint("bmc inventory list"))
	case r.GetImage() == "nope":
		return nil, refuse(metal.Errorf(metal.CodeNotFound, "there is no image nope").WithHint("bmc image list"))
	case r.GetSize() == "huge":
		return nil, refuse(metal.Errorf(metal.CodeNoCapacity, "no free server of size huge; 2 of size small in r1").WithHint("bmc create --name %s --size small", r.GetName()))
	}
	return operation("op-cccccccccccccccc", "deploy", r.GetName(), "pending"), nil
}

func (fakeServersAPI) DestroyServer(_ context.Context, r *bmcv1.DestroyServerRequest) (*bmcv1.Operation, error) {
	return operation("op-dddddddddddddddd", "release", "web-1", "pending"), nil
}

func (fakeServersAPI) RestartServer(_ context.Context, r *bmcv1.RestartServerRequest) (*bmcv1.Operation, error) {
	return operation("op-ffffffffffffffff", "restart", r.GetRef(), "pending"), nil
}

func (fakeServersAPI) ExplainServer(_ context.Context, r *bmcv1.ExplainServerRequest) (*bmcv1.ExplainServerResponse, error) {
	s, err := find(r.GetRef())
	if err != nil {
		return nil, err
	}
	return &bmcv1.ExplainServerResponse{Server: s, WaitingFor: "it waits for an operator", Next: []string{"bmc retry " + s.GetName()},
		Operation: operation("op-eeeeeeeeeeeeeeee", "enroll", s.GetName(), "failed"),
		Events:    []*bmcv1.Event{{Time: at, Kind: "server.failed", Message: "failed at boot-ramdisk", Reason: "BMC_MISMATCH"}}}, nil
}

func operation(id, kind, target, state string) *bmcv1.Operation {
	op := &bmcv1.Operation{Id: id, Kind: kind, Target: target, State: state, Attempt: 1, Created: at, Principal: "admin", ServerName: "r1-u01",
		Steps: []*bmcv1.Step{{Name: "power-off", State: "done", Started: at, Ended: timestamppb.New(at.AsTime().Add(1500 * time.Millisecond))},
			{Name: "boot-ramdisk", State: "pending"}}}
	switch state {
	case "failed":
		op.Steps[1].State = "failed"
		op.Failure = &bmcv1.Failure{From: "deploying", Step: "boot-ramdisk", Reason: "NO_NETBOOT", Message: "the machine never said hello", Hint: "bmc explain " + target}
	case "succeeded":
		op.Steps[1].State = "done"
	}
	return op
}

type fakeOperations struct {
	bmcv1.UnimplementedOperationsServer
}

func (fakeOperations) GetOperation(_ context.Context, r *bmcv1.GetOperationRequest) (*bmcv1.Operation, error) {
	return operation(r.GetId(), "deploy", "web-9", "failed"), nil
}

func (fakeOperations) ListOperations(context.Context, *bmcv1.ListOperationsRequest) (*bmcv1.ListOperationsResponse, error) {
	return &bmcv1.ListOperationsResponse{Operations: []*bmcv1.Operation{operation("op-cccccccccccccccc", "deploy", "web-9", "failed")}}, nil
}

func (fakeOperations) WatchOperation(r *bmcv1.WatchOperationRequest, s bmcv1.Operations_WatchOperationServer) error {
	switch r.GetId() {
	case "op-ffffffffffffffff": // goes on for ever
		if err := s.Send(operation(r.GetId(), "restart", "web-1", "running")); err != nil {
			return err
		}
		<-s.Context().Done()
		return nil
	case "op-dddddddddddddddd":
		end := operation(r.GetId(), "release", "web-1", "succeeded")
		end.Server = &bmcv1.Server{Id: "srv-aaaaaaaaaaaaaaaa", Name: "r1-u01", State: "available"}
		return s.Send(end)
	}
	return s.Send(operation(r.GetId(), "deploy", "web-9", "failed"))
}

type fakeCluster struct {
	bmcv1.UnimplementedClusterServer
}

func (fakeCluster) Status(context.Context, *bmcv1.StatusRequest) (*bmcv1.StatusResponse, error) {
	return &bmcv1.StatusResponse{ClusterId: "lab", LeaderId: "node-1", Term: 2, Revision: 40, Servers: 2, Active: 1, Failed: 1, Agents: 1, AgentsAlive: 1, Racks: 1,
		Peers: []*bmcv1.Peer{{Id: "node-1", Name: "cp1", Alive: true, Leader: true, Suffrage: "voter"}, {Id: "node-2", Name: "cp2", Suffrage: "voter", Error: "connection refused"}}}, nil
}

func (fakeCluster) SaveSnapshot(_ *bmcv1.SaveSnapshotRequest, s bmcv1.Cluster_SaveSnapshotServer) error {
	return errors.Join(s.Send(&bmcv1.SnapshotChunk{Data: []byte("the ")}), s.Send(&bmcv1.SnapshotChunk{Data: []byte("state")}))
}

func (fakeCluster) RestoreSnapshot(bmcv1.Cluster_RestoreSnapshotServer) error {
	return refuse(&metal.Error{Code: metal.CodeUnknownOutcome, Message: "the leader went away while it restored a snapshot", Hint: "bmc cluster peers"})
}

func (fakeCluster) CreateJoinToken(_ context.Context, r *bmcv1.CreateJoinTokenRequest) (*bmcv1.CreateJoinTokenResponse, error) {
	if r.GetRole() == "agent" && len(r.GetRacks()) == 0 {
		return nil, refuse(metal.Invalid("rack", "an agent's token names its racks").WithHint("bmc rack list"))
	}
	return &bmcv1.CreateJoinTokenResponse{Token: "bmcj1.secret", Expires: at}, nil
}

func (fakeCluster) WhoAmI(context.Context, *bmcv1.WhoAmIRequest) (*bmcv1.WhoAmIResponse, error) {
	return nil, refuse(metal.Errorf(metal.CodeTokenExpired, "the token expired at 2026-11-01T00:00:00Z").WithHint("bmc token create NAME (by an admin)"))
}

func (fakeCluster) Peers(context.Context, *bmcv1.PeersRequest) (*bmcv1.PeersResponse, error) {
	return &bmcv1.PeersResponse{Peers: []*bmcv1.Peer{{Id: "node-1", Name: "cp1", Alive: true, Leader: true, Suffrage: "voter"}, {Id: "node-2", Name: "cp2", Alive: true, Suffrage: "voter"}}}, nil
}

func (fakeCluster) RemoveNode(_ context.Context, r *bmcv1.RemoveNodeRequest) (*bmcv1.RemoveNodeResponse, error) {
	switch r.GetRef() {
	case "cp1":
		return nil, refuse(metal.Errorf(metal.CodeWrongState, "cp1 leads: hand leadership on first").WithHint("bmc cluster transfer-leader"))
	case "cp2":
		return &bmcv1.RemoveNodeResponse{}, nil
	}
	return nil, refuse(metal.Errorf(metal.CodeNotFound, "there is no control-plane node %q", r.GetRef()).WithHint("bmc cluster peers"))
}

func (fakeCluster) RemoveAgent(context.Context, *bmcv1.RemoveAgentRequest) (*bmcv1.RemoveAgentResponse, error) {
	return &bmcv1.RemoveAgentResponse{}, nil
}

func (fakeCluster) TransferLeader(_ context.Context, r *bmcv1.TransferLeaderRequest) (*bmcv1.TransferLeaderResponse, error) {
	if r.GetRef() == "cp2" {
		return &bmcv1.TransferLeaderResponse{LeaderId: "node-2", LeaderName: "cp2"}, nil
	}
	return nil, refuse(metal.Errorf(metal.CodeWrongState, "there is no other voter to hand leadership to").WithHint("bmc cluster peers"))
}

func (fakeCluster) RaiseFeatureLevel(_ context.Context, r *bmcv1.RaiseFeatureLevelRequest) (*bmcv1.RaiseFeatureLevelResponse, error) {
	if r.GetLevel() > 2 {
		return nil, refuse(metal.Errorf(metal.CodeWrongState, "node cp2 knows feature level 2 only").WithHint("bmc cluster peers"))
	}
	return &bmcv1.RaiseFeatureLevelResponse{Level: 2}, nil
}

func (fakeCluster) RevokeToken(_ context.Context, r *bmcv1.RevokeTokenRequest) (*bmcv1.RevokeTokenResponse, error) {
	return nil, refuse(metal.Errorf(metal.CodeDenied, "this needs the role admin; %s has member", "tina").WithHint("bmc token create tina --role admin"))
}

type fakeInventory struct {
	bmcv1.UnimplementedInventoryServer
}

func (fakeInventory) ApplyInventory(_ context.Context, r *bmcv1.ApplyInventoryRequest) (*bmcv1.ApplyInventoryResponse, error) {
	out := &bmcv1.ApplyInventoryResponse{}
	for _, rack := range r.GetRacks() {
		out.Objects = append(out.Objects, &bmcv1.AppliedObject{Kind: "rack", Name: rack.GetName(), Change: "unchanged"})
	}
	for _, s := range r.GetServers() {
		out.Objects = append(out.Objects, &bmcv1.AppliedObject{Kind: "server", Name: s.GetName(), Change: "created", OperationId: "op-cccccccccccccccc"})
	}
	return out, nil
}

func (fakeInventory) ForgetServer(_ context.Context, r *bmcv1.ForgetServerRequest) (*bmcv1.ForgetServerResponse, error) {
	s, err := find(r.GetRef())
	if err == nil && s.GetRental() != nil {
		err = refuse(metal.Errorf(metal.CodeWrongState, "%s: forget is not possible while the server is active, which admits destroy", s.GetName()).WithHint("bmc destroy %s", s.GetRental().GetName()))
	}
	return &bmcv1.ForgetServerResponse{}, err
}

func (fakeInventory) ListAgents(context.Context, *bmcv1.ListAgentsRequest) (*bmcv1.ListAgentsResponse, error) {
	return &bmcv1.ListAgentsResponse{Agents: []*bmcv1.Agent{{Id: "agt-aaaaaaaaaaaaaaaa", Name: "r1-a1", Racks: []string{"r1"}}}}, nil
}

func (fakeInventory) GetRack(_ context.Context, r *bmcv1.GetRackRequest) (*bmcv1.Rack, error) {
	if r.GetRef() != "r1" && r.GetRef() != "r2" {
		return nil, refuse(metal.Errorf(metal.CodeNotFound, "there is no rack %q", r.GetRef()).WithHint("bmc rack list"))
	}
	return &bmcv1.Rack{Name: r.GetRef(), Frozen: r.GetRef() == "r1"}, nil
}

func (fakeInventory) ListRacks(ctx context.Context, r *bmcv1.ListRacksRequest) (*bmcv1.ListRacksResponse, error) {
	if r.GetAllowStale() {
		if err := grpc.SetHeader(ctx, metadata.Pairs("bmc-stale-age", "never", "bmc-stale-revision", "41")); err != nil {
			return nil, err
		}
	}
	return &bmcv1.ListRacksResponse{Racks: []*bmcv1.Rack{
		{Name: "r1", Subnet: "10.77.1.0/24", Servers: 40, Available: 12, Warm: "4", Waiting: 3, Watts: 330, Unmetered: 1},
		{Name: "r2", Subnet: "10.77.2.0/24", Servers: 2, Available: 1, Warm: "all", Waiting: 1, Unmetered: 1},
		{Name: "r3", Subnet: "10.77.3.0/24", Warm: "none"},
	}}, nil
}

func (fakeInventory) SetRackWarm(_ context.Context, r *bmcv1.SetRackWarmRequest) (*bmcv1.Rack, error) {
	if _, err := metal.ParseWarm("warm", r.GetWarm()); err != nil {
		return nil, refuse(metal.Invalid("warm", "%q is not none, all or a number", r.GetWarm()))
	}
	return &bmcv1.Rack{Name: r.GetRef(), Warm: r.GetWarm(), Available: 12}, nil
}

func (fakeInventory) ListModels(context.Context, *bmcv1.ListModelsRequest) (*bmcv1.ListModelsResponse, error) {
	return &bmcv1.ListModelsResponse{Models: []*bmcv1.Model{
		{Vendor: "Acme", Product: "3000", Servers: 40, KexecOff: true, KexecFailures: 2, Reason: "2 systems came up from disk, and not by kexec; the last on r1-u07"},
		{Vendor: "QEMU", Product: "lab-bios", Servers: 2},
	}}, nil
}

func (fakeInventory) SetModelKexec(_ context.Context, r *bmcv1.SetModelKexecRequest) (*bmcv1.Model, error) {
	if r.GetModel() != "Acme/3000" {
		return nil, refuse(metal.Errorf(metal.CodeNotFound, "no machine is of the model %q", r.GetModel()).WithHint("bmc inventory models"))
	}
	return &bmcv1.Model{Vendor: "Acme", Product: "3000", Servers: 40, KexecOff: !r.GetOn()}, nil
}

func (fakeInventory) ThawRack(_ context.Context, r *bmcv1.ThawRackRequest) (*bmcv1.Rack, error) {
	return &bmcv1.Rack{Name: r.GetRef()}, nil
}

func (fakeInventory) FreezeRacks(_ context.Context, r *bmcv1.FreezeRacksRequest) (*bmcv1.FreezeRacksResponse, error) {
	refs := r.GetRefs()
	if len(refs) == 0 {
		refs = []string{"r1", "r2"}
	}
	out := &bmcv1.FreezeRacksResponse{}
	for _, ref := range refs {
		rack := &bmcv1.Rack{Name: ref, Frozen: ref == "r1"}
		if rack.Name == "nope" {
			return nil, refuse(metal.Errorf(metal.CodeNotFound, "there is no rack %q", ref).WithHint("bmc rack list"))
		}
		if !r.GetThaw() {
			rack.FrozenBy, rack.FrozenWhy = "user:admin", r.GetReason()
		}
		out.Racks = append(out.Racks, rack)
	}
	return out, nil
}

func (fakeInventory) SetHold(_ context.Context, r *bmcv1.SetHoldRequest) (*bmcv1.Server, error) {
	return find(r.GetRef())
}

func register(s *grpc.Server) {
	bmcv1.RegisterServersServer(s, fakeServersAPI{})
	bmcv1.RegisterOperationsServer(s, fakeOperations{})
	bmcv1.RegisterClusterServer(s, fakeCluster{})
	bmcv1.RegisterInventoryServer(s, fakeInventory{})
}
