package fsm

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"bmc/fsm/logpb"
	"bmc/metal"
)

func cFreeze(why string, racks ...string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_FreezeRacks{FreezeRacks: &logpb.FreezeRacks{RackIds: racks, Reason: why}}}
}

func cThaw(racks ...string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_FreezeRacks{FreezeRacks: &logpb.FreezeRacks{RackIds: racks, Thaw: true}}}
}

// An operator freezes a rack: nothing new starts, what has begun ends, what waits waits.
func TestFreezeByHand(t *testing.T) {
	w := available(t, 3)
	stop := func() metal.Stop { r, _ := w.f.View().Rack(rack1); return r.Stop }
	w.ok(cCreate("op-run", "web-1"))
	w.until("op-run", metal.StepWriteImage)
	w.ok(cCreate("op-wait", "web-2"))
	w.refused(cFreeze("feed B"), metal.CodeInvalid)
	w.refused(cFreeze("feed B", rack1, "rack-none"), metal.CodeNotFound)
	w.refused(cFreeze(strings.Repeat("x", MaxReason+1), rack1), metal.CodeInvalid)
	if stop() != (metal.Stop{}) {
		t.Fatalf("what was refused has frozen it: %+v", stop())
	}
	w.ok(cFreeze("feed B", rack1))
	first := stop()
	if first.By == "" || first.Why != "feed B" || first.Since.IsZero() {
		t.Fatalf("%+v", first)
	}
	e := w.refused(cCreate("op-new", "web-3"), metal.CodeRackFrozen)
	if !strings.Contains(e.Message, first.By) || !strings.Contains(e.Message, "feed B") || e.Hint != "bmc cluster thaw r1" {
		t.Errorf("%s (%s)", e.Message, e.Hint)
	}
	r, _ := w.f.View().Rack(rack1)
	if err := Frozen(r); err.Message != e.Message {
		t.Errorf("people are told %q", err.Message)
	}
	assign := func(op string) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_AssignOperation{AssignOperation: &logpb.AssignOperation{OperationId: op, Attempt: 1, AgentId: agt1, Epoch: r.Lease.Epoch}}}
	}
	w.refused(assign("op-wait"), metal.CodeRackFrozen)
	// What has begun goes on, after a takeover, too.
	w.ok(cGrant(rack1, agt1, r.Lease.Epoch))
	r, _ = w.f.View().Rack(rack1)
	w.ok(assign("op-run"))
	w.finish("op-run")
	w.state(w.named("web-1").ID, metal.StateActive)

	w.ok(cFreeze("feed A", rack1)) // again, for another reason
	if s := stop(); s.Why != "feed A" || !s.Since.Equal(first.Since) {
		t.Errorf("%+v", s)
	}
	w.ok(cThaw(rack1))
	w.ok(cThaw(rack1)) // nothing to do
	if stop() != (metal.Stop{}) {
		t.Errorf("%+v", stop())
	}
	w.ok(assign("op-wait"))
	w.finish("op-wait")
	w.ok(cCreate("op-new", "web-3"))
	if err := sound(w.f.View()); err != nil {
		t.Fatal(err)
	}
}

// The end of a rental does not wait for the thaw: it is accepted, and its operation is
// begun then.
func TestFrozenByHandRentalsEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		deploy metal.Step // how far it came before the freeze; "-": it waits for an agent
		end    *logpb.Command
		want   metal.State
	}{
		"cancel what waits":        {"-", cCancel("op-x", "srv-00000", "op-end"), metal.StateCleaning},
		"cancel what runs":         {metal.StepWriteImage, cCancel("op-x", "srv-00000", "op-end"), metal.StateCleaning},
		"destroy what is deployed": {"", cDestroy("op-end", "srv-00000"), metal.StateReleasing},
	} {
		t.Run(name, func(t *testing.T) {
			w := available(t, 1)
			w.ok(cCreate("op-x", "web-1"))
			if tt.deploy != "-" {
				w.until("op-x", tt.deploy)
			}
			w.ok(cFreeze("feed B", rack1))
			w.ok(tt.end)
			w.state("srv-00000", tt.want)
			o, _ := w.f.View().Operation("op-end")
			if r, _ := w.f.View().Rack(rack1); o.State != metal.OperationPending || !r.HoldsBack(o) {
				t.Fatalf("%+v", o)
			}
			r, _ := w.f.View().Rack(rack1)
			w.refused(cAssign(o, agt1, r.Lease.Epoch), metal.CodeRackFrozen)
			w.ok(cThaw(rack1))
			w.finish("op-end")
			w.state("srv-00000", metal.StateAvailable)
			w.ok(cFreeze("", rack1))
			w.refused(&logpb.Command{Command: &logpb.Command_CleanServer{CleanServer: &logpb.CleanServer{Server: ref("srv-00000"), OperationId: "op-c"}}}, metal.CodeRackFrozen)
			if err := sound(w.f.View()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// What had begun before a backup begins from step one after it: an operator's freeze of
// the rack holds it back then.
func TestFrozenByHandBeginsAnew(t *testing.T) {
	w := available(t, 1)
	w.ok(cCreate("op-x", "web-1"))
	w.until("op-x", metal.StepWriteImage)
	w.ok(cFreeze("", rack1))
	w.ok(&logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{}}})
	r, _ := w.f.View().Rack(rack1)
	w.ok(cGrant(rack1, agt1, r.Lease.Epoch))
	w.ok(&logpb.Command{Command: &logpb.Command_ThawRack{ThawRack: &logpb.ThawRack{RackId: rack1}}})
	o, _ := w.f.View().Operation("op-x")
	r, _ = w.f.View().Rack(rack1)
	w.refused(cAssign(o, agt1, r.Lease.Epoch), metal.CodeRackFrozen)
	w.ok(cThaw(rack1))
	w.finish("op-x")
	w.state("srv-00000", metal.StateActive)
}

// However many racks are named, the audit's target is short.
func TestFreezeTargetIsBounded(t *testing.T) {
	w := available(t, 1)
	w.ok(cFreeze("", slices.Repeat([]string{rack1}, 1000)...))
	for e := range w.f.View().Audit(0) {
		if e.Command == "freeze_racks" && len(e.Target) > 1100 {
			t.Errorf("the target has %d bytes", len(e.Target))
		}
	}
}

// Two words freeze a rack, a restored backup's and an operator's, and each is taken
// back by its own. Both outlast a snapshot, and a change of the inventory.
func TestFreezeBesideABackup(t *testing.T) {
	w := restored(t)
	w.ok(cFreeze("", rack1))
	w.ok(cThaw(rack1))
	w.refused(cCreate("op-n", "web-2"), metal.CodeRackFrozen)
	w.ok(cFreeze("", rack1))
	w.ok(&logpb.Command{Command: &logpb.Command_ThawRack{ThawRack: &logpb.ThawRack{RackId: rack1}}})
	if e := w.refused(cCreate("op-n", "web-2"), metal.CodeRackFrozen); e.Hint != "bmc cluster thaw r1" {
		t.Errorf("%+v", e)
	}
	was, _ := w.f.View().Rack(rack1)
	var b bytes.Buffer
	if err := WriteSnapshot(&b, w.f.View()); err != nil {
		t.Fatal(err)
	}
	v, _, err := LoadSnapshot(&b)
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := v.Rack(rack1); r.Stop != was.Stop || !r.Stopped() {
		t.Errorf("after a snapshot: %+v, was %+v", r.Stop, was.Stop)
	}
	w.ok(cThaw(rack1))
	w.ok(cCreate("op-n", "web-2"))
}
