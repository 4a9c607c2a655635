package fsm

import (
	"bytes"
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
