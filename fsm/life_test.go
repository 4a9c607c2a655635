package fsm

import (
	"strings"
	"testing"
	"time"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

func TestWholeLife(t *testing.T) {
	w := available(t, 2)
	s := w.server("srv-00000")
	if s.Size != "small" || s.Serial != "SNsrv-00000" || s.Address.String() != "10.10.0.10" || !s.WasAvailable {
		t.Fatalf("after enrolment: %+v", s)
	}
	r := w.ok(cCreate("op-c", "web-1"))
	o := r.Value.(*metal.Operation)
	if o.ID != "op-c" || o.Target != "web-1" || o.Project != prj || o.From != metal.StateAvailable || r.ID != "srv-00000" {
		t.Fatalf("create: %+v %+v", r, o)
	}
	w.state(r.ID, metal.StateDeploying)
	w.finish("op-c")
	w.state(r.ID, metal.StateActive)
	s = w.server(r.ID)
	if s.Rental.User != "debian" || len(s.Rental.SSHHostKeys) != 1 || len(s.Rental.SSHKeys) != 1 || s.Power.Wanted != metal.PowerOn {
		t.Fatalf("after deploy: %+v", s.Rental)
	}
	power := &logpb.SetPower{Server: &logpb.ServerRef{ServerId: r.ID, Project: prj, Rental: "web-1"}, OperationId: "op-p", Wanted: "off"}
	w.ok(&logpb.Command{Command: &logpb.Command_SetPower{SetPower: power}})
	w.finish("op-p")
	if s = w.server(r.ID); s.State != metal.StateActive || s.Power.Observed != metal.PowerOff {
		t.Fatalf("after power off: %s %+v", s.State, s.Power)
	}
	w.ok(&logpb.Command{Command: &logpb.Command_RestartServer{RestartServer: &logpb.RestartServer{Server: ref(r.ID), OperationId: "op-r"}}})
	w.finish("op-r")
	w.ok(cDestroy("op-d", r.ID))
	if n := w.f.View().CountRentals(prj); n != 0 {
		t.Fatalf("%d rentals count after destroy", n)
	}
	if got := w.named("web-1"); got.ID != r.ID || got.State != metal.StateReleasing {
		t.Fatalf("a released rental does not answer to its name: %+v", got)
	}
	// The name is free at once, the machine is not.
	if again := w.ok(cCreate("op-c2", "web-1")); again.ID != "srv-00001" {
		t.Fatalf("the released machine was given away: %s", again.ID)
	}
	w.until("op-d", metal.StepBootRamdisk)
	if s = w.server(r.ID); s.State != metal.StateCleaning || s.Rental != nil {
		t.Fatalf("after off: %s %+v", s.State, s.Rental)
	}
	w.until("op-d", "")
	w.state(r.ID, metal.StateAvailable)
	if err := sound(w.f.View()); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for e := range w.f.View().EventsOf(r.ID) {
		kinds = append(kinds, e.Kind)
	}
	if got := strings.Join(kinds, " "); !strings.Contains(got, "server.available") || !strings.Contains(got, "operation.step") {
		t.Fatalf("events: %s", got)
	}
}

func TestWipeNeedsTheWord(t *testing.T) {
	w := furnished(t, 0)
	in := serverInput(1)
	in.Wipe = false
	w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}}))
	w.until(in.OperationId, metal.StepWipe)
	w.refused(cReport(w.report(in.OperationId, phaseStarted)), metal.CodeWipeRefused)
	m := w.report(in.OperationId, phaseFailed)
	m.Reason = string(metal.CodeWipeRefused)
	w.ok(cReport(m))
	// Nothing was written, so it is failed, not quarantined.
	w.state(in.Id, metal.StateFailed)
	w.ok(cRetry("op-x", in.Id))
	w.failAt(in.OperationId, metal.StepBootRamdisk, metal.CodeNoNetboot)
	in.Wipe = true
	got := w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}})).Value.([]Applied)
	if got[0].Change != Updated {
		t.Fatalf("%+v", got)
	}
	w.ok(cRetry("op-y", in.Id))
	if o, _ := w.f.View().Operation(in.OperationId); o.Attempt != 3 || o.State != metal.OperationPending {
		t.Fatalf("%+v", o)
	}
	w.finish(in.OperationId)
	w.state(in.Id, metal.StateAvailable)
}

// Two servers whose controllers were swapped are put right by one file; a file
// that takes a controller and leaves it to its owner is refused as a whole.
func TestSwappedControllersPutRight(t *testing.T) {
	w := furnished(t, 0)
	one, two := serverInput(1), serverInput(2)
	right, left := one.Oob.Address, two.Oob.Address
	one.Oob.Address, two.Oob.Address = left, right
	w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{one, two}}))
	for _, in := range []*logpb.ServerInput{one, two} {
		w.failAt(in.OperationId, metal.StepBootRamdisk, metal.CodeBMCMismatch)
	}
	one.Oob.Address = right
	w.refused(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{one}}), metal.CodeInUse)
	if got := w.server(one.Id).OOB.Address; got != left {
		t.Fatalf("after a refusal the controller is %q", got)
	}
	two.Oob.Address = left
	w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{one, two}}))
	if a, b := w.server(one.Id).OOB.Address, w.server(two.Id).OOB.Address; a != right || b != left {
		t.Fatalf("controllers %q and %q", a, b)
	}
	if s, ok := w.f.View().ServerByOOB(w.server(one.Id).RackID, right); !ok || s.ID != one.Id {
		t.Fatalf("behind %s is %v", right, s)
	}
}

// A step that waits for its turn at its agent loses no time.
func TestWaitingStep(t *testing.T) {
	w := furnished(t, 0)
	in := serverInput(1)
	w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}}))
	w.until(in.OperationId, metal.StepBootRamdisk)
	w.now = w.now.Add(11 * time.Minute)
	w.ok(cReport(w.report(in.OperationId, phaseWaiting)))
	o, _ := w.f.View().Operation(in.OperationId)
	if want := w.now.Add(12 * time.Minute); !o.Deadline.Equal(want) || o.Steps[2].State != metal.StepPending {
		t.Fatalf("deadline %v, want %v; %+v", o.Deadline, want, o.Steps[2])
	}
	w.finish(in.OperationId)
	w.state(in.Id, metal.StateAvailable)
}

func TestWipeFailsClosed(t *testing.T) {
	for _, tt := range []struct {
		name  string
		wipes []*logpb.WipeEvidence
	}{
		{"no evidence", nil},
		{"not read back", []*logpb.WipeEvidence{{Disk: "Dsrv-00000", Bytes: 20 * gib, BytesReadBack: 20*gib - 1}}},
		{"nothing wiped", []*logpb.WipeEvidence{{Disk: "Dsrv-00000"}}},
		{"another disk", []*logpb.WipeEvidence{{Disk: "other", Bytes: 1, BytesReadBack: 1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := deployed(t)
			w.ok(cDestroy("op-d", "srv-00000"))
			w.until("op-d", metal.StepWipe)
			m := w.report("op-d", phaseDone)
			m.Wipes = tt.wipes
			w.ok(cReport(m))
			w.state("srv-00000", metal.StateQuarantined)
			o, _ := w.f.View().Operation("op-d")
			if o.State != metal.OperationFailed || o.Failure.Reason != metal.CodeWipeFailed {
				t.Fatalf("%+v", o)
			}
			w.refused(cCreate("op-n", "web-2"), metal.CodeNoCapacity)
			// Retrying a quarantined server cleans it.
			if r := w.ok(cRetry("op-clean", "srv-00000")); r.OperationID != "op-clean" {
				t.Fatalf("%+v", r)
			}
			w.finish("op-clean")
			w.state("srv-00000", metal.StateAvailable)
			if s := w.server("srv-00000"); s.Failure != nil {
				t.Fatalf("%+v", s.Failure)
			}
		})
	}
}

func TestWrongMachineAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*logpb.Hardware)
	}{
		{"serial", func(h *logpb.Hardware) { h.Serial = "OTHER" }},
		{"uuid", func(h *logpb.Hardware) { h.Uuid = "" }},
		{"mac", func(h *logpb.Hardware) { h.Nics[0].Mac = "52:54:00:ff:ff:ff" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := furnished(t, 0)
			in := serverInput(1)
			in.Serial, in.Uuid = "SNsrv-00001", "4C4C4544-0000-0000-0000-00001"
			w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}}))
			w.until(in.OperationId, metal.StepInspect)
			m := w.report(in.OperationId, phaseDone)
			tt.change(m.Hardware)
			w.ok(cReport(m))
			s := w.server(in.Id)
			if s.State != metal.StateFailed || s.Failure.Reason != metal.CodeBMCMismatch || s.Hardware != nil {
				t.Fatalf("%s %+v", s.State, s.Failure)
			}
			// The operator corrects the address and tries again.
			in.Oob.Address = "10.9.9.9"
			w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}}))
			w.ok(cRetry("op-x", in.Id))
			w.finish(in.OperationId)
			w.state(in.Id, metal.StateAvailable)
			// From now on the address is proved and stays.
			in.Oob.Address = "10.9.9.10"
			w.refused(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}}), metal.CodeWrongState)
			in.Oob.Address, in.Oob.Password = "10.9.9.9", []byte("other")
			w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}}))
		})
	}
}

func TestFailures(t *testing.T) {
	t.Run("deploy is retried as a new attempt", func(t *testing.T) {
		w := available(t, 1)
		w.ok(cCreate("op-c", "web-1"))
		w.failAt("op-c", metal.StepWriteImage, metal.CodeVerifyFailed)
		s := w.server("srv-00000")
		if s.State != metal.StateFailed || s.Failure.From != metal.StateDeploying || s.Failure.Step != metal.StepWriteImage || s.Rental == nil {
			t.Fatalf("%+v %+v", s.State, s.Failure)
		}
		old := w.report("op-c", phaseDone)
		w.refused(cReport(old), metal.CodeStaleAttempt)
		w.ok(cRetry("op-x", "srv-00000"))
		w.refused(cReport(old), metal.CodeStaleAttempt)
		w.finish("op-c")
		w.state("srv-00000", metal.StateActive)
	})
	t.Run("a power operation leaves the server active", func(t *testing.T) {
		w := deployed(t)
		w.ok(&logpb.Command{Command: &logpb.Command_SetPower{SetPower: &logpb.SetPower{Server: ref("srv-00000"), OperationId: "op-p", Wanted: "off"}}})
		w.failAt("op-p", metal.StepSetPower, metal.CodeOOBUnreachable)
		w.state("srv-00000", metal.StateActive)
		if s := w.server("srv-00000"); s.Failure != nil || s.Operation != "" {
			t.Fatalf("%+v", s)
		}
	})
	t.Run("a failed deploy can be destroyed", func(t *testing.T) {
		w := available(t, 1)
		w.ok(cCreate("op-c", "web-1"))
		w.failAt("op-c", metal.StepReady, metal.CodeNotReady)
		w.ok(cDestroy("op-d", "srv-00000"))
		w.finish("op-d")
		w.state("srv-00000", metal.StateAvailable)
	})
	t.Run("a release that failed after off is retried without the tenant", func(t *testing.T) {
		w := deployed(t)
		w.ok(cDestroy("op-d", "srv-00000"))
		w.failAt("op-d", metal.StepPowerOffEnd, metal.CodeOOBRefused)
		if s := w.server("srv-00000"); s.State != metal.StateFailed || s.Failure.From != metal.StateCleaning {
			t.Fatalf("%+v", s)
		}
		w.refused(cDestroy("op-z", "srv-00000"), metal.CodeWrongState)
		w.ok(cRetry("op-x", "srv-00000"))
		w.state("srv-00000", metal.StateCleaning)
		w.finish("op-d")
		w.state("srv-00000", metal.StateAvailable)
	})
	t.Run("a release that failed before off is retried with it", func(t *testing.T) {
		w := deployed(t)
		w.ok(cDestroy("op-d", "srv-00000"))
		w.failAt("op-d", metal.StepPowerOff, metal.CodeOOBUnreachable)
		if s := w.server("srv-00000"); s.Rental == nil {
			t.Fatal("the tenant is gone before the machine was read as off")
		}
		w.ok(cRetry("op-x", "srv-00000"))
		w.state("srv-00000", metal.StateReleasing)
		w.finish("op-d")
		w.state("srv-00000", metal.StateAvailable)
	})
	t.Run("an inspection of a quarantined server leaves it quarantined", func(t *testing.T) {
		w := deployed(t)
		w.ok(cDestroy("op-d", "srv-00000"))
		w.failAt("op-d", metal.StepWipe, metal.CodeWipeFailed)
		inspect := &logpb.InspectServer{Server: ref("srv-00000"), OperationId: "op-i"}
		w.ok(&logpb.Command{Command: &logpb.Command_InspectServer{InspectServer: inspect}})
		w.state("srv-00000", metal.StateInspecting)
		w.finish("op-i")
		w.state("srv-00000", metal.StateQuarantined)
	})
	t.Run("an inspection of an available server", func(t *testing.T) {
		w := available(t, 1)
		inspect := &logpb.InspectServer{Server: ref("srv-00000"), OperationId: "op-i"}
		w.ok(&logpb.Command{Command: &logpb.Command_InspectServer{InspectServer: inspect}})
		w.refused(cCreate("op-c", "web-1"), metal.CodeNoCapacity)
		w.finish("op-i")
		w.state("srv-00000", metal.StateAvailable)
	})
}

func TestDeadlines(t *testing.T) {
	w := available(t, 1)
	w.ok(cCreate("op-c", "web-1"))
	late := func(step string) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_MarkLate{MarkLate: &logpb.MarkLate{OperationId: "op-c", Attempt: 1, Step: step}}}
	}
	expire := func(step metal.Step) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_ExpireStep{ExpireStep: &logpb.ExpireStep{OperationId: "op-c", Attempt: 1, Step: string(step)}}}
	}
	w.refused(late("power-off"), metal.CodeConflict)
	w.ok(late(""))
	if _, is := w.server("srv-00000").Conditions[metal.ConditionLate]; !is {
		t.Fatal("not late")
	}
	w.until("op-c", metal.StepBootRamdisk)
	if _, is := w.server("srv-00000").Conditions[metal.ConditionLate]; is {
		t.Fatal("still late")
	}
	o, _ := w.f.View().Operation("op-c")
	if want := w.now.Add(12 * time.Minute); !o.Deadline.Equal(want) {
		t.Fatalf("deadline %v, want %v", o.Deadline, want)
	}
	w.refused(expire(metal.StepBootRamdisk), metal.CodeConflict)
	w.refused(expire(metal.StepWriteImage), metal.CodeConflict)
	w.ok(late("boot-ramdisk"))
	w.ok(late("boot-ramdisk"))
	w.now = w.now.Add(13 * time.Minute)
	w.ok(expire(metal.StepBootRamdisk))
	if s := w.server("srv-00000"); s.State != metal.StateFailed || s.Failure.Reason != metal.CodeDeadline || len(s.Conditions) != 0 {
		t.Fatalf("%s %+v %v", s.State, s.Failure, s.Conditions)
	}
	w.refused(expire(metal.StepBootRamdisk), metal.CodeStaleAttempt)
	for k := range deadlines {
		if deadlines[k] <= 0 {
			t.Errorf("step %s has no deadline", k)
		}
	}
	for _, kind := range []metal.OperationKind{metal.KindEnroll, metal.KindInspect, metal.KindDeploy, metal.KindPower, metal.KindRestart, metal.KindRelease, metal.KindClean} {
		for _, st := range metal.Plan(kind) {
			if StepDeadline(st) == 0 {
				t.Errorf("step %s of %s has no deadline", st, kind)
			}
		}
	}
}

func TestReports(t *testing.T) {
	w := available(t, 1)
	w.ok(cCreate("op-c", "web-1"))
	w.assign("op-c")
	first := w.report("op-c", phaseStarted)
	w.ok(cReport(first))
	if r := w.ok(cReport(first)); !r.Replayed {
		t.Fatal("the same report again is not a replay")
	}
	clash := w.report("op-c", phaseDone)
	clash.Sequence = first.Sequence
	w.refused(cReport(clash), metal.CodeStaleAttempt)
	for _, tt := range []struct {
		name   string
		change func(*logpb.ReportStep)
		code   metal.Code
	}{
		{"another attempt", func(m *logpb.ReportStep) { m.Attempt = 2 }, metal.CodeStaleAttempt},
		{"an old attempt", func(m *logpb.ReportStep) { m.Attempt = 0 }, metal.CodeStaleAttempt},
		{"an old epoch", func(m *logpb.ReportStep) { m.Epoch-- }, metal.CodeStaleEpoch},
		{"another agent", func(m *logpb.ReportStep) { m.AgentId = "agt-2" }, metal.CodeStaleEpoch},
		{"sequence regress", func(m *logpb.ReportStep) { m.Sequence = 0 }, metal.CodeStaleAttempt},
		{"a later step", func(m *logpb.ReportStep) { m.Step = "write-image" }, metal.CodeConflict},
		{"no step", func(m *logpb.ReportStep) { m.Step = "" }, metal.CodeConflict},
		{"no phase", func(m *logpb.ReportStep) { m.Phase = "perhaps" }, metal.CodeInvalid},
		{"failed without a reason", func(m *logpb.ReportStep) { m.Phase = phaseFailed }, metal.CodeInvalid},
		{"no operation", func(m *logpb.ReportStep) { m.OperationId = "op-none" }, metal.CodeNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := w.report("op-c", phaseDone)
			tt.change(m)
			w.refused(cReport(m), tt.code)
		})
	}
	t.Run("a new lease cuts the old holder off at once", func(t *testing.T) {
		w.ok(cToken("tok-b", "join-agent", rack1))
		w.ok(cJoin("tok-b", "agt-2", "a2"))
		stale := w.report("op-c", phaseDone)
		w.ok(cGrant(rack1, "agt-2", 1))
		w.refused(cReport(stale), metal.CodeStaleEpoch)
		o, _ := w.f.View().Operation("op-c")
		w.refused(cAssign(o, agt1, 1), metal.CodeStaleEpoch)
		w.ok(cAssign(o, "agt-2", 2))
		w.refused(cReport(stale), metal.CodeStaleEpoch)
		if o, _ := w.f.View().Operation("op-c"); o.Attempt != 1 || o.Sequence != 0 || o.Steps[0].State != metal.StepRunning {
			t.Fatalf("a takeover changed more than the agent: %+v", o)
		}
		w.finish("op-c")
		w.state("srv-00000", metal.StateActive)
	})
	t.Run("the last report may come again", func(t *testing.T) {
		w := deployed(t)
		o, _ := w.f.View().Operation("op-deploy")
		m := &logpb.ReportStep{OperationId: o.ID, Attempt: 1, Epoch: o.Epoch, Sequence: o.Sequence, Step: "ready", Phase: phaseDone, AgentId: o.Agent}
		if r := w.ok(cReport(m)); !r.Replayed {
			t.Fatal("not a replay")
		}
	})
}

func TestRequestIDs(t *testing.T) {
	w := available(t, 3)
	id := func(n int) string { return uuid7(epoch0.Add(time.Duration(n) * time.Millisecond)) }
	with := func(c *logpb.Command, id, mac string) *logpb.Command {
		c.Header = &logpb.Header{Principal: "ann", RequestId: id, RequestMac: []byte(mac)}
		return c
	}
	first := w.ok(with(cCreate("op-1", "web-1"), id(1), "m"))
	again := w.ok(with(cCreate("op-2", "web-1"), id(1), "m"))
	if !again.Replayed || again.OperationID != "op-1" || again.ID != first.ID || again.Revision != first.Revision || again.Value.(*metal.Operation).ID != "op-1" {
		t.Fatalf("%+v", again)
	}
	w.refused(with(cCreate("op-2", "web-2"), id(1), "other"), metal.CodeRequestReused)
	w.refused(with(cCreate("op-2", "web-2"), "not-a-uuid", "m"), metal.CodeInvalid)
	w.refused(with(cCreate("op-2", "web-2"), id(2), ""), metal.CodeInvalid)
	w.refused(with(cCreate("op-2", "web-2"), uuid7(w.now.Add(48*time.Hour)), "m"), metal.CodeInvalid)
	bob := with(cCreate("op-3", "web-3"), id(1), "m2")
	bob.Header.Principal = "bob"
	if r := w.ok(bob); r.Replayed {
		t.Fatal("another principal's request ID was taken for ann's")
	}
	// What was refused has had no effect and may be tried again.
	w.refused(with(cCreate("op-4", "web-1"), id(4), "m"), metal.CodeNameTaken)
	if _, ok := w.f.View().Request("ann", id(4)); ok {
		t.Fatal("a refusal was remembered")
	}
}

func uuid7(at time.Time) string {
	ms := at.UnixMilli()
	return strings.ToLower(strings.Join([]string{hex(ms>>16, 8), hex(ms&0xffff, 4), "7abc", "8def", "0123456789ab"}, "-"))
}

func hex(n int64, width int) string {
	const digits = "0123456789abcdef"
	b := make([]byte, width)
	for i := width - 1; i >= 0; i-- {
		b[i], n = digits[n&15], n>>4
	}
	return string(b)
}

func TestHorizon(t *testing.T) {
	x := state.New().Begin()
	for i := range state.MaxRequests + 10 {
		x.Remember(state.Request{ID: uuid7(epoch0.Add(time.Duration(i) * time.Millisecond)), Principal: "ann"})
	}
	v := x.Commit()
	a := &applier{Txn: v.Begin(), now: epoch0.Add(time.Hour)}
	for _, tt := range []struct {
		n    int
		code metal.Code
	}{{0, metal.CodeRequestTooOld}, {9, metal.CodeRequestTooOld}, {10, metal.CodeRequestReused}, {state.MaxRequests + 20, ""}} {
		a.h = &logpb.Header{Principal: "ann", RequestId: uuid7(epoch0.Add(time.Duration(tt.n) * time.Millisecond)), RequestMac: []byte("m")}
		if _, err := a.known(); (err == nil) != (tt.code == "") || err != nil && err.Code != tt.code {
			t.Errorf("%d: %v, want %q", tt.n, err, tt.code)
		}
	}
}
