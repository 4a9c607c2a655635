package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"bmc/fsm/lifecycle"
	"bmc/fsm/logpb"
	"bmc/metal"
)

// applyInventory makes and changes racks, sizes and servers in the order given.
// The first refusal refuses all of it.
func (a *applier) applyInventory(m *logpb.ApplyInventory, r *Result) *metal.Error {
	a.target = "inventory"
	a.cursor = map[string]uint32{}
	seen := map[string]bool{}
	once := func(field, kind, name string) *metal.Error {
		if seen[kind+name] {
			return metal.Invalid(field+".name", "%s %q is there twice", kind, name)
		}
		seen[kind+name] = true
		return nil
	}
	applied := make([]Applied, 0, len(m.GetRacks())+len(m.GetSizes())+len(m.GetServers()))
	for i, in := range m.GetRacks() {
		field := fmt.Sprintf("racks[%d]", i)
		if err := once(field, "rack", in.GetName()); err != nil {
			return err
		}
		got, err := a.applyRack(field, in)
		if err != nil {
			return err
		}
		applied = append(applied, got)
	}
	for i, in := range m.GetSizes() {
		field := fmt.Sprintf("sizes[%d]", i)
		if err := once(field, "size", in.GetName()); err != nil {
			return err
		}
		got, err := a.applySize(field, in)
		if err != nil {
			return err
		}
		applied = append(applied, got)
	}
	a.releaseControllers(m.GetServers())
	for i, in := range m.GetServers() {
		field := fmt.Sprintf("servers[%d]", i)
		if err := once(field, "server", in.GetName()); err != nil {
			return err
		}
		got, err := a.applyServer(field, in)
		if err != nil {
			return err
		}
		applied = append(applied, got)
	}
	r.Value = applied
	return nil
}

func (a *applier) applyRack(field string, in *logpb.RackInput) (Applied, *metal.Error) {
	rack, err := in.Metal()
	if err != nil {
		return Applied{}, metal.Invalid(field, "%s", err)
	}
	if rack.LeaseTime == 0 {
		rack.LeaseTime = metal.DefaultLeaseTime
	}
	if err := rack.Validate(field); err != nil {
		return Applied{}, failure(err)
	}
	old, known := a.RackByName(rack.Name)
	if !known {
		if err := a.freshID("rack", rack.ID, func(id string) bool { _, ok := a.Rack(id); return ok }); err != nil {
			return Applied{}, err
		}
		a.PutRack(rack)
		a.note("rack.created", rack.Name, "", "rack "+rack.Name+" was created")
		return Applied{Kind: "rack", Name: rack.Name, ID: rack.ID, Change: Created}, nil
	}
	rack.ID, rack.Lease, rack.Revision = old.ID, old.Lease, old.Revision
	if in.Warm == nil {
		rack.Warm = old.Warm
	}
	rack.Stop = old.Stop
	if a.Meta().FeatureLevel >= 3 { // before, a change of a frozen rack thawed it
		rack.Frozen, rack.FrozenAt, rack.FrozenSince = old.Frozen, old.FrozenAt, old.FrozenSince
	}
	if sameRack(old, rack) {
		return Applied{Kind: "rack", Name: rack.Name, ID: rack.ID, Change: Unchanged}, nil
	}
	for as := range a.Addresses(old.ID) {
		if !rack.Usable(as.Address) || as.Address == rack.Gateway {
			return Applied{}, metal.Errorf(metal.CodeInUse, "%s: address %s is assigned and would not be a host's of %s any more", field, as.Address, rack.Subnet)
		}
	}
	a.PutRack(rack)
	if rack.Warm != old.Warm {
		a.tryAgain(rack.ID)
	}
	a.note("rack.updated", rack.Name, "", "rack "+rack.Name+" was changed")
	return Applied{Kind: "rack", Name: rack.Name, ID: rack.ID, Change: Updated}, nil
}

func sameRack(a, b *metal.Rack) bool {
	return a.Subnet == b.Subnet && a.Gateway == b.Gateway && slices.Equal(a.DNS, b.DNS) && a.Domain == b.Domain &&
		a.RangeFrom == b.RangeFrom && a.RangeTo == b.RangeTo && a.LeaseTime == b.LeaseTime && a.Warm == b.Warm && a.Discovery == b.Discovery
}

func (a *applier) applySize(field string, in *logpb.Size) (Applied, *metal.Error) {
	z := in.Metal()
	if err := z.Validate(field); err != nil {
		return Applied{}, failure(err)
	}
	got := Applied{Kind: "size", Name: z.Name, ID: z.Name, Change: Created}
	if old, ok := a.Size(z.Name); ok {
		z.Revision = old.Revision
		if z.Equal(old) {
			got.Change = Unchanged
			return got, nil
		}
		got.Change = Updated
	}
	a.PutSize(z)
	a.note("size."+got.Change, z.Name, "", "size "+z.Name+" was "+got.Change)
	return got, nil
}

// read turns the input into a server, with its rack looked up.
func (a *applier) read(field string, in *logpb.ServerInput) (*metal.Server, *metal.Rack, *metal.Error) {
	s := &metal.Server{ID: in.GetId(), Name: in.GetName(), Size: in.GetSize(), Labels: logpb.Labels(in.GetLabels()),
		MACs: in.GetMacs(), OOB: in.GetOob().Metal(), Serial: in.GetSerial(), UUID: in.GetUuid(), WipeOK: in.GetWipe(),
		ConsoleTTY: in.GetConsoleTty()}
	if err := s.Validate(field); err != nil {
		return nil, nil, failure(err)
	}
	rack, err := a.ResolveRack(in.GetRack())
	if err != nil {
		return nil, nil, within(field+".rack", failure(err))
	}
	s.RackID = rack.ID
	if _, ok := a.Size(s.Size); s.Size != "" && !ok {
		return nil, nil, within(field+".size", metal.Errorf(metal.CodeNotFound, "there is no size %q", s.Size).WithHint("bmc size list"))
	}
	if in.GetAddress() != "" {
		var err error
		if s.Address, err = metal.ParseAddr(field+".address", in.GetAddress()); err != nil {
			return nil, nil, failure(err)
		}
		if !rack.InRange(s.Address) {
			return nil, nil, metal.Invalid(field+".address", "%s is not in the range of rack %s, %s to %s", s.Address, rack.Name, rack.RangeFrom, rack.RangeTo)
		}
	}
	return s, rack, nil
}

func within(field string, e *metal.Error) *metal.Error {
	c := *e
	c.Field, c.Message = field, field+": "+e.Message
	return &c
}

func (a *applier) applyServer(field string, in *logpb.ServerInput) (Applied, *metal.Error) {
	s, rack, err := a.read(field, in)
	if err != nil {
		return Applied{}, err
	}
	old, known := a.ServerByName(s.Name)
	if known {
		return a.updateServer(field, old, s)
	}
	if found, ok := a.Server(s.ID); ok && found.State == metal.StateDiscovered {
		return a.enrollDiscovered(field, found, s, rack, in.GetOperationId())
	}
	if err := a.freshID("server", s.ID, func(id string) bool { _, ok := a.Server(id); return ok }); err != nil {
		return Applied{}, err
	}
	if err := a.collisions(field, s); err != nil {
		return Applied{}, err
	}
	if !s.Address.IsValid() {
		if s.Address, err = a.nextFree(field, rack); err != nil {
			return Applied{}, err
		}
	}
	s.Created, s.State, s.StateSince = a.now, metal.StateDiscovered, a.now
	s.Power = metal.PowerStatus{Wanted: metal.PowerOff, Observed: metal.PowerUnknown}
	a.PutAddress(&metal.AddressAssignment{RackID: rack.ID, Address: s.Address, MAC: s.MACs[0], ServerID: s.ID})
	a.event("server.discovered", s, nil, "", s.Name+" came into the inventory")
	o, err := a.start(s, metal.KindEnroll, in.GetOperationId(), lifecycle.EventEnroll)
	if err != nil {
		return Applied{}, err
	}
	a.event("server.enrolling", s, o, "", s.Name+" is enrolled")
	a.PutServer(s)
	return Applied{Kind: "server", Name: s.Name, ID: s.ID, Change: Created, OperationID: o.ID}, nil
}

// releaseControllers takes the controllers' addresses of servers that get
// another, so that one file can put two right that were swapped. Whether they
// may change is asked when each is applied, and a refusal undoes this, too.
func (a *applier) releaseControllers(inputs []*logpb.ServerInput) {
	for _, in := range inputs {
		old, ok := a.ServerByName(in.GetName())
		if !ok || old.OOB.Address == in.GetOob().GetAddress() {
			continue
		}
		s := *old
		s.OOB.Address = "none:" + s.ID // no address, and nobody else's
		a.PutServer(&s)
	}
}

// collisions refuses what another server has: a MAC, an address, or its
// management controller, which would switch and wipe a neighbour.
func (a *applier) collisions(field string, s *metal.Server) *metal.Error {
	for _, mac := range s.MACs {
		if other, ok := a.ServerByMAC(mac); ok && other.ID != s.ID {
			return metal.Errorf(metal.CodeInUse, "%s.macs: %s belongs to server %s", field, mac, other.Name).WithHint("bmc get %s", other.Name)
		}
	}
	if other, ok := a.ServerByOOB(s.RackID, s.OOB.Address); ok && other.ID != s.ID {
		return metal.Errorf(metal.CodeInUse, "%s.oob.address: management controller %s belongs to server %s", field, s.OOB.Address, other.Name).
			WithHint("bmc get %s", other.Name)
	}
	if s.Address.IsValid() {
		as, ok := a.Address(s.RackID, s.Address)
		if ok && as.Lent() {
			return metal.Errorf(metal.CodeInUse, "%s.address: %s is lent to a machine that is being discovered (%s), until %s", field, s.Address, as.MAC, as.Expires.UTC().Format("15:04:05 MST"))
		}
		if ok && as.ServerID != s.ID {
			return metal.Errorf(metal.CodeInUse, "%s.address: %s is assigned to another server", field, s.Address).WithHint("bmc inventory list")
		}
	}
	return nil
}

// nextFree finds the lowest free address of a rack's range.
func (a *applier) nextFree(field string, rack *metal.Rack) (netip.Addr, *metal.Error) {
	last, next := number(rack.RangeTo), max(number(rack.RangeFrom), a.cursor[rack.ID])
	for ; next <= last && next != 0; next++ {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], next)
		addr := netip.AddrFrom4(b)
		if _, taken := a.Address(rack.ID, addr); !taken && rack.InRange(addr) {
			a.cursor[rack.ID] = next + 1
			return addr, nil
		}
	}
	return netip.Addr{}, metal.Errorf(metal.CodeNoCapacity, "%s.address: no address is free in rack %s, %s to %s", field, rack.Name, rack.RangeFrom, rack.RangeTo).
		WithHint("bmc inventory list")
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// updateServer changes a known server. What identifies the machine may only be
// changed before it has proved itself: a new management controller's address
// must be proved by an enrolment, not believed.
func (a *applier) updateServer(field string, old, in *metal.Server) (Applied, *metal.Error) {
	got := Applied{Kind: "server", Name: old.Name, ID: old.ID, Change: Unchanged}
	if in.ID != old.ID {
		return got, metal.Errorf(metal.CodeConflict, "%s: the inventory has changed meanwhile, apply the file again", field)
	}
	s := *old
	s.Labels, s.WipeOK, s.ConsoleTTY = in.Labels, in.WipeOK, in.ConsoleTTY
	if in.Size != "" {
		s.Size, s.SizeByRule = in.Size, false
	}
	if in.Serial != "" {
		s.Serial = in.Serial
	}
	if in.UUID != "" {
		s.UUID = in.UUID
	}
	if in.Address.IsValid() {
		s.Address = in.Address
	}
	s.MACs, s.OOB, s.RackID = in.MACs, in.OOB, in.RackID
	identity := !sameIdentity(old, &s)
	if a.Meta().FeatureLevel >= discoveryLevel && len(old.MACs) > 0 {
		// By the boot NIC alone is a machine known.
		boot := s
		boot.MACs = append(slices.Clone(s.MACs[:1]), old.MACs[1:]...)
		identity = !sameIdentity(old, &boot)
	}
	secrets := old.OOB.Protocol != s.OOB.Protocol || old.OOB.Username != s.OOB.Username || !bytes.Equal(old.OOB.Password, s.OOB.Password) || old.OOB.CipherSuite != s.OOB.CipherSuite
	plainChange := !maps.Equal(old.Labels, s.Labels) || old.WipeOK != s.WipeOK || old.ConsoleTTY != s.ConsoleTTY || old.Size != s.Size || old.SizeByRule != s.SizeByRule || !slices.Equal(old.MACs, s.MACs)
	if !identity && !secrets && !plainChange {
		return got, nil
	}
	a.target = old.Name
	if err := a.mayChange(field, old, &s, identity, secrets); err != nil {
		return got, err
	}
	if err := a.collisions(field, &s); err != nil {
		return got, err
	}
	if identity {
		a.DeleteAddress(old.RackID, old.Address)
		a.PutAddress(&metal.AddressAssignment{RackID: s.RackID, Address: s.Address, MAC: s.MACs[0], ServerID: s.ID})
	}
	if identity || secrets {
		a.preempt(&s) // it works with the controller of before
	}
	got.Change = Updated
	a.event("server.updated", &s, nil, "", s.Name+" was changed in the inventory")
	a.PutServer(&s)
	return got, nil
}

func sameIdentity(a, b *metal.Server) bool {
	return a.RackID == b.RackID && slices.Equal(a.MACs, b.MACs) && strings.EqualFold(a.Serial, b.Serial) &&
		strings.EqualFold(a.UUID, b.UUID) && a.Address == b.Address && a.OOB.Address == b.OOB.Address
}

func (a *applier) mayChange(field string, old, s *metal.Server, identity, secrets bool) *metal.Error {
	if identity || secrets {
		if err := a.idle(old); err != nil {
			return within(field, err)
		}
	}
	unproved := old.State == metal.StateDiscovered || old.State == metal.StateFailed && !old.WasAvailable
	if identity && !unproved {
		return within(field, metal.Errorf(metal.CodeWrongState,
			"rack, MACs, address, serial, UUID and the management controller's address of %s cannot change while it is %s", old.Name, old.State).
			WithHint("bmc inventory forget %s", old.Name))
	}
	if s.Size != old.Size && old.Rental != nil {
		return within(field, metal.Errorf(metal.CodeInUse, "the size of %s cannot change while it is rented", old.Name).WithHint("bmc get %s", old.Name))
	}
	if identity {
		rack, ok := a.Rack(s.RackID)
		if !ok || !rack.InRange(s.Address) {
			return metal.Invalid(field+".address", "%s is not in the range of the new rack: give an address", s.Address)
		}
	}
	return nil
}
