package rpc

import (
	"bytes"
	"context"
	"slices"
	"strconv"
	"strings"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// maxInventory bounds the objects of one ApplyInventory.
const maxInventory = 5000

type inventory struct {
	bmcv1.UnimplementedInventoryServer
	*API
}

func (s *inventory) ApplyInventory(ctx context.Context, req *bmcv1.ApplyInventoryRequest) (*bmcv1.ApplyInventoryResponse, error) {
	if n := len(req.GetRacks()) + len(req.GetSizes()) + len(req.GetServers()); n == 0 || n > maxInventory {
		return nil, metal.Invalid("inventory", "has %d objects, must have 1 to %d", n, maxInventory).
			WithHint("bmc inventory apply -f FILE")
	}
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	apply := &logpb.ApplyInventory{}
	for i, r := range req.GetRacks() {
		in, err := s.rackInput(v, "racks["+strconv.Itoa(i)+"]", r)
		if err != nil {
			return nil, err
		}
		apply.Racks = append(apply.Racks, in)
	}
	for i, z := range req.GetSizes() {
		if err := metal.ValidateName("sizes["+strconv.Itoa(i)+"].name", z.GetName()); err != nil {
			return nil, err
		}
		apply.Sizes = append(apply.Sizes, &logpb.Size{Name: z.GetName(), MinCpuThreads: int64(z.GetMinCpuThreads()),
			MinMemoryBytes: z.GetMinMemoryBytes(), MinDiskBytes: z.GetMinDiskBytes(), RootDiskHint: z.GetRootDiskHint(), Rule: fromRule(z.GetRule())})
	}
	if apply.Servers, err = s.serverInputs(v, req.GetServers()); err != nil {
		return nil, err
	}
	cmd := &logpb.Command{Command: &logpb.Command_ApplyInventory{ApplyInventory: apply}}
	var res *fsm.Result
	if req.GetDryRun() {
		res, err = s.dryRun(ctx, v, cmd)
	} else {
		res, err = s.propose(ctx, req, cmd)
	}
	if err != nil {
		return nil, err
	}
	return s.applied(res, apply), nil
}

// applied shows the result of an apply. A replayed request answers its objects
// as they are, unchanged.
func (s *inventory) applied(res *fsm.Result, apply *logpb.ApplyInventory) *bmcv1.ApplyInventoryResponse {
	out := &bmcv1.ApplyInventoryResponse{Revision: res.Revision}
	if objects, ok := res.Value.([]fsm.Applied); ok {
		for _, o := range objects {
			out.Objects = append(out.Objects, &bmcv1.AppliedObject{Kind: o.Kind, Name: o.Name, Id: o.ID, Change: o.Change, OperationId: o.OperationID})
		}
		return out
	}
	v := s.Proposer.StaleView()
	for _, r := range apply.GetRacks() {
		if x, err := v.ResolveRack(r.GetName()); err == nil {
			out.Objects = append(out.Objects, &bmcv1.AppliedObject{Kind: "rack", Name: x.Name, Id: x.ID, Change: "unchanged"})
		}
	}
	for _, z := range apply.GetSizes() {
		out.Objects = append(out.Objects, &bmcv1.AppliedObject{Kind: "size", Name: z.GetName(), Id: z.GetName(), Change: "unchanged"})
	}
	for _, m := range apply.GetServers() {
		if x, ok := v.ServerByName(m.GetName()); ok {
			out.Objects = append(out.Objects, &bmcv1.AppliedObject{Kind: "server", Name: x.Name, Id: x.ID, Change: "unchanged", OperationId: x.Operation})
		}
	}
	return out
}

func (s *inventory) rackInput(v *state.View, field string, r *bmcv1.RackInput) (*logpb.RackInput, error) {
	if err := metal.ValidateName(field+".name", r.GetName()); err != nil {
		return nil, err
	}
	out := &logpb.RackInput{Name: r.GetName(), Subnet: r.GetSubnet(), Gateway: r.GetGateway(), Dns: r.GetDns(), Domain: r.GetDomain(),
		RangeFrom: r.GetRangeFrom(), RangeTo: r.GetRangeTo(), Discovery: r.GetDiscovery()}
	if d := r.GetLeaseTime(); d != nil {
		if !d.IsValid() || d.AsDuration() < 0 {
			return nil, metal.Invalid(field+".lease_time", "must not be negative")
		}
		out.LeaseTime = int64(d.AsDuration())
	}
	if r.GetWarm() != "" {
		n, err := metal.ParseWarm(field+".warm", r.GetWarm())
		if err != nil {
			return nil, err
		}
		warm := int64(n)
		out.Warm = &warm
	}
	for rack := range v.Racks() {
		if rack.Name == r.GetName() {
			out.Id = rack.ID
			return out, nil
		}
	}
	var err error
	out.Id, err = s.newID("rack")
	return out, err
}

// maxFaults is how many lines of an inventory are said to be wrong at once.
const maxFaults = 20

// serverInputs reads every line, and refuses all for the faults of some.
func (s *inventory) serverInputs(v *state.View, lines []*bmcv1.ServerInput) ([]*logpb.ServerInput, error) {
	var out []*logpb.ServerInput
	var faults []error
	waiting := discoveredIn(v)
	for i, m := range lines {
		in, err := s.serverInput(v, waiting, "servers["+strconv.Itoa(i)+"]", m)
		if err != nil {
			if faults = append(faults, err); len(faults) == maxFaults {
				break
			}
			continue
		}
		out = append(out, in)
	}
	switch len(faults) {
	case 0:
		return out, nil
	case 1:
		return nil, faults[0]
	}
	all := metal.Invalid("servers", "%d lines are wrong, nothing was changed", len(faults))
	for _, f := range faults {
		all.Message += "; " + f.Error()
	}
	return nil, all
}

func (s *inventory) serverInput(v *state.View, waiting *waiting, field string, m *bmcv1.ServerInput) (*logpb.ServerInput, error) {
	if err := metal.ValidateName(field+".name", m.GetName()); err != nil {
		return nil, err
	}
	out := &logpb.ServerInput{Name: m.GetName(), Rack: m.GetRack(), Size: m.GetSize(), Address: m.GetAddress(),
		Serial: m.GetSerial(), Uuid: m.GetUuid(), Wipe: m.GetWipe(), ConsoleTty: m.GetConsoleTty()}
	for j, mac := range m.GetMacs() {
		n, err := metal.NormalizeMAC(field+".macs["+strconv.Itoa(j)+"]", mac)
		if err != nil {
			return nil, err
		}
		out.Macs = append(out.Macs, n)
	}
	found, err := waiting.match(v, field, m, out.Macs)
	if err != nil {
		return nil, err
	}
	old, known := v.ServerByName(m.GetName())
	switch {
	case len(out.Macs) > 0:
	case found != nil:
		out.Macs = found.MACs
	case known:
		out.Macs = old.MACs
	default:
		return nil, metal.Invalid(field+".macs", "%s needs the MAC of its boot NIC, and no discovered machine has its serial number or UUID", m.GetName()).
			WithHint("bmc inventory list --state discovered")
	}
	if out.Rack == "" && found != nil {
		out.Rack = rackName(v, found.RackID)
	} else if out.Rack == "" && known {
		out.Rack = rackName(v, old.RackID)
	}
	for k, val := range m.GetLabels() {
		if err := metal.ValidateLabel(k, val); err != nil {
			return nil, err
		}
		out.Labels = append(out.Labels, &logpb.Label{Key: k, Value: val})
	}
	slices.SortFunc(out.Labels, func(a, b *logpb.Label) int { return strings.Compare(a.GetKey(), b.GetKey()) })
	return s.identify(v, found, field, out, m)
}

// identify gives the server its ID, the stored one when there is one, and seals
// the password. What has not changed keeps its ciphertext, so that applying the
// same file twice changes nothing.
func (s *inventory) identify(v *state.View, found *metal.Server, field string, out *logpb.ServerInput, m *bmcv1.ServerInput) (*logpb.ServerInput, error) {
	var err error
	if out.OperationId, err = s.newID("op"); err != nil {
		return nil, err
	}
	old, known := v.ServerByName(m.GetName())
	if known {
		out.Id = old.ID
	} else if found != nil {
		out.Id = found.ID
	} else if out.Id, err = s.newID("srv"); err != nil {
		return nil, err
	}
	oob := m.GetOob()
	if oob == nil {
		return nil, metal.Invalid(field+".oob", "%s needs its management controller's protocol, address, username and password", m.GetName())
	}
	switch oob.GetProtocol() {
	case "ipmi", "ipmitool", "redfish":
	default:
		return nil, metal.Invalid(field+".oob.protocol", "must be ipmi, ipmitool or redfish, not %q", oob.GetProtocol())
	}
	if err := metal.ValidateHostPort(field+".oob.address", oob.GetAddress(), false); err != nil {
		return nil, err
	}
	out.Oob = &logpb.OOB{Protocol: oob.GetProtocol(), Address: oob.GetAddress(), Username: oob.GetUsername(), CipherSuite: int64(oob.GetCipherSuite())}
	if known && oob.GetPassword() == "" && oob.GetUsername() == old.OOB.Username {
		out.Oob.Password = old.OOB.Password // a file without secrets changes none
		return out, nil
	}
	if known && len(old.OOB.Password) > 0 {
		plain, err := s.Sealer.Open(old.OOB.Password, old.ID+oobAD)
		if err == nil && bytes.Equal(plain, []byte(oob.GetPassword())) {
			out.Oob.Password = old.OOB.Password
			return out, nil
		}
	}
	if oob.GetPassword() != "" {
		if out.Oob.Password, err = s.Sealer.Seal([]byte(oob.GetPassword()), out.Id+oobAD); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *inventory) InspectServer(ctx context.Context, req *bmcv1.InspectServerRequest) (*bmcv1.Operation, error) {
	return s.onServer(ctx, req, 0, func(ref *logpb.ServerRef, opID string) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_InspectServer{InspectServer: &logpb.InspectServer{Server: ref, OperationId: opID}}}
	})
}

func (s *inventory) ForgetServer(ctx context.Context, req *bmcv1.ForgetServerRequest) (*bmcv1.ForgetServerResponse, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	if done, err := s.replayed(ctx, v, req); done != nil || err != nil {
		return &bmcv1.ForgetServerResponse{}, err
	}
	srv, err := s.resolve(ctx, v, req.GetRef())
	if err != nil {
		return nil, err
	}
	_, err = s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_ForgetServer{ForgetServer: &logpb.ForgetServer{Server: serverRef(srv, 0)}}})
	if err != nil {
		return nil, err
	}
	return &bmcv1.ForgetServerResponse{}, nil
}

// rackCounts sums the servers and the available ones per rack ID.
func rackCounts(v *state.View) map[string][2]uint32 {
	out := map[string][2]uint32{}
	for _, c := range v.Capacity() {
		n := out[c.RackID]
		out[c.RackID] = [2]uint32{n[0] + uint32(c.Servers), n[1] + uint32(c.Available)}
	}
	return out
}

func (s *inventory) ListRacks(ctx context.Context, req *bmcv1.ListRacksRequest) (*bmcv1.ListRacksResponse, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	counts := rackCounts(v)
	resp := &bmcv1.ListRacksResponse{}
	for r := range v.Racks() {
		resp.Racks = append(resp.Racks, s.cost(v, toRack(v, r, counts[r.ID][0], counts[r.ID][1])))
	}
	return resp, nil
}

func (s *inventory) GetRack(ctx context.Context, req *bmcv1.GetRackRequest) (*bmcv1.Rack, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	r, err := v.ResolveRack(req.GetRef())
	if err != nil {
		return nil, err
	}
	n := rackCounts(v)[r.ID]
	return s.cost(v, toRack(v, r, n[0], n[1])), nil
}

func (s *inventory) ListSizes(ctx context.Context, req *bmcv1.ListSizesRequest) (*bmcv1.ListSizesResponse, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	counts := map[string][2]uint32{}
	for _, c := range v.Capacity() {
		n := counts[c.Size]
		counts[c.Size] = [2]uint32{n[0] + uint32(c.Servers), n[1] + uint32(c.Available)}
	}
	resp := &bmcv1.ListSizesResponse{}
	for z := range v.Sizes() {
		resp.Sizes = append(resp.Sizes, &bmcv1.Size{Name: z.Name, MinCpuThreads: uint32(z.MinCPUThreads), MinMemoryBytes: z.MinMemoryBytes,
			MinDiskBytes: z.MinDiskBytes, RootDiskHint: z.RootDiskHint, Servers: counts[z.Name][0], Available: counts[z.Name][1], Rule: toRule(&z.Rule)})
	}
	return resp, nil
}

func (s *inventory) ListAgents(ctx context.Context, req *bmcv1.ListAgentsRequest) (*bmcv1.ListAgentsResponse, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	resp := &bmcv1.ListAgentsResponse{}
	for ag := range v.Agents() {
		out := &bmcv1.Agent{Id: ag.ID, Name: ag.Name, Alive: s.agentAlive(ag.ID), Software: ag.Software, Joined: stamp(ag.Joined)}
		for _, id := range ag.Racks {
			out.Racks = append(out.Racks, rackName(v, id))
		}
		resp.Agents = append(resp.Agents, out)
	}
	return resp, nil
}

// alive is gossip's word; without gossip nobody is said to be alive.
func (a *API) alive(id string) bool { return a.Membership != nil && a.Membership.Alive(id) }

// agentAlive is gossip's word or, where gossip does not pass, an open stream of
// the agent's: agents connect to every node.
func (a *API) agentAlive(id string) bool { return a.alive(id) || a.tunnels.link([]string{id}) != nil }
