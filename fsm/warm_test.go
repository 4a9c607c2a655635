package fsm

import (
	"strings"
	"testing"
	"time"

	"bmc/fsm/logpb"
	"bmc/metal"
)

func cRackWarm(rack string, n int) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_SetRackWarm{SetRackWarm: &logpb.SetRackWarm{RackId: rack, Warm: int64(n)}}}
}

func cWarm(server, op string, cold bool) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_WarmServer{WarmServer: &logpb.WarmServer{ServerId: server, OperationId: op, Cold: cold}}}
}

func cObserve(ob *logpb.Observation) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_Observe{Observe: &logpb.Observe{RackId: rack1, Observations: []*logpb.Observation{ob}}}}
}

const srv0, srv1 = "srv-00000", "srv-00001"

// waiting has n servers available, of which the last waits in the ramdisk.
func waiting(t testing.TB, n int) (w *world, id string) {
	t.Helper()
	w = available(t, n)
	id = serverInput(n - 1).GetId()
	w.ok(cRackWarm(rack1, 1))
	w.ok(cWarm(id, "op-warm", false))
	w.finish("op-warm")
	if s := w.server(id); !s.Warm.Waits() || s.Warm.BootID != "boot-op-warm" || s.Warm.Ramdisk != "v1" || s.State != metal.StateAvailable || s.Operation != "" {
		t.Fatalf("%+v, warmth %+v", s, s.Warm)
	}
	return w, id
}

func (w *world) sound() {
	w.t.Helper()
	if err := sound(w.f.View()); err != nil {
		w.t.Fatal(err)
	}
}

// A server that waits is taken before one that is off, and its deployment goes
// on with that very boot: no power-off, no other boot.
func TestCreateTakesWhoWaits(t *testing.T) {
	w, id := waiting(t, 3)
	w.ok(cCreate("op-c", "web-1"))
	s := w.named("web-1")
	o, _ := w.f.View().Operation("op-c")
	if s.ID != id || o.BootID != "boot-op-warm" || !o.Adopts() || s.Warm != nil {
		t.Fatalf("%s was taken, operation %+v", s.ID, o)
	}
	w.sound()
	w.finish("op-c")
	w.state(id, metal.StateActive)
	w.ok(cDestroy("op-d", id))
	if o, _ := w.f.View().Operation("op-d"); o.Adopts() || o.BootID != "" {
		t.Fatalf("a release does not begin with the power: %+v", o)
	}
	w.finish("op-d")
	w.sound()
	// The next tenant's deployment, if it fails, begins anew from off.
	w.ok(cWarm(id, "op-warm2", false))
	w.finish("op-warm2")
	w.ok(cCreate("op-e", "web-2"))
	w.failAt("op-e", metal.StepWriteImage, metal.CodeWriteFailed)
	w.ok(cRetry("op-x", w.named("web-2").ID))
	if o, _ := w.f.View().Operation("op-e"); o.Adopts() || o.BootID != "" {
		t.Fatalf("a retry adopts: %+v", o)
	}
	w.sound()
}

// Whatever a person wants of a server on its way into the ramdisk or out of it
// goes first.
func TestOwnOperationsYield(t *testing.T) {
	verbs := map[string]*logpb.Command{
		"create":  cCreate("op-user", "web-1"),
		"inspect": {Command: &logpb.Command_InspectServer{InspectServer: &logpb.InspectServer{Server: ref(srv0), OperationId: "op-user"}}},
		"clean":   {Command: &logpb.Command_CleanServer{CleanServer: &logpb.CleanServer{Server: ref(srv0), OperationId: "op-user"}}},
		"retire":  {Command: &logpb.Command_RetireServer{RetireServer: &logpb.RetireServer{Server: ref(srv0)}}},
	}
	for name, verb := range verbs {
		for _, cold := range []bool{false, true} {
			for _, step := range []metal.Step{metal.StepPowerOff, metal.StepBootRamdisk} {
				w := available(t, 1)
				op := "op-warm"
				w.ok(cWarm(srv0, op, false))
				if cold {
					w.finish(op)
					op = "op-cool"
					w.ok(cWarm(srv0, op, true))
				}
				if w.until(op, step); cold && step == metal.StepBootRamdisk {
					continue // it has ended
				}
				stale := w.report(op, phaseDone)
				verb.Header = nil
				w.ok(verb)
				w.sound()
				if o, ok := w.f.View().Operation(op); ok && o.State != metal.OperationCancelled {
					t.Fatalf("%s: %s is %s", name, op, o.State)
				}
				if r := w.apply(cReport(stale)); r.Err == nil {
					t.Fatalf("%s: a report of what gave way was taken", name)
				}
				o, ok := w.f.View().Operation("op-user")
				if !ok {
					continue
				}
				if o.BootID != "" || o.Adopts() || o.Current() != metal.StepPowerOff {
					t.Fatalf("%s does not begin with the power: %+v", name, o)
				}
				w.finish("op-user")
				w.sound()
			}
		}
	}
}

// A server that is free is taken before one whose own operation would have to
// give way.
func TestCreateDisturbsNobodyInVain(t *testing.T) {
	w := available(t, 2)
	w.ok(cWarm(srv0, "op-warm", false))
	w.ok(cCreate("op-c", "web-1"))
	if s := w.named("web-1"); s.ID != srv1 {
		t.Fatalf("%s was taken", s.ID)
	}
	w.ok(cCreate("op-d", "web-2"))
	if s := w.named("web-2"); s.ID != srv0 {
		t.Fatalf("%s was taken", s.ID)
	}
	w.refused(cCreate("op-e", "web-3"), metal.CodeNoCapacity)
}

// Every way in which a server stops waiting is remembered, with growing pauses,
// and after the last try it is left alone until somebody says otherwise.
func TestWarmBacksOff(t *testing.T) {
	lost := map[string]func(w *world){
		"off": func(w *world) { w.ok(cObserve(&logpb.Observation{ServerId: srv0, Power: "off"})) },
		"silent": func(w *world) {
			w.ok(cObserve(&logpb.Observation{ServerId: srv0, WarmLost: w.server(srv0).Warm.BootID}))
		},
	}
	for name, lose := range lost {
		t.Run(name, func(t *testing.T) {
			w, _ := waiting(t, 1)
			w.ok(cObserve(&logpb.Observation{ServerId: srv0, WarmLost: "boot-of-before", Power: "on"}))
			if !w.server(srv0).Warm.Waits() {
				t.Fatal("news of another boot took its warmth")
			}
			for try := 1; try <= metal.MaxWarmTries; try++ {
				lose(w)
				s := w.server(srv0)
				if _, raised := s.Conditions[metal.ConditionWarmFailed]; !raised || s.Warm.Waits() || s.Warm.Tries != try || s.Warm.Problem == "" || s.State != metal.StateAvailable {
					t.Fatalf("try %d: %+v", try, s.Warm)
				}
				w.sound()
				w.refused(cWarm(srv0, w.id("op"), false), metal.CodeConflict)
				w.now = w.now.Add(metal.WarmPause(try))
				if try == metal.MaxWarmTries {
					w.now = w.now.Add(1000 * time.Hour)
					w.refused(cWarm(srv0, w.id("op"), false), metal.CodeConflict)
					break
				}
				op := w.id("op")
				w.ok(cWarm(srv0, op, false))
				w.finish(op)
			}
			w.ok(cRackWarm(rack1, metal.WarmAll)) // somebody says so
			w.sound()
			w.ok(cWarm(srv0, "op-last", false))
			w.finish("op-last")
			w.now = w.now.Add(metal.WarmStable)
			lose(w)
			if got := w.server(srv0).Warm.Tries; got != 1 {
				t.Errorf("after an hour of waiting, try %d", got)
			}
			w.ok(cCreate("op-cold", "web-1")) // it is created cold
			if o, _ := w.f.View().Operation("op-cold"); o.Adopts() {
				t.Error("adopts nobody")
			}
		})
	}
}

func TestWarmFails(t *testing.T) {
	w := available(t, 1)
	w.ok(cWarm(srv0, "op-warm", false))
	w.failAt("op-warm", metal.StepBootRamdisk, metal.CodeNoNetboot)
	s := w.server(srv0)
	if s.State != metal.StateAvailable || s.Failure != nil || s.Warm.Tries != 1 || !strings.Contains(s.Conditions[metal.ConditionWarmFailed].Message, "NO_NETBOOT") {
		t.Fatalf("%+v, %+v, %+v", s, s.Warm, s.Conditions)
	}
	w.sound()
	w.now = w.now.Add(metal.WarmPause(1))
	w.ok(cWarm(srv0, "op-cancel", false))
	w.until("op-cancel", metal.StepBootRamdisk)
	w.ok(cCancel("op-cancel", srv0, "op-none"))
	if s := w.server(srv0); s.State != metal.StateAvailable || s.Warm.Tries != 2 || !strings.Contains(s.Warm.Problem, "cancelled by ann") {
		t.Fatalf("%+v", s.Warm)
	}
	w.sound()
	w.ok(cCreate("op-c", "web-1"))
	w.finish("op-c")
	if s := w.server(srv0); s.Warm != nil {
		t.Fatalf("a rented server has warmth %+v", s.Warm)
	}
	w.sound()
}

func TestCool(t *testing.T) {
	w, id := waiting(t, 1)
	w.ok(cWarm(id, "op-cool", true))
	if s := w.server(id); s.Warm.Waits() || s.State != metal.StateAvailable {
		t.Fatalf("it is about to lose its power, and waits: %+v", s.Warm)
	}
	w.finish("op-cool")
	if s := w.server(id); s.Warm != nil || s.Power.Observed != metal.PowerOff || s.Power.Wanted != metal.PowerOff {
		t.Fatalf("%+v %+v", s.Warm, s.Power)
	}
	w.refused(cWarm(id, "op-again", true), metal.CodeConflict)
	w.sound()

	w, id = waiting(t, 1) // a retired one is switched off, too, and not on again
	w.ok(&logpb.Command{Command: &logpb.Command_RetireServer{RetireServer: &logpb.RetireServer{Server: ref(id)}}})
	w.refused(cWarm(id, "op-on", false), metal.CodeConflict)
	w.ok(cWarm(id, "op-cool", true))
	w.finish("op-cool")
	w.state(id, metal.StateRetired)
	w.sound()
}

// Nobody waits where nobody may be rented.
func TestWarmIsForTheFree(t *testing.T) {
	for name, prepare := range map[string]func(w *world){
		"rented": func(w *world) { w.ok(cCreate("op-c", "web-1")); w.finish("op-c") },
		"busy":   func(w *world) { w.ok(cCreate("op-c", "web-1")) },
		"cordoned": func(w *world) {
			w.ok(&logpb.Command{Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Server: ref(srv0), Hold: "cordoned", On: true}}})
		},
		"parked": func(w *world) {
			w.ok(&logpb.Command{Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Server: ref(srv0), Hold: "parked", On: true}}})
		},
		"unreachable": func(w *world) {
			w.ok(cObserve(&logpb.Observation{ServerId: srv0, Raised: []string{"oob_unreachable"}}))
		},
	} {
		w := available(t, 1)
		prepare(w)
		if r := w.apply(cWarm(srv0, "op-warm", false)); r.Err == nil {
			t.Errorf("%s: it may wait in the ramdisk", name)
		}
	}
}

// After a restored backup nobody is believed to wait.
func TestRestoreForgetsWarmth(t *testing.T) {
	w, id := waiting(t, 1)
	w.ok(&logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{}}})
	if s := w.server(id); s.Warm.Waits() {
		t.Fatalf("%+v", s.Warm)
	}
	w.sound()
}

// A rack's setting survives a file that does not speak of it, and so does its
// being frozen.
func TestInventoryKeepsWarm(t *testing.T) {
	w := available(t, 1)
	w.ok(cRackWarm(rack1, 3))
	w.refused(cRackWarm(rack1, -2), metal.CodeInvalid)
	w.refused(cRackWarm("rack-9", 1), metal.CodeNotFound)
	w.ok(&logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{}}})
	in := rackInput(rack1, "r1", 10)
	in.Domain = "example.net"
	w.ok(cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{in}}))
	if r, _ := w.f.View().Rack(rack1); r.Warm != 3 || !r.Frozen || r.Domain != "example.net" {
		t.Errorf("%+v", r)
	}
	all := int64(metal.WarmAll)
	in.Warm = &all
	w.ok(cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{in}}))
	if r, _ := w.f.View().Rack(rack1); r.Warm != metal.WarmAll {
		t.Errorf("%+v", r)
	}
}

// Who is on because the system has switched it on is switched off before it is
// forgotten: retired, it is.
func TestForgetLeavesNobodyOn(t *testing.T) {
	retire := &logpb.Command{Command: &logpb.Command_RetireServer{RetireServer: &logpb.RetireServer{Server: ref(srv0)}}}
	hint := func(w *world, want string) {
		t.Helper()
		if r := w.apply(cForget(srv0)); r.Err == nil || r.Err.Code != metal.CodeBusy || r.Err.Hint != want {
			t.Errorf("%+v, want the hint %q", r.Err, want)
		}
		w.sound()
	}
	w := available(t, 1) // on its way into the ramdisk
	w.ok(cWarm(srv0, "op-warm", false))
	w.until("op-warm", metal.StepBootRamdisk)
	hint(w, "bmc inventory retire r1-u00000")
	w.finish("op-warm") // there
	hint(w, "bmc inventory retire r1-u00000")
	w.ok(retire)
	hint(w, "bmc explain r1-u00000")
	w.ok(cWarm(srv0, "op-cool", true))
	hint(w, "bmc operation watch op-cool")
	w.finish("op-cool")
	w.ok(cForget(srv0))
	w.sound()

	w, _ = waiting(t, 1) // its own operation gave way, and it is on
	w.ok(cWarm(srv0, "op-cool", true))
	w.ok(cObserve(&logpb.Observation{ServerId: srv0, Power: "on"}))
	w.ok(retire)
	hint(w, "bmc explain r1-u00000")
	w.ok(cWarm(srv0, "op-cool2", true)) // one that will not go off may be forgotten all the same
	w.failAt("op-cool2", metal.StepPowerOff, metal.CodeOOBUnreachable)
	w.ok(cForget(srv0))

	w, _ = waiting(t, 1) // a person sees to it
	w.ok(&logpb.Command{Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Server: ref(srv0), Hold: "parked", On: true}}})
	w.ok(cForget(srv0))
	w.sound()
}

// The system's own operation on a server whose controller's credentials change
// gives way: it works with those of before.
func TestNewCredentialsPreempt(t *testing.T) {
	w := available(t, 1)
	w.ok(cWarm(srv0, "op-warm", false))
	w.until("op-warm", metal.StepBootRamdisk)
	in := serverInput(0)
	in.Labels = []*logpb.Label{{Key: "row", Value: "b"}}
	w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}}))
	if o, _ := w.f.View().Operation("op-warm"); o.State.Ended() {
		t.Fatal("a label ends an operation")
	}
	in.Oob.Password = []byte("sealed anew")
	w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}}))
	if o, _ := w.f.View().Operation("op-warm"); o.State != metal.OperationCancelled || w.server(srv0).Operation != "" || w.server(srv0).State != metal.StateAvailable {
		t.Fatalf("%s, server %+v", o.State, w.server(srv0))
	}
	w.sound()
	w.ok(cWarm(srv0, "op-warm2", false)) // and begins anew
	w.finish("op-warm2")
	w.sound()
}
