package fsm

import (
	"slices"
	"testing"

	"bmc/fsm/logpb"
	"bmc/metal"
)

func cCancel(op, server, next string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_CancelOperation{CancelOperation: &logpb.CancelOperation{
		OperationId: op, FollowUpId: next, Server: ref(server)}}}
}

// Every kind of operation is cancelled while it waits and at every step.
func TestCancelAtEveryStep(t *testing.T) {
	const id = "srv-00000"
	for _, tt := range []struct {
		kind  metal.OperationKind
		world func(testing.TB) *world
		start *logpb.Command // nil: runs already
		op    string
		want  func(metal.Step) metal.State // "": refused
	}{
		{metal.KindEnroll, func(t testing.TB) *world { return furnished(t, 1) }, nil, "op-enroll00000", func(s metal.Step) metal.State {
			if s == metal.StepWipe || s == metal.StepPowerOffEnd {
				return metal.StateQuarantined
			}
			return metal.StateFailed
		}},
		{metal.KindDeploy, func(t testing.TB) *world { return available(t, 1) }, cCreate("op-x", "web-1"), "op-x", func(metal.Step) metal.State { return metal.StateCleaning }},
		{metal.KindRestart, deployed, &logpb.Command{Command: &logpb.Command_RestartServer{RestartServer: &logpb.RestartServer{Server: ref(id), OperationId: "op-x"}}}, "op-x",
			func(metal.Step) metal.State { return metal.StateActive }},
		{metal.KindPower, deployed, &logpb.Command{Command: &logpb.Command_SetPower{SetPower: &logpb.SetPower{Server: ref(id), OperationId: "op-x", Wanted: "off"}}}, "op-x",
			func(metal.Step) metal.State { return metal.StateActive }},
		{metal.KindInspect, func(t testing.TB) *world { return available(t, 1) }, &logpb.Command{Command: &logpb.Command_InspectServer{InspectServer: &logpb.InspectServer{Server: ref(id), OperationId: "op-x"}}}, "op-x",
			func(metal.Step) metal.State { return metal.StateFailed }},
		{metal.KindClean, func(t testing.TB) *world { return available(t, 1) }, &logpb.Command{Command: &logpb.Command_CleanServer{CleanServer: &logpb.CleanServer{Server: ref(id), OperationId: "op-x"}}}, "op-x",
			func(metal.Step) metal.State { return metal.StateQuarantined }},
		{metal.KindRelease, deployed, cDestroy("op-x", id), "op-x", func(s metal.Step) metal.State {
			if s == metal.StepPowerOff || s == "" {
				return "" // the tenant is gone, the machine may still run: nothing to go back to
			}
			return metal.StateQuarantined
		}},
	} {
		for _, step := range append([]metal.Step{""}, metal.Plan(tt.kind)...) {
			t.Run(string(tt.kind)+"/"+string(step), func(t *testing.T) {
				w := tt.world(t)
				if tt.start != nil {
					w.ok(clone(tt.start))
				}
				var stale *logpb.ReportStep
				if step != "" {
					w.until(tt.op, step)
					stale = w.report(tt.op, phaseDone)
				}
				cancel := cCancel(tt.op, id, "op-next")
				want := tt.want(step)
				if want == "" {
					w.refused(cancel, metal.CodeWrongState)
					return
				}
				r := w.ok(cancel)
				w.state(id, want)
				if o, _ := w.f.View().Operation(tt.op); o.State != metal.OperationCancelled || o.Ended.IsZero() || o.Failure.Reason != metal.CodeCancelled {
					t.Fatalf("%+v", o)
				}
				if stale != nil {
					w.refused(cReport(stale), metal.CodeStaleAttempt)
				}
				w.refused(cCancel(tt.op, id, "op-more"), metal.CodeWrongState)
				if tt.kind == metal.KindDeploy {
					if r.OperationID != "op-next" || w.server(id).Rental != nil {
						t.Fatalf("%+v, rental %+v", r, w.server(id).Rental)
					}
					w.finish("op-next")
					w.state(id, metal.StateAvailable)
				}
				if err := sound(w.f.View()); err != nil {
					t.Fatal(err)
				}
				if want == metal.StateFailed || want == metal.StateQuarantined {
					r := w.ok(cRetry("op-again", id))
					w.finish(r.OperationID)
					w.state(id, metal.StateAvailable)
				}
			})
		}
	}
}

func TestCancelProtected(t *testing.T) {
	w := available(t, 1)
	w.ok(cCreate("op-x", "web-1"))
	w.ok(&logpb.Command{Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Server: ref("srv-00000"), Hold: "protected", On: true}}})
	w.refused(cCancel("op-x", "srv-00000", "op-y"), metal.CodeProtected)
	w.refused(cCancel("op-nine", "srv-00000", "op-y"), metal.CodeNotFound)
}

// What came with feature level 2 or later is refused by name at level 1.
func TestFeatureLevelGates(t *testing.T) {
	gated := []*logpb.Command{
		cCancel("op-x", "srv-00000", "op-y"),
		{Command: &logpb.Command_QuarantineServer{QuarantineServer: &logpb.QuarantineServer{}}},
		{Command: &logpb.Command_ReconcileRack{ReconcileRack: &logpb.ReconcileRack{}}},
		{Command: &logpb.Command_ThawRack{ThawRack: &logpb.ThawRack{}}},
		{Command: &logpb.Command_RegisterNode{RegisterNode: &logpb.RegisterNode{}}},
		cReport(&logpb.ReportStep{BootId: "b"}),
		cReport(&logpb.ReportStep{RootDisk: "d"}),
		cReport(&logpb.ReportStep{Phase: phaseBooted}),
	}
	three := []*logpb.Command{
		cReport(&logpb.ReportStep{BootMethod: metal.BootKexec}),
		{Command: &logpb.Command_SetModelKexec{SetModelKexec: &logpb.SetModelKexec{}}},
		{Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Hold: string(metal.HoldNoKexec)}}},
		cReport(&logpb.ReportStep{Ramdisk: "v1"}),
		cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{{Warm: new(int64)}}}),
		{Command: &logpb.Command_Observe{Observe: &logpb.Observe{Observations: []*logpb.Observation{{WarmLost: "boot"}}}}},
		{Command: &logpb.Command_SetRackWarm{SetRackWarm: &logpb.SetRackWarm{}}},
		{Command: &logpb.Command_WarmServer{WarmServer: &logpb.WarmServer{}}},
	}
	four := []*logpb.Command{
		{Command: &logpb.Command_LendAddress{LendAddress: &logpb.LendAddress{}}},
		{Command: &logpb.Command_ReportDiscovered{ReportDiscovered: &logpb.ReportDiscovered{}}},
		{Command: &logpb.Command_ExpireLoans{ExpireLoans: &logpb.ExpireLoans{}}},
		{Command: &logpb.Command_AcceptIdentity{AcceptIdentity: &logpb.AcceptIdentity{}}},
	}
	five := []*logpb.Command{cSilent(), cCleared(rack1, 1)}
	six := []*logpb.Command{cTerm(7, cSilent()), cTerm(7, cGrant(rack1, agt1, 1)), cTerm(7, cCancel("op-x", "srv-00000", "op-y")),
		{Command: &logpb.Command_ReconcileRack{ReconcileRack: &logpb.ReconcileRack{Revision: new(uint64)}}},
		cFreeze("", rack1)}
	fields := (&logpb.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("command").Fields()
	seen := map[string]bool{}
	for level, cs := range map[uint32][]*logpb.Command{2: gated, 3: three, 4: four, 5: five, 6: six} {
		for _, c := range cs {
			seen[Name(c)] = true
			if got := featureLevel(c); got != level {
				t.Errorf("%s: level %d, want %d", Name(c), got, level)
			}
		}
	}
	for i := range fields.Len() {
		if f := fields.Get(i); f.Number() >= 50 && !seen[string(f.Name())] {
			t.Errorf("%s is not gated", f.Name())
		}
	}
	w := newWorld(t)
	w.ok(cInit())
	w.amidUpgrade()
	for _, c := range slices.Concat(gated, three, four, five, six) {
		if e := w.refused(c, metal.CodeWrongState); e.Hint != "bmc cluster raise-feature-level" {
			t.Errorf("%s: %+v", Name(c), e)
		}
	}
	w.ok(&logpb.Command{Command: &logpb.Command_RegisterFeatureLevel{RegisterFeatureLevel: &logpb.RegisterFeatureLevel{NodeId: "node-1", Level: 2}}})
	w.ok(&logpb.Command{Command: &logpb.Command_RaiseFeatureLevel{RaiseFeatureLevel: &logpb.RaiseFeatureLevel{Level: 2}}})
	w.refused(gated[0], metal.CodeNotFound)
}

// amidUpgrade takes the cluster to feature level 1: some replicas may be of a
// version that knows no more.
func (w *world) amidUpgrade() {
	v := w.f.View()
	x := v.Begin()
	x.SetMeta(v.Meta().ClusterID, 0, 1)
	w.f.publish(x.Commit(), false)
}

// Rows that level 1 writes have no field that came later: replicas of both
// versions have the same state.
func TestRowsAmidUpgrade(t *testing.T) {
	w := available(t, 1)
	w.amidUpgrade()
	w.ok(cCreate("op-x", "web-1"))
	w.until("op-x", metal.StepBootRamdisk)
	w.ok(cReport(w.report("op-x", phaseDone)))
	o, _ := w.f.View().Operation("op-x")
	if o.ReportedEpoch != 0 || !o.Queued.IsZero() || o.BootID != "" {
		t.Errorf("%+v", o)
	}
	for e := range w.f.View().Audit(0) {
		if e.Command == "create_server" && e.ObjectID != "" {
			t.Errorf("%+v", e)
		}
	}
}

// The boot that counts travels with the operation, over takeovers, not retries.
func TestBootID(t *testing.T) {
	w := available(t, 1)
	w.ok(cCreate("op-x", "web-1"))
	w.until("op-x", metal.StepBootRamdisk)
	done := w.report("op-x", phaseDone)
	done.BootId = "boot-1"
	w.ok(cReport(done))
	early := w.report("op-x", phaseBooted)
	early.BootId = "boot-2"
	w.refused(cReport(early), metal.CodeConflict) // write-image has not started
	w.ok(cReport(w.report("op-x", phaseStarted)))
	again := w.report("op-x", phaseBooted)
	w.refused(cReport(again), metal.CodeInvalid) // which boot?
	again.BootId = "boot-2"
	w.ok(cReport(again))
	disk := w.report("op-x", phaseDone)
	disk.RootDisk = "wwn-1"
	w.ok(cReport(disk))
	w.ok(cGrant(rack1, "", 1))
	w.ok(cGrant(rack1, agt1, 2))
	w.assign("op-x")
	o, _ := w.f.View().Operation("op-x")
	if o.BootID != "boot-2" || o.RootDisk != "wwn-1" || o.Current() != metal.StepConfigure || o.ReportedEpoch != 1 || o.Epoch != 3 {
		t.Fatalf("after a takeover: %+v", o)
	}
	w.failAt("op-x", metal.StepConfigure, metal.CodeConfigureFailed)
	w.ok(cRetry("op-y", "srv-00000"))
	if o, _ := w.f.View().Operation("op-x"); o.BootID != "" || o.RootDisk != "" || o.ReportedEpoch != 0 || o.Attempt != 2 || !o.Queued.After(o.Created) {
		t.Fatalf("after a retry: %+v", o)
	}
}
