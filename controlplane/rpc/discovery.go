package rpc

import (
	"context"
	"strings"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// maxDiscoveredReport bounds what a stranger says of itself, bytes.
const maxDiscoveredReport = 64 << 10

// LendAddress answers from the state where the log has nothing to add: agents
// ask again and again, and a flood of strangers must not fill it.
func (s *control) LendAddress(ctx context.Context, req *agentv1.LendAddressRequest) (*agentv1.LendAddressResponse, error) {
	v := s.Proposer.StaleView()
	rack, err := s.rack(ctx, v, req.GetRack())
	if err != nil {
		return nil, err
	}
	lent, refused := fsm.MayLend(v, rack, req.GetMac(), s.Now())
	if refused != nil {
		return nil, refused
	}
	if lent == nil {
		res, err := s.proposeAs(ctx, caller(ctx).principal, "", nil, &logpb.Command{Command: &logpb.Command_LendAddress{LendAddress: &logpb.LendAddress{
			RackId: rack.ID, AgentId: caller(ctx).agent, Epoch: req.GetEpoch(), Mac: req.GetMac()}}})
		if err != nil {
			return nil, err
		}
		var ok bool
		if lent, ok = res.Value.(*metal.AddressAssignment); !ok {
			return nil, metal.Errorf(metal.CodeInternal, "a loan has no address")
		}
	}
	return &agentv1.LendAddressResponse{Address: lent.Address.String(), Ttl: durationpb.New(max(lent.Expires.Sub(s.Now()), 0))}, nil
}

// ReportDiscovered brings what a machine with a lent address said it is.
func (s *control) ReportDiscovered(ctx context.Context, req *agentv1.ReportDiscoveredRequest) (*agentv1.ReportDiscoveredResponse, error) {
	rack, err := s.rack(ctx, s.Proposer.StaleView(), req.GetRack())
	if err != nil {
		return nil, err
	}
	if n := proto.Size(req.GetHardware()); n == 0 || n > maxDiscoveredReport {
		return nil, metal.Invalid("hardware", "has %d bytes, must have 1 to %d", n, maxDiscoveredReport)
	}
	// As the log would say: a stranger must not fill it.
	before, refused := fsm.MayReport(s.Proposer.StaleView(), rack, req.GetMac(), s.Now())
	switch {
	case refused != nil:
		return nil, refused
	case before != nil:
		return &agentv1.ReportDiscoveredResponse{Outcome: before.Outcome, Name: before.Name, ServerId: before.ServerID}, nil
	}
	id, err := s.newID("srv")
	if err != nil {
		return nil, err
	}
	res, err := s.proposeAs(ctx, caller(ctx).principal, "", nil, &logpb.Command{Command: &logpb.Command_ReportDiscovered{ReportDiscovered: &logpb.ReportDiscovered{
		RackId: rack.ID, AgentId: caller(ctx).agent, Epoch: req.GetEpoch(), Mac: req.GetMac(), ServerId: id, Hardware: fromHardware(req.GetHardware())}}})
	if err != nil {
		return nil, err
	}
	d, ok := res.Value.(fsm.Discovered)
	if !ok {
		return nil, metal.Errorf(metal.CodeInternal, "a report has no outcome")
	}
	s.Log.Info("machine discovered", "rack", rack.Name, "mac", req.GetMac(), "outcome", d.Outcome, "server", d.ServerID)
	return &agentv1.ReportDiscoveredResponse{Outcome: d.Outcome, Name: d.Name, ServerId: d.ServerID}, nil
}

// AcceptIdentity is an operator's word that a server's machine is what it says.
// One with another mainboard is enrolled anew.
func (s *inventory) AcceptIdentity(ctx context.Context, req *bmcv1.AcceptIdentityRequest) (*bmcv1.Server, error) {
	opID, err := s.newID("op")
	if err != nil {
		return nil, err
	}
	return s.change(ctx, req, func(ref *logpb.ServerRef) *logpb.Command {
		ref.ResourceVersion = req.GetResourceVersion()
		return &logpb.Command{Command: &logpb.Command_AcceptIdentity{AcceptIdentity: &logpb.AcceptIdentity{Server: ref, OperationId: opID, Wipe: req.GetWipe()}}}
	})
}

// TestSizes says which size the rules give to each server.
func (s *inventory) TestSizes(ctx context.Context, req *bmcv1.TestSizesRequest) (*bmcv1.TestSizesResponse, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	resp := &bmcv1.TestSizesResponse{}
	if req.GetRef() != "" {
		srv, err := s.resolve(ctx, v, req.GetRef())
		if err != nil {
			return nil, err
		}
		if srv.Hardware == nil {
			return nil, metal.Errorf(metal.CodeWrongState, "%s has not been inspected yet", srv.Name).WithHint("bmc explain %s", srv.Name)
		}
		resp.Tests = append(resp.Tests, sizeTest(v, srv))
		return resp, nil
	}
	for srv := range v.Servers(state.ServerFilter{}) {
		if srv.Hardware != nil {
			resp.Tests = append(resp.Tests, sizeTest(v, srv))
		}
	}
	return resp, nil
}

func sizeTest(v *state.View, srv *metal.Server) *bmcv1.SizeTest {
	match, lacks := fsm.MatchSize(v, srv.Hardware, srv.Labels)
	out := &bmcv1.SizeTest{Server: srv.Name, Size: srv.Size, ByRule: srv.SizeByRule, Match: match}
	for _, l := range lacks {
		out.Lacks = append(out.Lacks, &bmcv1.SizeLack{Size: l.Size, Why: l.Why})
	}
	return out
}

func fromRule(r *bmcv1.SizeRule) *logpb.SizeRule {
	if r == nil {
		return nil
	}
	out := &logpb.SizeRule{Priority: int64(r.GetPriority()), Model: r.GetModel(), Labels: logpb.FromLabels(r.GetLabels())}
	for _, d := range r.GetDisks() {
		out.Disks = append(out.Disks, &logpb.DiskRule{Kind: d.GetKind(), MinBytes: d.GetMinBytes(), Count: int64(d.GetCount())})
	}
	return out
}

func toRule(r *metal.SizeRule) *bmcv1.SizeRule {
	if r.Priority == 0 && r.Model == "" && len(r.Disks)+len(r.Labels) == 0 {
		return nil
	}
	out := &bmcv1.SizeRule{Priority: int32(r.Priority), Model: r.Model, Labels: r.Labels}
	for _, d := range r.Disks {
		out.Disks = append(out.Disks, &bmcv1.DiskRule{Kind: d.Kind, MinBytes: d.MinBytes, Count: uint32(d.Count)})
	}
	return out
}

// waiting is the machines that were discovered, by what they are told apart by.
// Several under one key are none.
type waiting struct {
	bySerial, byUUID, byMAC map[string]*metal.Server
}

func discoveredIn(v *state.View) *waiting {
	w := &waiting{map[string]*metal.Server{}, map[string]*metal.Server{}, map[string]*metal.Server{}}
	if v.CountServers(metal.StateDiscovered) == 0 {
		return w
	}
	add := func(m map[string]*metal.Server, key string, s *metal.Server) {
		if key == "" {
			return
		}
		if other, twice := m[key]; twice && other != s {
			s = nil
		}
		m[key] = s
	}
	for s := range v.Servers(state.ServerFilter{State: metal.StateDiscovered}) {
		add(w.bySerial, strings.ToLower(s.Serial), s)
		add(w.byUUID, strings.ToLower(s.UUID), s)
		for _, mac := range append(s.Hardware.Identity().MACs, s.MACs...) {
			add(w.byMAC, mac, s)
		}
	}
	return w
}

// match finds the discovered machine that a line of an inventory is about: the
// one that it names, else by serial number, UUID, MAC. nil: none.
func (w *waiting) match(v *state.View, field string, m *bmcv1.ServerInput, macs []string) (*metal.Server, error) {
	if ref := m.GetDiscovered(); ref != "" {
		s, err := v.ResolveServer("", true, ref)
		if err != nil {
			return nil, metal.Invalid(field+".discovered", "there is no machine %q", ref).WithHint("bmc inventory list --state discovered")
		}
		if s.State != metal.StateDiscovered {
			return nil, metal.Errorf(metal.CodeWrongState, "%s.discovered: %s is %s, not discovered", field, s.Name, s.State).WithHint("bmc explain %s", s.Name)
		}
		return s, nil
	}
	for _, by := range []struct {
		what, key string
		in        map[string]*metal.Server
	}{{"serial", strings.ToLower(metal.ProperSerial(m.GetSerial())), w.bySerial}, {"uuid", metal.ProperUUID(m.GetUuid()), w.byUUID}} {
		s, ok := by.in[by.key]
		if ok && s == nil {
			return nil, metal.Invalid(field+"."+by.what, "several discovered machines have %s: name one with discovered", by.key).WithHint("bmc inventory list --state discovered")
		}
		if ok {
			return s, nil
		}
	}
	for _, mac := range macs {
		if s := w.byMAC[mac]; s != nil {
			return s, nil
		}
	}
	return nil, nil
}
