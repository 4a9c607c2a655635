package rpc

import (
	"net/netip"
	"slices"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// stamp is nil for the zero time.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// text is empty for the zero address.
func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func texts(as []netip.Addr) []string {
	var out []string
	for _, a := range as {
		out = append(out, a.String())
	}
	return out
}

func rackName(v *state.View, id string) string {
	if r, ok := v.Rack(id); ok {
		return r.Name
	}
	return id
}

func projectName(v *state.View, id string) string {
	if p, ok := v.Project(id); ok {
		return p.Name
	}
	return id
}

// tenantStatus is the word that a tenant reads: "" when nobody rents the server.
func tenantStatus(s *metal.Server) string {
	if s.Rental == nil {
		return ""
	}
	if s.Rental.Released {
		return "releasing"
	}
	switch s.State {
	case metal.StateDeploying:
		return "provisioning"
	case metal.StateActive:
		if s.Power.Observed == metal.PowerOff {
			return "stopped"
		}
		return "running"
	case metal.StateRescuing, metal.StateRescue:
		return "rescue"
	case metal.StateReleasing, metal.StateCleaning:
		return "releasing"
	case metal.StateFailed, metal.StateQuarantined:
		return "failed"
	}
	return "provisioning"
}

// toServer shows a server to a caller: only operators see how its management
// controller is reached.
func toServer(v *state.View, s *metal.Server, operator bool) *bmcv1.Server {
	out := &bmcv1.Server{
		Id: s.ID, Name: s.Name, Rack: rackName(v, s.RackID), Size: s.Size,
		State: string(s.State), Status: tenantStatus(s), StateSince: stamp(s.StateSince),
		Power: &bmcv1.Power{Wanted: string(s.Power.Wanted), Observed: string(s.Power.Observed), ObservedAt: stamp(s.Power.ObservedAt)},
		Macs:  slices.Clone(s.MACs), Address: text(s.Address), Labels: s.Labels, OperationId: s.Operation,
		Hardware: toHardware(s.Hardware), ResourceVersion: s.Revision, Created: stamp(s.Created), SizeByRule: s.SizeByRule,
	}
	for name, c := range s.Conditions {
		out.Conditions = append(out.Conditions, &bmcv1.Condition{Name: string(name), Since: stamp(c.Since), Message: c.Message})
	}
	if w := s.Warm; w.Waits() {
		out.Conditions = append(out.Conditions, &bmcv1.Condition{Name: "warm", Since: stamp(w.Since), Message: "waits in ramdisk " + w.Ramdisk})
	}
	slices.SortFunc(out.Conditions, func(a, b *bmcv1.Condition) int { return cmpString(a.Name, b.Name) })
	for h, on := range s.Holds {
		if on {
			out.Holds = append(out.Holds, string(h))
		}
	}
	slices.Sort(out.Holds)
	if r := s.Rental; r != nil {
		out.Rental = &bmcv1.Rental{Name: r.Name, Project: projectName(v, r.Project), Image: r.ImageName, ImageId: r.ImageID,
			User: r.User, SshHostKeys: slices.Clone(r.SSHHostKeys), Since: stamp(r.Since), Expires: stamp(r.Expires)}
	}
	if s.Operation != "" {
		if op, ok := v.Operation(s.Operation); ok {
			out.Deadline = stamp(op.Deadline)
		}
	}
	if s.Failure != nil {
		out.Failure = toFailure(s.Failure, refName(s))
	}
	out.Warm = toWarm(s.Warm)
	if operator {
		out.OobAddress, out.Serial, out.Uuid = s.OOB.Address, s.Serial, s.UUID
		if c := s.Claim; c != nil {
			out.Claim = &bmcv1.Claim{Serial: c.Serial, Uuid: c.UUID, Macs: slices.Clone(c.MACs), Reason: c.Reason, At: stamp(c.At), Board: c.Board}
		}
	} else if out.Hardware != nil {
		out.Hardware.OobAddress = ""
	}
	return out
}

// refName is how people name a server: by its rental while there is one.
func refName(s *metal.Server) string {
	if s.Rental != nil && !s.Rental.Released {
		return s.Rental.Name
	}
	return s.Name
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func toHardware(h *metal.Hardware) *bmcv1.Hardware {
	if h == nil {
		return nil
	}
	out := &bmcv1.Hardware{Serial: h.Serial, Uuid: h.UUID, Vendor: h.Vendor, Product: h.Product, Firmware: h.Firmware,
		CpuModel: h.CPUModel, CpuThreads: uint32(h.CPUThreads), MemoryBytes: h.MemoryBytes, Arch: h.Arch,
		FirmwareVersion: h.FirmwareVersion, SecureBoot: h.SecureBoot, CpuCores: uint32(h.CPUCores), CpuSockets: uint32(h.CPUSockets),
		OobAddress: h.OOBAddress, OobFirmware: h.OOBFirmware, BoardSerial: h.BoardSerial, InspectedAt: stamp(h.InspectedAt)}
	for _, d := range h.DIMMs {
		out.Dimms = append(out.Dimms, &bmcv1.DIMM{Slot: d.Slot, SizeBytes: d.SizeBytes, SpeedMts: uint32(d.SpeedMTs), Kind: d.Kind, Vendor: d.Vendor, Part: d.Part, Serial: d.Serial})
	}
	for _, d := range h.Disks {
		disk := &bmcv1.Disk{Name: d.Name, SizeBytes: d.SizeBytes, Kind: d.Kind, Wwn: d.WWN, Serial: d.Serial, Model: d.Model,
			SectorSize: uint32(d.SectorSize), PhysicalSectorSize: uint32(d.Physical), Firmware: d.Firmware, Removable: d.Removable}
		if s := d.Health; s != nil {
			disk.Health = &bmcv1.DiskHealth{State: s.State, Reason: s.Reason, PercentUsed: uint32(s.PercentUsed), Reallocated: s.Reallocated,
				PowerOnHours: s.PowerOnHours, TemperatureCelsius: int32(s.Celsius)}
		}
		out.Disks = append(out.Disks, disk)
	}
	for _, n := range h.NICs {
		nic := &bmcv1.NIC{Name: n.Name, Mac: n.MAC, Link: n.Link, SpeedMbps: uint32(n.SpeedMbps), Driver: n.Driver, Firmware: n.Firmware}
		if p := n.Neighbour; p != nil {
			nic.Neighbour = &bmcv1.Neighbour{Chassis: p.Chassis, Port: p.Port, System: p.System, PortDescription: p.PortDescription, Vlan: uint32(p.VLAN)}
		}
		out.Nics = append(out.Nics, nic)
	}
	return out
}

func toFailure(f *metal.Failure, ref string) *bmcv1.Failure {
	return &bmcv1.Failure{From: string(f.From), Step: string(f.Step), Reason: string(f.Reason), Message: f.Message, Hint: failureHint(f, ref)}
}

// failureHint is the command that helps after a failed operation.
func failureHint(f *metal.Failure, ref string) string {
	switch f.Reason {
	case metal.CodeBMCMismatch, metal.CodeOOBUnreachable, metal.CodeOOBAuth:
		return "bmc inventory apply -f FILE   # with the right management controller for " + ref
	case metal.CodeIdentityChanged:
		return "bmc inventory accept " + ref + " && bmc retry " + ref
	case metal.CodeWipeRefused:
		return "bmc inventory apply -f FILE   # with wipe: true for " + ref
	case metal.CodeSignature, metal.CodeCorruptChunk, metal.CodeImageTooLarge, metal.CodeFirmwareUnfit:
		return "bmc image list"
	case metal.CodeNotReady, metal.CodeNoNetboot:
		return "bmc explain " + ref
	}
	return "bmc operation log " + f.Operation
}

// toOperation shows an operation, without progress and without its server.
func toOperation(v *state.View, o *metal.Operation) *bmcv1.Operation {
	out := &bmcv1.Operation{
		Id: o.ID, Kind: string(o.Kind), State: string(o.State), ServerId: o.ServerID, Target: o.Target,
		Attempt: uint32(o.Attempt), Principal: o.Principal, Created: stamp(o.Created), Started: stamp(o.Started),
		Ended: stamp(o.Ended), Deadline: stamp(o.Deadline), ResourceVersion: o.Revision,
	}
	if s, ok := v.Server(o.ServerID); ok {
		out.ServerName = s.Name
	}
	if !o.State.Ended() {
		out.Step = string(o.Current())
	}
	for _, s := range o.Steps {
		out.Steps = append(out.Steps, &bmcv1.Step{Name: string(s.Step), State: string(s.State), Attempt: uint32(o.Attempt),
			Started: stamp(s.Started), Ended: stamp(s.Ended), Message: s.Message, Recovery: slices.Clone(s.Recovery)})
	}
	if o.Failure != nil {
		out.Failure = toFailure(o.Failure, o.Target)
		out.Step = string(o.Failure.Step)
	}
	return out
}

func toEvent(e *metal.Event) *bmcv1.Event {
	return &bmcv1.Event{Revision: e.Revision, Index: uint32(e.Index), Time: stamp(e.Time), Kind: e.Kind, ServerId: e.ServerID,
		Target: e.Target, OperationId: e.OperationID, Principal: e.Principal, Message: e.Message, Reason: string(e.Reason)}
}

// toImage shows an image; the manifest and signature only when asked for one.
func toImage(v *state.View, i *metal.Image, full bool) *bmcv1.Image {
	out := &bmcv1.Image{Id: i.ID, Name: i.Name, Project: projectName(v, i.Project), Os: i.OS, Arch: i.Arch, SizeBytes: i.SizeBytes,
		StoredBytes: i.StoredBytes, Chunks: uint32(i.Chunks), Firmware: slices.Clone(i.Firmware), User: i.User,
		Created: stamp(i.Created), ResourceVersion: i.Revision, SigningKeyId: i.SigningKeyID}
	if full {
		out.Manifest, out.Signature = i.Manifest, i.Signature
	}
	return out
}

func toKey(v *state.View, k *metal.SSHKey) *bmcv1.SSHKey {
	return &bmcv1.SSHKey{Id: k.ID, Name: k.Name, Project: projectName(v, k.Project), PublicKey: k.PublicKey,
		Fingerprint: k.Fingerprint, Created: stamp(k.Created)}
}

// toRack shows a rack with how many servers it has and how many are free.
func toRack(v *state.View, r *metal.Rack, servers, available uint32) *bmcv1.Rack {
	out := &bmcv1.Rack{Id: r.ID, Name: r.Name, Subnet: r.Subnet.String(), Gateway: text(r.Gateway), Dns: texts(r.DNS), Domain: r.Domain,
		RangeFrom: text(r.RangeFrom), RangeTo: text(r.RangeTo), LeaseTime: durationpb.New(r.LeaseTime),
		Servers: servers, Available: available, ResourceVersion: r.Revision, Frozen: r.Frozen, Warm: metal.WarmText(r.Warm),
		Discovery: r.Discovery, FrozenBy: r.Stop.By, FrozenWhy: r.Stop.Why, FrozenSince: stamp(r.Stop.Since)}
	l := r.Lease
	out.Lease = &bmcv1.Lease{Holder: l.Agent, Generation: l.Generation, Epoch: l.Epoch, Granted: stamp(l.Granted)}
	if a, ok := v.Agent(l.Agent); ok {
		out.Lease.HolderName = a.Name
	}
	return out
}
