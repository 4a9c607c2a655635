package fsm

import (
	"fmt"
	"strings"
	"testing"

	"bmc/fsm/logpb"
	"bmc/metal"
)

const strangeMAC = "52:54:00:ff:00:01"

func cLend(mac string, epoch uint64) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_LendAddress{LendAddress: &logpb.LendAddress{RackId: rack1, AgentId: agt1, Epoch: epoch, Mac: mac}}}
}

func cDiscovered(mac, id string, epoch uint64, h *logpb.Hardware) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_ReportDiscovered{ReportDiscovered: &logpb.ReportDiscovered{
		RackId: rack1, AgentId: agt1, Epoch: epoch, Mac: mac, ServerId: id, Hardware: h}}}
}

func cAccept(id string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_AcceptIdentity{AcceptIdentity: &logpb.AcceptIdentity{Server: ref(id), OperationId: "op-accept"}}}
}

// lab is a rack of available servers with discovery on, and its lease's epoch.
func discoveryWorld(t testing.TB, servers int) (*world, uint64) {
	t.Helper()
	w := available(t, servers)
	in := rackInput(rack1, "r1", 10)
	in.Discovery = true
	w.ok(cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{in}}))
	r, _ := w.f.View().Rack(rack1)
	if !r.Discovery || r.Lease.Agent != agt1 {
		t.Fatalf("%+v", r)
	}
	return w, r.Lease.Epoch
}

func machineOf(mac, serial, uuid string) *logpb.Hardware {
	return &logpb.Hardware{Serial: serial, Uuid: uuid, Vendor: "Dell Inc.", Product: "R640", Nics: []*logpb.NIC{{Name: "eth0", Mac: mac}, {Name: "eth1", Mac: "52:54:00:ff:ff:" + mac[15:]}},
		CpuThreads: 8, MemoryBytes: 8 * gib, Disks: []*logpb.Disk{{Name: "sda", SizeBytes: 100 * gib}}}
}

func TestLoans(t *testing.T) {
	w, epoch := discoveryWorld(t, 2)
	first := w.ok(cLend(strangeMAC, epoch)).Value.(*metal.AddressAssignment)
	if first.Address.String() != "10.10.255.200" || first.Expires.Sub(w.now) != LoanTime || !first.Lent() {
		t.Fatalf("%+v", first)
	}
	if again := w.ok(cLend(strangeMAC, epoch)).Value.(*metal.AddressAssignment); again.Address != first.Address || again.Revision != first.Revision {
		t.Errorf("the same MAC got %+v", again)
	}
	if other := w.ok(cLend("52:54:00:ff:00:02", epoch)).Value.(*metal.AddressAssignment); other.Address == first.Address {
		t.Error("an address was lent twice")
	}
	w.now = w.now.Add(LoanTime * 3 / 4)
	if renewed := w.ok(cLend(strangeMAC, epoch)).Value.(*metal.AddressAssignment); renewed.Address != first.Address || !renewed.Expires.After(first.Expires) {
		t.Errorf("renewed: %+v", renewed)
	}
	w.refused(cLend(strangeMAC, epoch+1), metal.CodeStaleEpoch)
	w.refused(cLend("52:54:00:FF:00:03", epoch), metal.CodeInvalid)
	w.refused(cLend("", epoch), metal.CodeInvalid)
	w.refused(cLend(mac(0), epoch), metal.CodeDenied) // an enrolled server's

	// An address that is lent is not a server's.
	in := serverInput(7)
	in.Address = first.Address.String()
	if e := w.refused(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}}), metal.CodeInUse); !strings.Contains(e.Message, "lent") {
		t.Error(e)
	}
	w.now = w.now.Add(LoanTime / 2) // the second one has ended
	w.ok(&logpb.Command{Command: &logpb.Command_ExpireLoans{ExpireLoans: &logpb.ExpireLoans{RackId: rack1}}})
	if n := len(collect(w.f.View().Loans(rack1))); n != 1 {
		t.Errorf("%d loans are left", n)
	}
	off := rackInput(rack1, "r1", 10)
	w.ok(cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{off}}))
	w.refused(cLend(strangeMAC, epoch), metal.CodeDenied)
	w.refused(cDiscovered(strangeMAC, "srv-new", epoch, machineOf(strangeMAC, "XJ42", "")), metal.CodeDenied)
	if err := sound(w.f.View()); err != nil {
		t.Error(err)
	}
}

// What a frozen rack is certain to refuse is not proposed: strangers ask again and again.
func TestFrozenRackDiscoversNothing(t *testing.T) {
	w, epoch := discoveryWorld(t, 1)
	w.ok(cLend(strangeMAC, epoch))
	w.ok(cFreeze("", rack1))
	rack, _ := w.f.View().Rack(rack1)
	if l, err := MayLend(w.f.View(), rack, strangeMAC, w.now); l != nil || err == nil || err.Code != metal.CodeRackFrozen {
		t.Errorf("lent %+v, %v", l, err)
	}
	if d, err := MayReport(w.f.View(), rack, strangeMAC, w.now); d != nil || err == nil || err.Code != metal.CodeRackFrozen {
		t.Errorf("reported %+v, %v", d, err)
	}
	if d, err := MayReport(w.f.View(), rack, mac(0), w.now); err != nil || d == nil || d.Outcome != OutcomeKnown { // its answer may have been lost
		t.Errorf("a known one: %+v, %v", d, err)
	}
}

// A flood of MACs takes 256 addresses and no more of anything.
func TestLoansAreBounded(t *testing.T) {
	w, epoch := discoveryWorld(t, 1)
	for i := range MaxLoans {
		w.ok(cLend(fmt.Sprintf("52:54:00:fe:%02x:%02x", i>>8, i&0xff), epoch))
	}
	rack, _ := w.f.View().Rack(rack1)
	for i := range 100 {
		m := fmt.Sprintf("52:54:00:fd:00:%02x", i)
		if l, err := MayLend(w.f.View(), rack, m, w.now); l != nil || err == nil || err.Code != metal.CodeNoCapacity {
			t.Fatalf("the leader would propose %s: %+v, %v", m, l, err)
		}
	}
	w.refused(cLend("52:54:00:fd:00:00", epoch), metal.CodeNoCapacity)
	w.now = w.now.Add(2 * LoanTime)
	w.ok(&logpb.Command{Command: &logpb.Command_ExpireLoans{ExpireLoans: &logpb.ExpireLoans{RackId: rack1}}})
	for i := range MaxDiscovered {
		if i == MaxDiscovered/2 {
			w.now = w.now.Add(2 * LoanTime)
			w.ok(&logpb.Command{Command: &logpb.Command_ExpireLoans{ExpireLoans: &logpb.ExpireLoans{RackId: rack1}}})
		}
		m := fmt.Sprintf("52:54:00:fc:%02x:%02x", i>>8, i&0xff)
		w.ok(cLend(m, epoch))
		h := machineOf(m, fmt.Sprint("S", i), "")
		h.Nics = h.Nics[:1]
		w.ok(cDiscovered(m, fmt.Sprintf("srv-new%04d", i), epoch, h))
	}
	w.now = w.now.Add(2 * LoanTime)
	w.ok(&logpb.Command{Command: &logpb.Command_ExpireLoans{ExpireLoans: &logpb.ExpireLoans{RackId: rack1}}})
	w.refused(cLend(strangeMAC, epoch), metal.CodeNoCapacity)
	w.ok(&logpb.Command{Command: &logpb.Command_ForgetServer{ForgetServer: &logpb.ForgetServer{Server: ref("srv-new0000")}}})
	w.ok(cLend(strangeMAC, epoch))
}

func TestDiscoverApproveForget(t *testing.T) {
	w, epoch := discoveryWorld(t, 2)
	h := machineOf(strangeMAC, "XJ42", "6b1f5a10-0000-4000-8000-525400000042")
	h.OobAddress = w.server("srv-00000").OOB.Address // a liar's
	w.refused(cDiscovered(strangeMAC, "srv-new", epoch, h), metal.CodeDenied)
	w.ok(cLend(strangeMAC, epoch))
	w.refused(cDiscovered(strangeMAC, "srv-new", epoch, machineOf("52:54:00:ff:00:77", "XJ42", "")), metal.CodeInvalid)
	r := w.ok(cDiscovered(strangeMAC, "srv-new", epoch, h))
	if d := r.Value.(Discovered); d.Outcome != OutcomeDiscovered || d.Name != "new-525400ff0001" {
		t.Fatalf("%+v", d)
	}
	s := w.server("srv-new")
	if s.State != metal.StateDiscovered || s.OOB.Address != "" || s.WipeOK || s.Address.IsValid() || s.Operation != "" || s.Serial != "XJ42" {
		t.Errorf("%+v", s)
	}
	if len(collect(w.f.View().Loans(rack1))) != 1 {
		t.Error("its address may be another's at once")
	}
	// Its answer was lost; it boots again; by another port.
	if d := w.ok(cDiscovered(strangeMAC, "srv-more", epoch, h)).Value.(Discovered); d.ServerID != "srv-new" {
		t.Errorf("%+v", d)
	}
	w.refused(cLend(strangeMAC, epoch), metal.CodeDenied)
	w.ok(cLend(h.GetNics()[1].GetMac(), epoch)) // its word for a port is none

	in := serverInput(9)
	in.Id, in.Name, in.Macs = "srv-new", "r1-u42", []string{strangeMAC}
	for _, bad := range []func(*logpb.ServerInput){
		func(m *logpb.ServerInput) { m.Serial = "XJ43" },
		func(m *logpb.ServerInput) { m.Uuid = "6b1f5a10-0000-4000-8000-525400000043" },
		func(m *logpb.ServerInput) { m.Macs = []string{"52:54:00:ff:00:99"} },
	} {
		wrong := serverInput(9)
		wrong.Id, wrong.Name, wrong.Macs = in.Id, in.Name, in.Macs
		bad(wrong)
		w.refused(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{wrong}}), metal.CodeInvalid)
	}
	taken := serverInput(9)
	taken.Id, taken.Name, taken.Macs, taken.Oob.Address = in.Id, in.Name, in.Macs, w.server("srv-00000").OOB.Address
	w.refused(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{taken}}), metal.CodeInUse)
	// All or nothing: the second line is wrong.
	second := serverInput(10)
	second.Size = "none-such"
	w.refused(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in, second}}), metal.CodeNotFound)
	w.state("srv-new", metal.StateDiscovered)

	got := w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}})).Value.([]Applied)
	if got[0].Change != Enrolled || got[0].OperationID == "" {
		t.Fatalf("%+v", got)
	}
	w.state("srv-new", metal.StateEnrolling)
	if s := w.named("r1-u42"); s.Serial != "XJ42" || !s.Address.IsValid() || !s.WipeOK {
		t.Errorf("%+v", s)
	}
	w.refused(cLend(strangeMAC, epoch), metal.CodeDenied)

	// Forgotten, a machine is discovered again when it boots again.
	w.ok(cLend("52:54:00:ff:00:02", epoch))
	w.ok(cDiscovered("52:54:00:ff:00:02", "srv-b", epoch, machineOf("52:54:00:ff:00:02", "", "")))
	w.ok(&logpb.Command{Command: &logpb.Command_ForgetServer{ForgetServer: &logpb.ForgetServer{Server: ref("srv-b")}}})
	w.ok(cLend("52:54:00:ff:00:02", epoch))
	if err := sound(w.f.View()); err != nil {
		t.Error(err)
	}
}

// What a stranger says never changes what an enrolled server is.
func TestStrangersCannotTakeOver(t *testing.T) {
	for _, tt := range []struct {
		name     string
		hardware func(s *metal.Server) *logpb.Hardware
		outcome  string
		claim    bool
	}{
		{"a machine of its own", func(*metal.Server) *logpb.Hardware { return machineOf(strangeMAC, "XJ1", "") }, OutcomeDiscovered, false},
		{"serial alone", func(s *metal.Server) *logpb.Hardware { return machineOf(strangeMAC, s.Serial, "") }, OutcomeDiscovered, false},
		{"UUID alone", func(s *metal.Server) *logpb.Hardware { return machineOf(strangeMAC, "", s.UUID) }, OutcomeDiscovered, false},
		{"serial and UUID: a new NIC", func(s *metal.Server) *logpb.Hardware { return machineOf(strangeMAC, s.Serial, s.UUID) }, OutcomeKnown, true},
		{"its boot NIC beside another serial", func(s *metal.Server) *logpb.Hardware {
			h := machineOf(strangeMAC, "XJ1", s.UUID)
			h.Nics = append(h.Nics, &logpb.NIC{Name: "eth2", Mac: s.MACs[0]})
			return h
		}, OutcomeKnown, true},
		{"its boot NIC, serial and UUID: another port", func(s *metal.Server) *logpb.Hardware {
			h := machineOf(strangeMAC, s.Serial, s.UUID)
			h.Nics = append(h.Nics, &logpb.NIC{Name: "eth2", Mac: s.MACs[0]})
			return h
		}, OutcomeKnown, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, epoch := discoveryWorld(t, 1)
			was := *w.server("srv-00000")
			w.ok(cLend(strangeMAC, epoch))
			d := w.ok(cDiscovered(strangeMAC, "srv-new", epoch, tt.hardware(&was))).Value.(Discovered)
			now := w.server("srv-00000")
			if d.Outcome != tt.outcome || (now.Claim != nil) != tt.claim {
				t.Errorf("%+v, claim %+v", d, now.Claim)
			}
			if now.Serial != was.Serial || now.UUID != was.UUID || now.MACs[0] != mac(0) || now.State != metal.StateAvailable {
				t.Errorf("the server is %+v", now)
			}
			if !tt.claim {
				return
			}
			w.refused(cLend(strangeMAC, epoch+7), metal.CodeStaleEpoch)
			w.ok(cAccept("srv-00000"))
			now = w.server("srv-00000")
			state := metal.StateAvailable
			if strings.HasPrefix(tt.name, "its boot NIC") {
				state = metal.StateEnrolling // another mainboard
			}
			if now.Claim != nil || now.State != state {
				t.Errorf("accepted: %+v", now)
			}
			if as, ok := w.f.View().Address(rack1, now.Address); !ok || as.MAC != now.MACs[0] || as.ServerID != now.ID {
				t.Errorf("its address is %+v", as)
			}
			w.refused(cAccept("srv-00000"), metal.CodeWrongState)
			if err := sound(w.f.View()); err != nil {
				t.Error(err)
			}
		})
	}
}

// inspectAs has a server inspected and find this.
func (w *world) inspectAs(op, id string, h *logpb.Hardware) {
	w.t.Helper()
	w.ok(&logpb.Command{Command: &logpb.Command_InspectServer{InspectServer: &logpb.InspectServer{Server: ref(id), OperationId: op}}})
	w.until(op, metal.StepInspect)
	w.inspected(op, h)
	if o, _ := w.f.View().Operation(op); !o.State.Ended() {
		w.finish(op)
	}
}

func (w *world) inspected(op string, h *logpb.Hardware) {
	w.t.Helper()
	w.ok(cReport(w.report(op, phaseStarted)))
	m := w.report(op, phaseDone)
	m.Hardware = h
	w.ok(cReport(m))
}

// itself is the hardware of an enrolled server, with a boot NIC of this MAC.
func itself(s *metal.Server, boot string) *logpb.Hardware { return machineOf(boot, s.Serial, s.UUID) }

// What was sent by who holds another rack's lease says nothing of a server.
func TestStrangerOfAnotherRack(t *testing.T) {
	w, epoch := discoveryWorld(t, 1)
	was := *w.server("srv-00000")
	moved := was
	moved.RackID = "rck-elsewhere"
	x := w.f.View().Begin()
	x.PutServer(&moved)
	v := x.Commit()
	v, lend, err := Advance(v, v.Revision()+1, w.by(cLend(strangeMAC, epoch)))
	if err != nil || lend.Err != nil {
		t.Fatal(err, lend.Err)
	}
	v, r, err := Advance(v, v.Revision()+1, w.by(cDiscovered(strangeMAC, "srv-new", epoch, itself(&was, strangeMAC))))
	if err != nil || r.Err != nil || r.Value.(Discovered).Outcome != OutcomeKnown {
		t.Fatalf("%v, %+v", err, r)
	}
	if s, _ := v.Server("srv-00000"); s.Claim != nil || s.MACs[0] != was.MACs[0] {
		t.Errorf("%+v", s)
	}
}

// A new port is an operator's to accept, also while an operation waits for the
// machine: who has been its tenant knows its serial number and UUID.
func TestNewPortDuringAnOperation(t *testing.T) {
	w, epoch := discoveryWorld(t, 1)
	was := w.server("srv-00000")
	w.ok(cCreate("op-x", "web-1"))
	w.until("op-x", metal.StepBootRamdisk)
	w.ok(cLend(strangeMAC, epoch))
	d := w.ok(cDiscovered(strangeMAC, "srv-new", epoch, itself(was, strangeMAC))).Value.(Discovered)
	s := w.server("srv-00000")
	if d.Outcome != OutcomeKnown || s.MACs[0] != mac(0) || s.Claim == nil || s.Claim.Board {
		t.Errorf("%+v, %+v", d, s)
	}
	w.refused(cAccept("srv-00000"), metal.CodeBusy)
}

func TestReplacedBoard(t *testing.T) {
	w, _ := discoveryWorld(t, 1)
	was := w.server("srv-00000")
	other := machineOf(mac(0), "XJ99", was.UUID)
	w.inspectAs("op-again", "srv-00000", other)
	s := w.server("srv-00000")
	if s.State != metal.StateFailed || s.Failure.Reason != metal.CodeIdentityChanged || s.Claim == nil || s.Serial != was.Serial {
		t.Fatalf("%+v, %+v", s, s.Failure)
	}
	// Nothing that was proved of the former machine holds: not its controller, and
	// not that its disks were wiped.
	r := w.ok(cAccept("srv-00000"))
	if s := w.server("srv-00000"); s.Serial != "XJ99" || s.Claim != nil || s.State != metal.StateEnrolling || s.WasAvailable || s.WipeOK || s.Failure != nil {
		t.Errorf("%+v", s)
	}
	w.until(r.OperationID, metal.StepInspect)
	w.inspected(r.OperationID, other)
	w.refused(cReport(w.report(r.OperationID, phaseStarted)), metal.CodeWipeRefused) // never released for wiping
}

// A rented server's other mainboard waits until the tenant is gone.
func TestReplacedBoardOfATenant(t *testing.T) {
	w := deployed(t)
	s := *w.server("srv-00000")
	s.Claim = &metal.Claim{Serial: "XJ99", MACs: s.MACs, Board: true}
	x := w.f.View().Begin()
	x.PutServer(&s)
	v := x.Commit()
	if _, r, err := Advance(v, v.Revision()+1, w.by(cAccept("srv-00000"))); err != nil || metal.CodeOf(r.Err) != metal.CodeInUse {
		t.Errorf("%v, %+v", err, r)
	}
}

// An agent that refused a hello tells what it heard; only what has the boot NIC
// and has been proved once makes a claim.
func TestClaimOfAHello(t *testing.T) {
	for name, tt := range map[string]struct {
		found *logpb.Hardware
		claim bool
	}{
		"another board":   {machineOf(mac(0), "XJ99", ""), true},
		"another machine": {machineOf(strangeMAC, "XJ99", ""), false},
		"nothing":         {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := deployed(t)
			w.ok(cDestroy("op-d", "srv-00000"))
			w.until("op-d", metal.StepBootRamdisk)
			m := w.report("op-d", phaseFailed)
			m.Reason, m.Message, m.Found = string(metal.CodeIdentityChanged), "another serial number", tt.found
			w.ok(cReport(m))
			if s := w.server("srv-00000"); (s.Claim != nil) != tt.claim || s.State != metal.StateFailed {
				t.Errorf("%s, claim %+v", s.State, s.Claim)
			}
		})
	}
}

func TestSizesByRule(t *testing.T) {
	w, _ := discoveryWorld(t, 1)
	w.ok(cInventory(&logpb.ApplyInventory{Sizes: []*logpb.Size{
		{Name: "dell", Rule: &logpb.SizeRule{Priority: 5, Model: "Dell*"}},
		{Name: "gold", Rule: &logpb.SizeRule{Priority: 9, Labels: []*logpb.Label{{Key: "tier", Value: "gold"}}}},
	}}))
	if s := w.server("srv-00000"); s.Size == "" {
		t.Fatalf("%+v", s)
	}
	w.inspectAs("op-1", "srv-00000", itself(w.server("srv-00000"), mac(0)))
	if s := w.server("srv-00000"); s.Size != "dell" || !s.SizeByRule {
		t.Errorf("size %q, by rule %v", s.Size, s.SizeByRule)
	}
	in := serverInput(0)
	in.Size = "gold"
	w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}}))
	w.inspectAs("op-2", "srv-00000", itself(w.server("srv-00000"), mac(0)))
	if s := w.server("srv-00000"); s.Size != "gold" || s.SizeByRule {
		t.Errorf("the inventory's word does not win: %q", s.Size)
	}
}

func TestDegradedDisk(t *testing.T) {
	w, _ := discoveryWorld(t, 1)
	h := itself(w.server("srv-00000"), mac(0))
	h.Disks[0].Health = &logpb.DiskHealth{State: metal.DiskFailing, Reason: "SMART says so"}
	w.inspectAs("op-i", "srv-00000", h)
	s := w.server("srv-00000")
	if c, ok := s.Conditions[metal.ConditionHardwareDegraded]; !ok || !strings.Contains(c.Message, "sda is failing: SMART says so") {
		t.Errorf("%+v", s.Conditions)
	}
	w.refused(cCreate("op-x", "web-1"), metal.CodeNoCapacity)
	h.Disks[0].Health.State = metal.DiskOK
	w.inspectAs("op-j", "srv-00000", h)
	if s := w.server("srv-00000"); len(s.Conditions) != 0 {
		t.Errorf("%+v", s.Conditions)
	}
	w.ok(cCreate("op-y", "web-1"))
}
