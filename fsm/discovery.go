package fsm

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bmc/fsm/lifecycle"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// Bounds of what machines that nobody knows can make a rack remember.
const (
	LoanTime      = 10 * time.Minute // an address is lent for, unless asked for again
	MaxLoans      = 256              // addresses lent in a rack at once
	MaxDiscovered = 256              // machines of a rack that wait to be enrolled
)

// discoveryLevel is the feature level that knows discovery, claims and rules.
const discoveryLevel = 4

// Outcomes of a report.
const (
	OutcomeDiscovered = "discovered" // it is in the inventory now
	OutcomeKnown      = "known"      // it is a server's, and stays as it is
)

// Discovered is the result of ReportDiscovered.
type Discovered struct {
	Outcome  string
	Name     string
	ServerID string
}

// discovering refuses what is not asked under the rack's lease, or not wanted.
func (a *applier) discovering(rackID, agent string, epoch uint64) (*metal.Rack, *metal.Error) {
	rack, ok := a.Rack(rackID)
	if !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "there is no rack %q", rackID)
	}
	a.target = rack.Name
	if agent == "" || rack.Lease.Agent != agent || rack.Lease.Epoch != epoch {
		return nil, metal.Errorf(metal.CodeStaleEpoch, "the lease of rack %s is not held by agent %q at epoch %d", rack.Name, agent, epoch)
	}
	if !rack.Discovery {
		return nil, metal.Errorf(metal.CodeDenied, "discovery is off in rack %s", rack.Name)
	}
	if err := Frozen(rack); err != nil {
		return nil, err
	}
	return rack, nil
}

// MayLend says why a MAC is lent no address, or the address that it has and that
// need not be lent again yet. Neither: the command is worth a place in the log.
func MayLend(v *state.View, rack *metal.Rack, mac string, now time.Time) (*metal.AddressAssignment, *metal.Error) {
	if n, err := metal.NormalizeMAC("mac", mac); err != nil || n != mac {
		return nil, metal.Invalid("mac", "%q is not six octets in lower case", mac)
	}
	if !rack.Discovery {
		return nil, metal.Errorf(metal.CodeDenied, "discovery is off in rack %s", rack.Name)
	}
	if err := Frozen(rack); err != nil {
		return nil, err
	}
	if s := owner(v, rack.ID, mac); s != nil {
		return nil, metal.Errorf(metal.CodeDenied, "%s is a network port of %s, which is %s", mac, s.Name, s.State)
	}
	if l, ok := v.Loan(rack.ID, mac); ok {
		if l.Expires.Sub(now) > LoanTime/2 {
			return l, nil
		}
		return nil, nil
	}
	if n := len(collect(v.Loans(rack.ID))); n >= min(MaxLoans, (rangeSize(rack)+1)/2) { // the other half is for servers
		return nil, metal.Errorf(metal.CodeNoCapacity, "rack %s has lent %d addresses to unknown machines", rack.Name, n)
	}
	if n := v.CountDiscovered(rack.ID); n >= MaxDiscovered {
		return nil, metal.Errorf(metal.CodeNoCapacity, "%d machines of rack %s wait to be enrolled or forgotten", n, rack.Name).
			WithHint("bmc inventory list --rack %s --state discovered", rack.Name)
	}
	return nil, nil
}

// owner is the server whose port a MAC is: of any rack by its inventory, of this
// one by its last inspection, too. nil: nobody's.
func owner(v *state.View, rackID, mac string) *metal.Server {
	if s, ok := v.ServerByMAC(mac); ok {
		return s
	}
	for s := range v.Servers(state.ServerFilter{RackID: rackID}) {
		if s.State == metal.StateDiscovered { // only the port that it came by is more than its word
			continue
		}
		if s.HasPort(mac) || s.Claim != nil && slices.Contains(s.Claim.MACs, mac) {
			return s
		}
	}
	return nil
}

// lendAddress lends the same address to the same MAC for as long as it is asked
// for.
func (a *applier) lendAddress(m *logpb.LendAddress, r *Result) *metal.Error {
	rack, err := a.discovering(m.GetRackId(), m.GetAgentId(), m.GetEpoch())
	if err != nil {
		return err
	}
	has, err := MayLend(&a.View, rack, m.GetMac(), a.now)
	if err != nil {
		return err
	}
	if has != nil {
		r.ID, r.Value = rack.ID, has
		return nil
	}
	l := &metal.AddressAssignment{RackID: rack.ID, MAC: m.GetMac(), Expires: a.now.Add(LoanTime)}
	if old, ok := a.Loan(rack.ID, m.GetMac()); ok && rack.InRange(old.Address) {
		l.Address = old.Address
	} else if l.Address, ok = a.lastFree(rack); !ok {
		return metal.Errorf(metal.CodeNoCapacity, "no address is free in rack %s, %s to %s", rack.Name, rack.RangeFrom, rack.RangeTo).
			WithHint("bmc inventory list --rack %s", rack.Name)
	}
	a.PutAddress(l)
	r.ID, r.Value = rack.ID, l
	return nil
}

// rangeSize counts the addresses of a rack's range.
func rangeSize(rack *metal.Rack) int { return int(number(rack.RangeTo)-number(rack.RangeFrom)) + 1 }

// lastFree finds the highest free address of a rack's range: servers are given
// the lowest.
func (a *applier) lastFree(rack *metal.Rack) (netip.Addr, bool) {
	for n := number(rack.RangeTo); n >= number(rack.RangeFrom) && n != 0; n-- {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], n)
		addr := netip.AddrFrom4(b)
		if _, taken := a.Address(rack.ID, addr); !taken && rack.InRange(addr) {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// expireLoans takes back what is past its time, by the command's.
func (a *applier) expireLoans(m *logpb.ExpireLoans, r *Result) *metal.Error {
	rack, ok := a.Rack(m.GetRackId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no rack %q", m.GetRackId())
	}
	a.target, r.ID = rack.Name, rack.ID
	for _, l := range collect(a.Loans(rack.ID)) {
		if !l.Expires.After(a.now) {
			a.DeleteAddress(rack.ID, l.Address)
		}
	}
	return nil
}

// discoveredAs is the answer to a machine that is this server.
func discoveredAs(s *metal.Server) Discovered {
	d := Discovered{Outcome: OutcomeKnown, Name: s.Name, ServerID: s.ID}
	if s.State == metal.StateDiscovered {
		d.Outcome = OutcomeDiscovered
	}
	return d
}

// MayReport says why what a machine says it is would be refused, whatever it is,
// or what has become of an earlier report, whose answer may have been lost. Neither:
// the command is worth a place in the log.
func MayReport(v *state.View, rack *metal.Rack, mac string, now time.Time) (*Discovered, *metal.Error) {
	if s := owner(v, rack.ID, mac); s != nil {
		d := discoveredAs(s)
		return &d, nil
	}
	if err := Frozen(rack); err != nil {
		return nil, err
	}
	if l, ok := v.Loan(rack.ID, mac); !ok || !l.Expires.After(now) {
		return nil, metal.Errorf(metal.CodeDenied, "no address is lent to %s in rack %s, or no longer", mac, rack.Name)
	}
	if n := v.CountDiscovered(rack.ID); n >= MaxDiscovered {
		return nil, metal.Errorf(metal.CodeNoCapacity, "%d machines of rack %s wait to be enrolled or forgotten", n, rack.Name)
	}
	return nil, nil
}

// reportDiscovered makes a server in state discovered of a machine that nobody
// knows. One that turns out to be somebody's changes nothing of theirs: a claim is
// noted, for an operator to accept.
func (a *applier) reportDiscovered(m *logpb.ReportDiscovered, r *Result) *metal.Error {
	rack, err := a.discovering(m.GetRackId(), m.GetAgentId(), m.GetEpoch())
	if err != nil {
		return err
	}
	mac, h := m.GetMac(), m.GetHardware().Metal()
	switch {
	case h == nil:
		return metal.Invalid("hardware", "is missing")
	case !slices.ContainsFunc(h.NICs, func(n metal.NIC) bool { return strings.EqualFold(n.MAC, mac) }):
		return metal.Invalid("hardware", "has no network port %s", mac)
	}
	trim(h)
	before, err := MayReport(&a.View, rack, mac, a.now)
	if err != nil {
		return err
	}
	if before != nil {
		r.ID, r.Value = before.ServerID, *before
		return nil
	}
	// The address stays lent to the end of its time: the next machine that had it
	// would not be heard while others still know where it was.
	s := a.sameMachine(h.Identity())
	switch {
	case s != nil && s.RackID == rack.ID:
		return a.recognized(s, h, mac, r)
	case s != nil: // not for this rack's agent to say anything of
		a.event("server.stranger", s, nil, "", fmt.Sprintf("a machine in rack %s has serial number and UUID, or the boot NIC, of %s, which is another rack's: it is not discovered", rack.Name, s.Name))
		r.ID, r.Value = s.ID, Discovered{Outcome: OutcomeKnown, Name: s.Name, ServerID: s.ID}
		return nil
	}
	for _, port := range h.Identity().MACs {
		if s, ok := a.ServerByMAC(port); ok { // and neither its serial number nor its UUID is that one's
			a.event("server.stranger", s, nil, "", fmt.Sprintf("a machine with serial number %s has network port %s of %s: it is not discovered", shown(h.Serial), port, s.Name))
			r.ID, r.Value = s.ID, Discovered{Outcome: OutcomeKnown, Name: s.Name, ServerID: s.ID}
			return nil
		}
	}
	return a.addDiscovered(rack, h, mac, m.GetServerId(), r)
}

// sameMachine is the one server that a machine can be. Two that share serial
// number and UUID are not told apart by them.
func (a *applier) sameMachine(id metal.Identity) *metal.Server {
	var found *metal.Server
	for _, s := range a.ServersLike(id) {
		if s.Identity().Compare(id) == metal.Different {
			continue
		}
		if found != nil {
			return nil
		}
		found = s
	}
	return found
}

// recognized is a server's machine that came by a port which is not in the
// inventory.
func (a *applier) recognized(was *metal.Server, h *metal.Hardware, mac string, r *Result) *metal.Error {
	s := *was
	r.ID, r.Value = s.ID, discoveredAs(was)
	if s.State == metal.StateDiscovered {
		return nil
	}
	id := h.Identity()
	switch s.Identity().Compare(id) {
	case metal.Same:
		a.event("server.stranger", &s, nil, "", fmt.Sprintf("%s booted from its network port %s, which is not its boot NIC %s", s.Name, mac, s.MACs[0]))
		return nil
	case metal.NICReplaced:
		s.Claim = a.claim(&s, id, mac, fmt.Sprintf("network port %s was replaced by %s", s.MACs[0], mac))
	default:
		s.Claim = a.claim(&s, id, s.MACs[0], boardReplaced(&s, h))
		s.Claim.Board = true
	}
	a.event("server.claim", &s, nil, metal.CodeIdentityChanged, s.Name+" came with changed parts: "+s.Claim.Reason)
	a.PutServer(&s)
	return nil
}

// claim notes what a machine says it is, the boot NIC first.
func (a *applier) claim(s *metal.Server, id metal.Identity, boot, reason string) *metal.Claim {
	c := &metal.Claim{Serial: metal.ProperSerial(id.Serial), UUID: metal.ProperUUID(id.UUID), MACs: []string{boot}, Reason: reason, At: a.now}
	for _, old := range s.MACs[1:] {
		if old != boot && slices.Contains(id.MACs, old) {
			c.MACs = append(c.MACs, old)
		}
	}
	return c
}

func boardReplaced(s *metal.Server, h *metal.Hardware) string {
	var out []string
	for _, d := range []struct{ what, was, is string }{{"serial number", s.Serial, h.Serial}, {"UUID", s.UUID, h.UUID}} {
		if !strings.EqualFold(d.was, d.is) {
			out = append(out, fmt.Sprintf("its %s is %s, not %s", d.what, shown(d.is), shown(d.was)))
		}
	}
	return strings.Join(out, ", ")
}

// takeOver makes the claim what the server is.
func (a *applier) takeOver(s *metal.Server) *metal.Error {
	c := s.Claim
	changed := *s
	changed.MACs, changed.Claim = c.MACs, nil
	changed.Serial, changed.UUID = orElse(c.Serial, s.Serial), orElse(c.UUID, s.UUID)
	if err := a.collisions(s.Name, &changed); err != nil {
		return err
	}
	if changed.Address.IsValid() {
		a.PutAddress(&metal.AddressAssignment{RackID: s.RackID, Address: s.Address, MAC: changed.MACs[0], ServerID: s.ID})
	}
	*s = changed
	a.event("server.identity", s, nil, "", s.Name+" was changed: "+c.Reason)
	return nil
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// acceptIdentity is the operator's word for a claim.
func (a *applier) acceptIdentity(m *logpb.AcceptIdentity, r *Result) *metal.Error {
	was, err := a.lookup(m.GetServer())
	if err != nil {
		return err
	}
	if was.Claim == nil {
		return metal.Errorf(metal.CodeWrongState, "%s is what the inventory says: there is nothing to accept", was.Name).WithHint("bmc explain %s", a.target)
	}
	if err := a.idle(was); err != nil {
		return err
	}
	s := *was
	board := s.Claim.Board
	if board && s.Rental != nil {
		return metal.Errorf(metal.CodeInUse, "%s is rented as %s: a machine with another mainboard must be enrolled anew, which erases it", s.Name, s.Rental.Name).
			WithHint("bmc destroy %s", s.Rental.Name)
	}
	a.preempt(&s)
	if err := a.takeOver(&s); err != nil {
		return err
	}
	r.ID = s.ID
	if board && s.State != metal.StateRetired {
		// It may be another chassis which was given that NIC: nothing that was
		// proved of the former one, its controller and its wiped disks, holds.
		s.WasAvailable, s.WipeOK, s.Failure = false, m.GetWipe(), nil
		o, err := a.start(&s, metal.KindEnroll, m.GetOperationId(), lifecycle.EventReplaced)
		if err != nil {
			return err
		}
		a.event("server.enrolling", &s, o, "", s.Name+" is enrolled anew, with another mainboard")
		r.OperationID = o.ID
	}
	a.PutServer(&s)
	return nil
}

func (a *applier) addDiscovered(rack *metal.Rack, h *metal.Hardware, mac, id string, r *Result) *metal.Error {
	if err := a.freshID("server", id, func(id string) bool { _, ok := a.Server(id); return ok }); err != nil {
		return err
	}
	name := "new-" + strings.ReplaceAll(mac, ":", "")
	if _, taken := a.ServerByName(name); taken {
		name = id
	}
	h.InspectedAt = a.now
	s := &metal.Server{ID: id, Name: name, RackID: rack.ID, Created: a.now, State: metal.StateDiscovered, StateSince: a.now,
		Power: metal.PowerStatus{Wanted: metal.PowerOff, Observed: metal.PowerUnknown},
		MACs:  []string{mac}, Serial: metal.ProperSerial(h.Serial), UUID: metal.ProperUUID(h.UUID), Hardware: h}
	what := strings.TrimSpace(h.Vendor + " " + h.Product)
	a.event("server.discovered", s, nil, "", fmt.Sprintf("%s was discovered in rack %s: %s, serial number %s", name, rack.Name, shown(what), shown(h.Serial)))
	a.PutServer(s)
	r.ID, r.Value = s.ID, discoveredAs(s)
	return nil
}

// enrollDiscovered turns a discovered machine into the server that an inventory
// says it is.
func (a *applier) enrollDiscovered(field string, old, in *metal.Server, rack *metal.Rack, operation string) (Applied, *metal.Error) {
	a.target = in.Name
	s := *in
	switch {
	case old.State != metal.StateDiscovered:
		return Applied{}, metal.Errorf(metal.CodeConflict, "%s: the inventory has changed meanwhile, apply the file again", field)
	case old.RackID != rack.ID:
		return Applied{}, metal.Invalid(field+".rack", "%s was discovered in another rack than %s", old.Name, rack.Name)
	case !old.HasPort(in.MACs[0]):
		return Applied{}, metal.Invalid(field+".macs", "%s has no network port %s", old.Name, in.MACs[0])
	case in.Serial != "" && old.Serial != "" && !strings.EqualFold(in.Serial, old.Serial):
		return Applied{}, metal.Invalid(field+".serial", "%s has serial number %s, not %s", old.Name, old.Serial, in.Serial)
	case in.UUID != "" && old.UUID != "" && !strings.EqualFold(in.UUID, old.UUID):
		return Applied{}, metal.Invalid(field+".uuid", "%s has UUID %s, not %s", old.Name, old.UUID, in.UUID)
	}
	if err := a.collisions(field, &s); err != nil {
		return Applied{}, err
	}
	if !s.Address.IsValid() {
		var err *metal.Error
		if s.Address, err = a.nextFree(field, rack); err != nil {
			return Applied{}, err
		}
	}
	s.Serial, s.UUID = orElse(in.Serial, old.Serial), orElse(in.UUID, old.UUID)
	s.Created, s.State, s.StateSince, s.Power, s.Hardware = old.Created, old.State, old.StateSince, old.Power, old.Hardware
	s.Holds, s.Conditions = old.Holds, old.Conditions
	a.PutAddress(&metal.AddressAssignment{RackID: rack.ID, Address: s.Address, MAC: s.MACs[0], ServerID: s.ID})
	o, err := a.start(&s, metal.KindEnroll, operation, lifecycle.EventEnroll)
	if err != nil {
		return Applied{}, err
	}
	a.event("server.enrolling", &s, o, "", old.Name+" is enrolled as "+s.Name)
	a.PutServer(&s)
	return Applied{Kind: "server", Name: s.Name, ID: s.ID, Change: Enrolled, OperationID: o.ID}, nil
}

// trim bounds what a stranger can make the state hold.
func trim(h *metal.Hardware) {
	h.Disks, h.NICs, h.DIMMs = h.Disks[:min(len(h.Disks), 64)], h.NICs[:min(len(h.NICs), 32)], h.DIMMs[:min(len(h.DIMMs), 64)]
	cut := func(all ...*string) {
		for _, s := range all {
			*s = shorten(*s)
		}
	}
	cut(&h.Serial, &h.UUID, &h.Vendor, &h.Product, &h.Firmware, &h.FirmwareVersion, &h.Arch, &h.CPUModel, &h.OOBAddress, &h.OOBFirmware, &h.BoardSerial)
	for i := range h.Disks {
		d := &h.Disks[i]
		cut(&d.Name, &d.Kind, &d.WWN, &d.Serial, &d.Model, &d.Firmware)
		if d.Health != nil {
			cut(&d.Health.State, &d.Health.Reason)
		}
	}
	for i := range h.DIMMs {
		d := &h.DIMMs[i]
		cut(&d.Slot, &d.Kind, &d.Vendor, &d.Part, &d.Serial)
	}
	for i := range h.NICs {
		n := &h.NICs[i]
		n.MAC = strings.ToLower(n.MAC)
		cut(&n.Name, &n.MAC, &n.Driver, &n.Firmware)
		if p := n.Neighbour; p != nil {
			cut(&p.Chassis, &p.Port, &p.System, &p.PortDescription)
		}
	}
}
