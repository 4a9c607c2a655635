package logpb

import (
	"fmt"
	"slices"

	"bmc/metal"
)

// FromServer converts a server; maps become sorted lists, so that one server
// has one encoding.
func FromServer(s *metal.Server) *Server {
	out := &Server{Id: s.ID, Name: s.Name, RackId: s.RackID, Size: s.Size, Labels: FromLabels(s.Labels),
		Created: Nanos(s.Created), State: string(s.State), StateSince: Nanos(s.StateSince),
		Power:     &Power{Wanted: string(s.Power.Wanted), Observed: string(s.Power.Observed), ObservedAt: Nanos(s.Power.ObservedAt)},
		Operation: s.Operation, Failure: FromFailure(s.Failure), Rental: fromRental(s.Rental),
		Macs: s.MACs, Address: text(s.Address), Oob: FromOOB(s.OOB), Serial: s.Serial, Uuid: s.UUID,
		Hardware: FromHardware(s.Hardware), WipeOk: s.WipeOK, ConsoleTty: s.ConsoleTTY, Wiped: FromWipes(s.Wiped),
		WasAvailable: s.WasAvailable, Revision: s.Revision, Warm: fromWarm(s.Warm), SizeByRule: s.SizeByRule, Claim: fromClaim(s.Claim)}
	for c, st := range s.Conditions {
		out.Conditions = append(out.Conditions, &Condition{Name: string(c), Since: Nanos(st.Since), Message: st.Message})
	}
	slices.SortFunc(out.Conditions, func(a, b *Condition) int { return compare(a.Name, b.Name) })
	for h, on := range s.Holds {
		if on {
			out.Holds = append(out.Holds, string(h))
		}
	}
	slices.Sort(out.Holds)
	return out
}

// Metal converts a server; the error says which address does not parse.
func (x *Server) Metal() (*metal.Server, error) {
	a, err := addr("address", x.GetAddress())
	if err != nil {
		return nil, fmt.Errorf("server %s: %w", x.GetId(), err)
	}
	p := x.GetPower()
	s := &metal.Server{ID: x.GetId(), Name: x.GetName(), RackID: x.GetRackId(), Size: x.GetSize(), Labels: Labels(x.GetLabels()),
		Created: Time(x.GetCreated()), State: metal.State(x.GetState()), StateSince: Time(x.GetStateSince()),
		Power:     metal.PowerStatus{Wanted: metal.Power(p.GetWanted()), Observed: metal.Power(p.GetObserved()), ObservedAt: Time(p.GetObservedAt())},
		Operation: x.GetOperation(), Failure: x.GetFailure().Metal(), Rental: x.GetRental().metal(),
		MACs: x.GetMacs(), Address: a, OOB: x.GetOob().Metal(), Serial: x.GetSerial(), UUID: x.GetUuid(),
		Hardware: x.GetHardware().Metal(), WipeOK: x.GetWipeOk(), ConsoleTTY: x.GetConsoleTty(), Wiped: Wipes(x.GetWiped()),
		WasAvailable: x.GetWasAvailable(), Revision: x.GetRevision(), Warm: x.GetWarm().metal(), SizeByRule: x.GetSizeByRule(), Claim: x.GetClaim().metal()}
	for _, c := range x.GetConditions() {
		if s.Conditions == nil {
			s.Conditions = map[metal.Condition]metal.ConditionStatus{}
		}
		s.Conditions[metal.Condition(c.GetName())] = metal.ConditionStatus{Since: Time(c.GetSince()), Message: c.GetMessage()}
	}
	for _, h := range x.GetHolds() {
		if s.Holds == nil {
			s.Holds = map[metal.Hold]bool{}
		}
		s.Holds[metal.Hold(h)] = true
	}
	return s, nil
}

// FromFailure converts a failure; nil stays nil.
func FromFailure(f *metal.Failure) *Failure {
	if f == nil {
		return nil
	}
	return &Failure{From: string(f.From), Operation: f.Operation, Step: string(f.Step), Reason: string(f.Reason),
		Message: f.Message, At: Nanos(f.At)}
}

// Metal converts a failure; nil stays nil.
func (x *Failure) Metal() *metal.Failure {
	if x == nil {
		return nil
	}
	return &metal.Failure{From: metal.State(x.From), Operation: x.Operation, Step: metal.Step(x.Step),
		Reason: metal.Code(x.Reason), Message: x.Message, At: Time(x.At)}
}

func fromWarm(w *metal.Warm) *Warm {
	if w == nil {
		return nil
	}
	return &Warm{BootId: w.BootID, Ramdisk: w.Ramdisk, Since: Nanos(w.Since), Tries: int64(w.Tries), Next: Nanos(w.Next), Problem: w.Problem}
}

func (x *Warm) metal() *metal.Warm {
	if x == nil {
		return nil
	}
	return &metal.Warm{BootID: x.BootId, Ramdisk: x.Ramdisk, Since: Time(x.Since), Tries: int(x.Tries), Next: Time(x.Next), Problem: x.Problem}
}

func fromRental(r *metal.Rental) *Rental {
	if r == nil {
		return nil
	}
	return &Rental{Name: r.Name, Project: r.Project, ImageId: r.ImageID, ImageName: r.ImageName, User: r.User,
		SshKeys: r.SSHKeys, UserData: r.UserData, SshHostKeys: r.SSHHostKeys, RootDisk: r.RootDisk,
		Since: Nanos(r.Since), Expires: Nanos(r.Expires), Released: r.Released}
}

func (x *Rental) metal() *metal.Rental {
	if x == nil {
		return nil
	}
	return &metal.Rental{Name: x.Name, Project: x.Project, ImageID: x.ImageId, ImageName: x.ImageName, User: x.User,
		SSHKeys: x.SshKeys, UserData: x.UserData, SSHHostKeys: x.SshHostKeys, RootDisk: x.RootDisk,
		Since: Time(x.Since), Expires: Time(x.Expires), Released: x.Released}
}

// FromOOB converts the way to a management controller.
func FromOOB(o metal.OOB) *OOB {
	return &OOB{Protocol: o.Protocol, Address: o.Address, Username: o.Username, Password: o.Password, CipherSuite: int64(o.CipherSuite)}
}

// Metal converts the way to a management controller.
func (x *OOB) Metal() metal.OOB {
	return metal.OOB{Protocol: x.GetProtocol(), Address: x.GetAddress(), Username: x.GetUsername(),
		Password: x.GetPassword(), CipherSuite: int(x.GetCipherSuite())}
}

// FromHardware converts what an inspection found; nil stays nil.
func FromHardware(h *metal.Hardware) *Hardware {
	if h == nil {
		return nil
	}
	out := &Hardware{Serial: h.Serial, Uuid: h.UUID, Vendor: h.Vendor, Product: h.Product, Firmware: h.Firmware,
		FirmwareVersion: h.FirmwareVersion, SecureBoot: h.SecureBoot, Arch: h.Arch, CpuModel: h.CPUModel,
		CpuThreads: int64(h.CPUThreads), MemoryBytes: h.MemoryBytes, InspectedAt: Nanos(h.InspectedAt),
		CpuCores: int64(h.CPUCores), CpuSockets: int64(h.CPUSockets), OobAddress: h.OOBAddress, OobFirmware: h.OOBFirmware, BoardSerial: h.BoardSerial}
	for _, d := range h.DIMMs {
		out.Dimms = append(out.Dimms, &DIMM{Slot: d.Slot, SizeBytes: d.SizeBytes, SpeedMts: int64(d.SpeedMTs), Kind: d.Kind, Vendor: d.Vendor, Part: d.Part, Serial: d.Serial})
	}
	for _, d := range h.Disks {
		disk := &Disk{Name: d.Name, SizeBytes: d.SizeBytes, Kind: d.Kind, Wwn: d.WWN, Serial: d.Serial,
			Model: d.Model, SectorSize: int64(d.SectorSize), Removable: d.Removable, Firmware: d.Firmware, PhysicalSectorSize: int64(d.Physical)}
		if s := d.Health; s != nil {
			disk.Health = &DiskHealth{State: s.State, Reason: s.Reason, PercentUsed: int64(s.PercentUsed), Reallocated: s.Reallocated,
				PowerOnHours: s.PowerOnHours, TemperatureCelsius: int64(s.Celsius)}
		}
		out.Disks = append(out.Disks, disk)
	}
	for _, n := range h.NICs {
		nic := &NIC{Name: n.Name, Mac: n.MAC, Link: n.Link, SpeedMbps: int64(n.SpeedMbps), Driver: n.Driver, Firmware: n.Firmware}
		if p := n.Neighbour; p != nil {
			nic.Neighbour = &Neighbour{Chassis: p.Chassis, Port: p.Port, System: p.System, PortDescription: p.PortDescription, Vlan: int64(p.VLAN)}
		}
		out.Nics = append(out.Nics, nic)
	}
	return out
}

func fromClaim(c *metal.Claim) *Claim {
	if c == nil {
		return nil
	}
	return &Claim{Serial: c.Serial, Uuid: c.UUID, Macs: c.MACs, Reason: c.Reason, At: Nanos(c.At), Board: c.Board}
}

func (x *Claim) metal() *metal.Claim {
	if x == nil {
		return nil
	}
	return &metal.Claim{Serial: x.Serial, UUID: x.Uuid, MACs: x.Macs, Reason: x.Reason, At: Time(x.At), Board: x.Board}
}

// Metal converts what an inspection found; nil stays nil.
func (x *Hardware) Metal() *metal.Hardware {
	if x == nil {
		return nil
	}
	h := &metal.Hardware{Serial: x.Serial, UUID: x.Uuid, Vendor: x.Vendor, Product: x.Product, Firmware: x.Firmware,
		FirmwareVersion: x.FirmwareVersion, SecureBoot: x.SecureBoot, Arch: x.Arch, CPUModel: x.CpuModel,
		CPUThreads: int(x.CpuThreads), MemoryBytes: x.MemoryBytes, InspectedAt: Time(x.InspectedAt),
		CPUCores: int(x.CpuCores), CPUSockets: int(x.CpuSockets), OOBAddress: x.OobAddress, OOBFirmware: x.OobFirmware, BoardSerial: x.BoardSerial}
	for _, d := range x.Dimms {
		h.DIMMs = append(h.DIMMs, metal.DIMM{Slot: d.GetSlot(), SizeBytes: d.GetSizeBytes(), SpeedMTs: int(d.GetSpeedMts()), Kind: d.GetKind(),
			Vendor: d.GetVendor(), Part: d.GetPart(), Serial: d.GetSerial()})
	}
	for _, d := range x.Disks {
		disk := metal.Disk{Name: d.GetName(), SizeBytes: d.GetSizeBytes(), Kind: d.GetKind(), WWN: d.GetWwn(),
			Serial: d.GetSerial(), Model: d.GetModel(), SectorSize: int(d.GetSectorSize()), Removable: d.GetRemovable(),
			Firmware: d.GetFirmware(), Physical: int(d.GetPhysicalSectorSize())}
		if s := d.GetHealth(); s != nil {
			disk.Health = &metal.DiskHealth{State: s.State, Reason: s.Reason, PercentUsed: int(s.PercentUsed), Reallocated: s.Reallocated,
				PowerOnHours: s.PowerOnHours, Celsius: int(s.TemperatureCelsius)}
		}
		h.Disks = append(h.Disks, disk)
	}
	for _, n := range x.Nics {
		nic := metal.NIC{Name: n.GetName(), MAC: n.GetMac(), Link: n.GetLink(), SpeedMbps: int(n.GetSpeedMbps()), Driver: n.GetDriver(), Firmware: n.GetFirmware()}
		if p := n.GetNeighbour(); p != nil {
			nic.Neighbour = &metal.Neighbour{Chassis: p.Chassis, Port: p.Port, System: p.System, PortDescription: p.PortDescription, VLAN: int(p.Vlan)}
		}
		h.NICs = append(h.NICs, nic)
	}
	return h
}

// FromWipes converts evidence.
func FromWipes(ws []metal.WipeEvidence) []*WipeEvidence {
	var out []*WipeEvidence
	for _, w := range ws {
		out = append(out, &WipeEvidence{Disk: w.Disk, Method: w.Method, Bytes: w.Bytes, BytesReadBack: w.BytesReadBack})
	}
	return out
}

// Wipes converts evidence.
func Wipes(ws []*WipeEvidence) []metal.WipeEvidence {
	var out []metal.WipeEvidence
	for _, w := range ws {
		out = append(out, metal.WipeEvidence{Disk: w.GetDisk(), Method: w.GetMethod(), Bytes: w.GetBytes(), BytesReadBack: w.GetBytesReadBack()})
	}
	return out
}

// FromOperation converts an operation.
func FromOperation(o *metal.Operation) *Operation {
	out := &Operation{Id: o.ID, Kind: string(o.Kind), State: string(o.State), ServerId: o.ServerID, Target: o.Target,
		Project: o.Project, Principal: o.Principal, RequestId: o.RequestID, Attempt: int64(o.Attempt), Agent: o.Agent,
		Epoch: o.Epoch, Sequence: o.Sequence, Created: Nanos(o.Created), Started: Nanos(o.Started), Ended: Nanos(o.Ended),
		Deadline: Nanos(o.Deadline), Late: o.Late, Failure: FromFailure(o.Failure), WantedPower: string(o.WantedPower),
		Hard: o.Hard, Revision: o.Revision, From: string(o.From), ReportHash: o.LastReport,
		BootId: o.BootID, RootDisk: o.RootDisk, Queued: Nanos(o.Queued), ReportedEpoch: o.ReportedEpoch, BootMethod: o.BootMethod}
	for _, s := range o.Steps {
		out.Steps = append(out.Steps, &Step{Step: string(s.Step), State: string(s.State), Started: Nanos(s.Started),
			Ended: Nanos(s.Ended), Message: s.Message, Recovery: s.Recovery})
	}
	return out
}

// Metal converts an operation.
func (x *Operation) Metal() *metal.Operation {
	o := &metal.Operation{ID: x.GetId(), Kind: metal.OperationKind(x.GetKind()), State: metal.OperationState(x.GetState()),
		ServerID: x.GetServerId(), Target: x.GetTarget(), Project: x.GetProject(), Principal: x.GetPrincipal(),
		RequestID: x.GetRequestId(), Attempt: int(x.GetAttempt()), Agent: x.GetAgent(), Epoch: x.GetEpoch(),
		Sequence: x.GetSequence(), Created: Time(x.GetCreated()), Started: Time(x.GetStarted()), Ended: Time(x.GetEnded()),
		Deadline: Time(x.GetDeadline()), Late: x.GetLate(), Failure: x.GetFailure().Metal(),
		WantedPower: metal.Power(x.GetWantedPower()), Hard: x.GetHard(), Revision: x.GetRevision(),
		From: metal.State(x.GetFrom()), LastReport: x.GetReportHash(),
		BootID: x.GetBootId(), RootDisk: x.GetRootDisk(), Queued: Time(x.GetQueued()), ReportedEpoch: x.GetReportedEpoch(), BootMethod: x.GetBootMethod()}
	for _, s := range x.GetSteps() {
		o.Steps = append(o.Steps, metal.StepStatus{Step: metal.Step(s.GetStep()), State: metal.StepState(s.GetState()),
			Started: Time(s.GetStarted()), Ended: Time(s.GetEnded()), Message: s.GetMessage(), Recovery: s.GetRecovery()})
	}
	return o
}

// Detailed says whether an inspection brought what feature level 4 came with.
func (x *Hardware) Detailed() bool {
	return x.GetCpuCores() != 0 || x.GetCpuSockets() != 0 || len(x.GetDimms()) > 0 || x.GetOobAddress() != "" || x.GetOobFirmware() != "" || x.GetBoardSerial() != "" ||
		slices.ContainsFunc(x.GetDisks(), func(d *Disk) bool {
			return d.GetFirmware() != "" || d.GetPhysicalSectorSize() != 0 || d.GetHealth() != nil
		}) ||
		slices.ContainsFunc(x.GetNics(), func(n *NIC) bool { return n.GetFirmware() != "" || n.GetNeighbour() != nil })
}
