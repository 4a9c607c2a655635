package rpc

import (
	"context"
	"math"
	"net/netip"
	"slices"
	"strings"

	agentv1 "bmc/api/agent/v1"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/internal/mutant"
	"bmc/metal"

	"google.golang.org/protobuf/types/known/durationpb"
)

// Bounds of what an agent reports at once.
const (
	maxObservations = 1000
	maxReportText   = 64 << 10
	maxRamdisk      = 256 // of its version
)

// bootsLevel is the feature level whose reports say which boot of the ramdisk
// they speak of.
const bootsLevel = 2

// detailLevel is the one that knows details of hardware, and discovery.
const detailLevel = 4

// kexecLevel is the feature level whose reports say how a system was started.
const kexecLevel = 3

type control struct {
	agentv1.UnimplementedControlServer
	*API
}

// rack resolves a rack that the calling agent may act on: none but its own.
func (s *control) rack(ctx context.Context, v *state.View, ref string) (*metal.Rack, error) {
	r, err := v.ResolveRack(ref)
	if err != nil {
		return nil, err
	}
	ag, ok := v.Agent(caller(ctx).agent)
	if !ok {
		return nil, errNoAgent(v, caller(ctx).agent)
	}
	if !slices.Contains(ag.Racks, r.ID) && !mutant.On("any-rack") {
		return nil, metal.Errorf(metal.CodeDenied, "agent %s does not serve rack %s", caller(ctx).agent, r.Name).
			WithHint("bmc cluster join-token --role agent --rack %s", r.Name)
	}
	return r, nil
}

// ownServer finds a server of one of the calling agent's racks.
func (s *control) ownServer(ctx context.Context, v *state.View, id string) (*metal.Server, error) {
	srv, ok := v.Server(id)
	if !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "there is no server %s", id)
	}
	if _, err := s.rack(ctx, v, srv.RackID); err != nil {
		return nil, err
	}
	return srv, nil
}

func (s *control) RenewLease(ctx context.Context, req *agentv1.RenewLeaseRequest) (*agentv1.RenewLeaseResponse, error) {
	r, err := s.rack(ctx, s.Proposer.StaleView(), req.GetRack())
	if err != nil {
		return nil, err
	}
	if e := req.GetEndpoint(); e != nil {
		at, err := endpoint(e, caller(ctx).agent)
		if err != nil {
			return nil, err
		}
		if at.Ramdisk = req.GetRamdisk(); len(at.Ramdisk) > maxRamdisk {
			return nil, metal.Invalid("ramdisk", "is longer than %d bytes", maxRamdisk)
		}
		at.Unfit = req.GetUnfit() != ""
		s.Leases.Note(r.ID, at)
	}
	l, err := s.Leases.RenewLease(ctx, caller(ctx).agent, r.ID)
	if err != nil {
		return nil, err
	}
	out := &agentv1.RenewLeaseResponse{Held: l.Held, Generation: l.Generation, Epoch: l.Epoch, Ttl: durationpb.New(l.TTL), Holder: l.Holder}
	if now, ok := s.Proposer.StaleView().Rack(r.ID); ok { // the lease may be new
		r = now
	}
	known, partial := s.Leases.Agents(r)
	out.Partial = partial
	for _, e := range known {
		out.Agents = append(out.Agents, &agentv1.Endpoint{Address: e.Address, HttpPort: e.HTTPPort, TlsPort: e.TLSPort, AgentId: e.Agent})
	}
	return out, nil
}

// endpoint is where an agent says that it is; who it is says its certificate.
func endpoint(e *agentv1.Endpoint, agentID string) (Endpoint, error) {
	addr, err := netip.ParseAddr(e.GetAddress())
	if err != nil || !addr.Is4() {
		return Endpoint{}, metal.Invalid("endpoint.address", "%q is not an IPv4 address", e.GetAddress())
	}
	for _, port := range []uint32{e.GetHttpPort(), e.GetTlsPort()} {
		if port < 1 || port > math.MaxUint16 {
			return Endpoint{}, metal.Invalid("endpoint", "port %d is not 1 to 65535", port)
		}
	}
	return Endpoint{Agent: agentID, Address: addr.String(), HTTPPort: e.GetHttpPort(), TLSPort: e.GetTlsPort()}, nil
}

func (s *control) ReportStep(ctx context.Context, req *agentv1.ReportStepRequest) (*agentv1.ReportStepResponse, error) {
	if len(req.GetMessage()) > maxReportText {
		return nil, metal.Invalid("message", "is longer than %d bytes", maxReportText)
	}
	v := s.Proposer.StaleView()
	op, ok := v.Operation(req.GetOperationId())
	if !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "there is no operation %s", req.GetOperationId())
	}
	if _, err := s.ownServer(ctx, v, op.ServerID); err != nil {
		return nil, err
	}
	cmd := &logpb.ReportStep{OperationId: req.GetOperationId(), Attempt: int64(req.GetAttempt()), Epoch: req.GetEpoch(),
		Sequence: req.GetSequence(), Step: req.GetStep(), Phase: req.GetPhase(), Reason: req.GetReason(), Message: req.GetMessage(),
		Hardware: fromHardware(req.GetHardware()), Installed: fromInstalled(req.GetInstalled()), Wipes: fromWipes(req.GetWipes()),
		Recovery: req.GetRecovery(), AgentId: caller(ctx).agent}
	if v.Meta().FeatureLevel >= kexecLevel {
		cmd.BootMethod = req.GetBootMethod()
	}
	if v.Meta().FeatureLevel >= detailLevel {
		cmd.Found = fromHardware(req.GetFound())
	} else {
		plainHardware(cmd.GetHardware())
	}
	switch {
	case v.Meta().FeatureLevel >= bootsLevel:
		cmd.BootId, cmd.RootDisk = req.GetBootId(), req.GetRootDisk()
		if v.Meta().FeatureLevel >= warmLevel {
			cmd.Ramdisk = req.GetRamdisk()
		}
	case req.GetPhase() == "booted": // a cluster amid an upgrade has no word for it, and no field for the others
		return &agentv1.ReportStepResponse{Revision: v.Revision()}, nil
	}
	if mutant.On("any-rack") {
		cmd.AgentId = op.Agent // whoever it is that reports
	}
	res, err := s.proposeAs(ctx, caller(ctx).principal, "", nil, &logpb.Command{Command: &logpb.Command_ReportStep{ReportStep: cmd}})
	if err != nil {
		return nil, err
	}
	if op, ok := s.Proposer.StaleView().Operation(req.GetOperationId()); ok && op.State.Ended() {
		s.progress.forget(op.ID)
	}
	return &agentv1.ReportStepResponse{Revision: res.Revision}, nil
}

func (s *control) ReportProgress(ctx context.Context, req *agentv1.ReportProgressRequest) (*agentv1.ReportProgressResponse, error) {
	v := s.Proposer.StaleView()
	op, ok := v.Operation(req.GetOperationId())
	if !ok || op.State.Ended() || op.Attempt != int(req.GetAttempt()) {
		return &agentv1.ReportProgressResponse{}, nil // late news of what has ended
	}
	if _, err := s.ownServer(ctx, v, op.ServerID); err != nil {
		return nil, err
	}
	msg := req.GetMessage()
	if len(msg) > 1024 {
		msg = msg[:1024]
	}
	s.progress.report(op.ID, progress{attempt: int(req.GetAttempt()), step: req.GetStep(), done: req.GetDone(), total: req.GetTotal(),
		message: strings.ToValidUTF8(msg, ""), at: s.Now()})
	return &agentv1.ReportProgressResponse{}, nil
}

// knownConditions are those that an agent may raise or clear.
var knownConditions = []metal.Condition{metal.ConditionOOBUnreachable, metal.ConditionHardwareDegraded, metal.ConditionBootEntry}

func (s *control) ReportObservations(ctx context.Context, req *agentv1.ReportObservationsRequest) (*agentv1.ReportObservationsResponse, error) {
	v := s.Proposer.StaleView()
	rack, err := s.rack(ctx, v, req.GetRack())
	if err != nil {
		return nil, err
	}
	if len(req.GetObservations()) > maxObservations {
		return nil, metal.Invalid("observations", "are more than %d", maxObservations)
	}
	cmd := &logpb.Observe{RackId: rack.ID, AgentId: caller(ctx).agent, Epoch: req.GetEpoch()}
	for _, o := range req.GetObservations() {
		srv, ok := v.Server(o.GetServerId())
		if !ok {
			continue // forgotten meanwhile
		}
		if srv.RackID != rack.ID {
			return nil, metal.Errorf(metal.CodeDenied, "server %s is not in rack %s", srv.Name, rack.Name)
		}
		out, err := observation(o)
		if err != nil {
			return nil, err
		}
		cmd.Observations = append(cmd.Observations, out)
	}
	if len(cmd.GetObservations()) == 0 {
		return &agentv1.ReportObservationsResponse{}, nil
	}
	_, err = s.proposeAs(ctx, caller(ctx).principal, "", nil, &logpb.Command{Command: &logpb.Command_Observe{Observe: cmd}})
	if err != nil {
		return nil, err
	}
	return &agentv1.ReportObservationsResponse{}, nil
}

func observation(o *agentv1.Observation) (*logpb.Observation, error) {
	switch metal.Power(o.GetPower()) {
	case "", metal.PowerOn, metal.PowerOff, metal.PowerUnknown:
	default:
		return nil, metal.Invalid("power", "%q is none of on, off, unknown", o.GetPower())
	}
	out := &logpb.Observation{ServerId: o.GetServerId(), Power: o.GetPower(), Message: o.GetMessage(), WarmLost: o.GetWarmLost()}
	for name, raised := range o.GetConditions() {
		if !slices.Contains(knownConditions, metal.Condition(name)) {
			return nil, metal.Invalid("conditions", "%q is not for agents to report", name)
		}
		if raised {
			out.Raised = append(out.Raised, name)
		} else {
			out.Cleared = append(out.Cleared, name)
		}
	}
	slices.Sort(out.Raised)
	slices.Sort(out.Cleared)
	return out, nil
}

func (s *control) IssueServerCertificate(ctx context.Context, req *agentv1.IssueServerCertificateRequest) (*agentv1.IssueServerCertificateResponse, error) {
	if _, err := checkCSR(req.GetCsr()); err != nil {
		return nil, err
	}
	v := s.Proposer.StaleView()
	if _, ok := v.Server(req.GetServerId()); !ok { // this replica may be behind the one that told the agent
		var err error
		if v, err = s.linearizable(ctx); err != nil {
			return nil, err
		}
	}
	srv, err := s.ownServer(ctx, v, req.GetServerId())
	if err != nil {
		return nil, err
	}
	if id := req.GetBootId(); id != "" && (!srv.Warm.Waits() || srv.Warm.BootID != id || srv.State != metal.StateAvailable) {
		return nil, metal.Errorf(metal.CodeDenied, "server %s does not wait in that boot of the ramdisk", srv.Name)
	}
	cert, err := s.Authority.SignServer(req.GetCsr(), req.GetServerId())
	if err != nil {
		return nil, err
	}
	return &agentv1.IssueServerCertificateResponse{Certificate: cert}, nil
}

func (s *control) RenewCertificate(ctx context.Context, req *agentv1.RenewCertificateRequest) (*agentv1.RenewCertificateResponse, error) {
	if _, err := checkCSR(req.GetCsr()); err != nil {
		return nil, err
	}
	cert, err := s.Authority.SignAgent(req.GetCsr(), caller(ctx).agent)
	if err != nil {
		return nil, err
	}
	s.Log.Info("agent's certificate renewed", "agent", caller(ctx).agent)
	return &agentv1.RenewCertificateResponse{Certificate: cert}, nil
}

func fromHardware(h *agentv1.Hardware) *logpb.Hardware {
	if h == nil {
		return nil
	}
	out := &logpb.Hardware{Serial: h.GetSerial(), Uuid: h.GetUuid(), Vendor: h.GetVendor(), Product: h.GetProduct(), Firmware: h.GetFirmware(),
		FirmwareVersion: h.GetFirmwareVersion(), SecureBoot: h.GetSecureBoot(), Arch: h.GetArch(), CpuModel: h.GetCpuModel(),
		CpuThreads: int64(h.GetCpuThreads()), MemoryBytes: h.GetMemoryBytes(), CpuCores: int64(h.GetCpuCores()), CpuSockets: int64(h.GetCpuSockets()),
		OobAddress: h.GetOobAddress(), OobFirmware: h.GetOobFirmware(), BoardSerial: h.GetBoardSerial()}
	for _, d := range h.GetDimms() {
		out.Dimms = append(out.Dimms, &logpb.DIMM{Slot: d.GetSlot(), SizeBytes: d.GetSizeBytes(), SpeedMts: int64(d.GetSpeedMts()), Kind: d.GetKind(),
			Vendor: d.GetVendor(), Part: d.GetPart(), Serial: d.GetSerial()})
	}
	for _, d := range h.GetDisks() {
		disk := &logpb.Disk{Name: d.GetName(), SizeBytes: d.GetSizeBytes(), Kind: d.GetKind(), Wwn: d.GetWwn(),
			Serial: d.GetSerial(), Model: d.GetModel(), SectorSize: int64(d.GetSectorSize()), Removable: d.GetRemovable(),
			Firmware: d.GetFirmware(), PhysicalSectorSize: int64(d.GetPhysicalSectorSize())}
		if s := d.GetHealth(); s != nil {
			disk.Health = &logpb.DiskHealth{State: s.GetState(), Reason: s.GetReason(), PercentUsed: int64(s.GetPercentUsed()), Reallocated: s.GetReallocated(),
				PowerOnHours: s.GetPowerOnHours(), TemperatureCelsius: int64(s.GetTemperatureCelsius())}
		}
		out.Disks = append(out.Disks, disk)
	}
	for _, n := range h.GetNics() {
		nic := &logpb.NIC{Name: n.GetName(), Mac: n.GetMac(), Link: n.GetLink(), SpeedMbps: int64(n.GetSpeedMbps()), Driver: n.GetDriver(), Firmware: n.GetFirmware()}
		if p := n.GetNeighbour(); p != nil {
			nic.Neighbour = &logpb.Neighbour{Chassis: p.GetChassis(), Port: p.GetPort(), System: p.GetSystem(), PortDescription: p.GetPortDescription(), Vlan: int64(p.GetVlan())}
		}
		out.Nics = append(out.Nics, nic)
	}
	return out
}

// plainHardware takes away what a cluster amid an upgrade has no field for.
func plainHardware(h *logpb.Hardware) {
	if h == nil {
		return
	}
	h.CpuCores, h.CpuSockets, h.Dimms, h.OobAddress, h.OobFirmware, h.BoardSerial = 0, 0, nil, "", "", ""
	for _, d := range h.GetDisks() {
		d.Firmware, d.PhysicalSectorSize, d.Health = "", 0, nil
	}
	for _, n := range h.GetNics() {
		n.Firmware, n.Neighbour = "", nil
	}
}

func fromInstalled(i *agentv1.Installed) *logpb.Installed {
	if i == nil {
		return nil
	}
	return &logpb.Installed{SshHostKeys: i.GetSshHostKeys(), RootDisk: i.GetRootDisk(), BytesWritten: i.GetBytesWritten(),
		BytesVerified: i.GetBytesVerified(), BootEntry: i.GetBootEntry()}
}

func fromWipes(ws []*agentv1.WipeEvidence) []*logpb.WipeEvidence {
	var out []*logpb.WipeEvidence
	for _, w := range ws {
		out = append(out, &logpb.WipeEvidence{Disk: w.GetDisk(), Method: w.GetMethod(), Bytes: w.GetBytes(), BytesReadBack: w.GetBytesReadBack()})
	}
	return out
}
