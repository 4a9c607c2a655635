package fsm

import (
	"testing"

	"bmc/fsm/logpb"
	"bmc/metal"
)

// restored has two servers, one deployed, after a backup was restored; the
// agent holds the lease again.
func restored(t testing.TB) *world {
	w := available(t, 2)
	w.ok(cCreate("op-deploy", "web-1"))
	w.finish("op-deploy")
	w.ok(&logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{}}})
	rack, _ := w.f.View().Rack(rack1)
	if !rack.Frozen {
		t.Fatal("the rack is not frozen")
	}
	w.ok(cGrant(rack1, agt1, rack.Lease.Epoch))
	return w
}

func cReconcile(w *world, known ...*logpb.KnownServer) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_ReconcileRack{ReconcileRack: &logpb.ReconcileRack{RackId: rack1, AgentId: agt1,
		Generation: w.f.View().Meta().Generation, Servers: known}}}
}

func known(id, state, hostname string) *logpb.KnownServer {
	return &logpb.KnownServer{ServerId: id, Name: "r1-" + id, State: state, Hostname: hostname, Revision: 1 << 40}
}

func TestFrozenRack(t *testing.T) {
	w := restored(t)
	w.refused(cCreate("op-n", "web-2"), metal.CodeRackFrozen)
	w.refused(&logpb.Command{Command: &logpb.Command_RestartServer{RestartServer: &logpb.RestartServer{Server: ref("srv-00000"), OperationId: "op-r"}}}, metal.CodeRackFrozen)
	w.refused(cDestroy("op-d", "srv-00000"), metal.CodeRackFrozen)
	// An agent that remembers only one of them thaws nothing.
	if r := w.ok(cReconcile(w, known("srv-00000", "active", "web-1"))); r.Value != true {
		t.Fatalf("%+v", r)
	}
	w.refused(cCreate("op-n", "web-2"), metal.CodeRackFrozen)
	stale := cReconcile(w)
	stale.GetReconcileRack().Generation--
	w.refused(stale, metal.CodeStaleEpoch)
	w.ok(&logpb.Command{Command: &logpb.Command_ThawRack{ThawRack: &logpb.ThawRack{RackId: rack1}}})
	w.ok(cCreate("op-n", "web-2"))
}

func TestReconcile(t *testing.T) {
	const rented, free = "srv-00000", "srv-00001"
	for _, tt := range []struct {
		name             string
		rented, free     *logpb.KnownServer
		wantRented, want metal.State
	}{
		{"nothing happened since", known(rented, "active", "web-1"), known(free, "available", "srv-00001"), metal.StateActive, metal.StateAvailable},
		{"rented since", known(rented, "active", "web-1"), known(free, "active", "web-9"), metal.StateActive, metal.StateQuarantined},
		{"being deployed since", known(rented, "active", "web-1"), known(free, "deploying", "web-9"), metal.StateActive, metal.StateQuarantined},
		{"released since", known(rented, "available", "srv-00000"), known(free, "available", "srv-00001"), metal.StateFailed, metal.StateAvailable},
		{"changed hands since", known(rented, "active", "web-9"), known(free, "available", "srv-00001"), metal.StateFailed, metal.StateAvailable},
		{"rented and released since", known(rented, "active", "web-1"), known(free, "cleaning", "srv-00001"), metal.StateActive, metal.StateQuarantined},
		{"its wipe failed since", known(rented, "active", "web-1"), known(free, "failed", "srv-00001"), metal.StateActive, metal.StateQuarantined},
		{"quarantined since", known(rented, "active", "web-1"), known(free, "quarantined", "srv-00001"), metal.StateActive, metal.StateQuarantined},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := restored(t)
			if r := w.ok(cReconcile(w, tt.rented, tt.free)); r.Value != false {
				t.Fatalf("still frozen: %+v", r)
			}
			w.state(rented, tt.wantRented)
			w.state(free, tt.want)
			if err := sound(w.f.View()); err != nil {
				t.Fatal(err)
			}
			if tt.want == metal.StateAvailable {
				w.ok(cCreate("op-n", "web-2"))
				w.finish("op-n")
			}
		})
	}
	t.Run("what was known is older than the backup", func(t *testing.T) {
		w := restored(t)
		a, b := known(rented, "available", "srv-00000"), known(free, "active", "web-9")
		a.Revision, b.Revision = 1, 1
		w.ok(cReconcile(w, a, b))
		w.state(rented, metal.StateActive)
		w.state(free, metal.StateAvailable)
	})
}

// What was under way begins again as a new attempt; what the agent knew to have
// ended is put aside.
func TestReconcileUnderWay(t *testing.T) {
	for state, want := range map[string]metal.State{"deploying": metal.StateDeploying, "active": metal.StateFailed} {
		w := available(t, 1)
		w.ok(cCreate("op-x", "web-1"))
		w.until("op-x", metal.StepConfigure)
		w.ok(&logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{}}})
		rack, _ := w.f.View().Rack(rack1)
		w.ok(cGrant(rack1, agt1, rack.Lease.Epoch))
		o, _ := w.f.View().Operation("op-x")
		rack, _ = w.f.View().Rack(rack1)
		w.refused(cAssign(o, agt1, rack.Lease.Epoch), metal.CodeRackFrozen)
		w.ok(cReconcile(w, known("srv-00000", state, "web-1")))
		w.state("srv-00000", want)
		o, _ = w.f.View().Operation("op-x")
		if state == "active" {
			if o.State != metal.OperationCancelled || w.server("srv-00000").Failure.Reason != metal.CodeRestored {
				t.Fatalf("%+v", o)
			}
			continue
		}
		if o.Attempt != 1+attemptGap || o.Current() != metal.StepPowerOff {
			t.Fatalf("%+v", o)
		}
		w.finish("op-x")
		w.state("srv-00000", metal.StateActive)
	}
}

// An agent finds its journal by operation and attempt: what begins again after a
// restore has an attempt that no agent has a journal of, whoever thaws the rack,
// and however often the agent was asked before.
func TestAttemptsAfterARestore(t *testing.T) {
	tell := func(w *world, attempt int64, known ...*logpb.KnownServer) {
		c := cReconcile(w, known...)
		c.GetReconcileRack().Operations = []*logpb.KnownOperation{{OperationId: "op-x", Attempt: 1}, {OperationId: "op-x", Attempt: attempt}}
		w.ok(c)
	}
	deploying := known("srv-00000", "deploying", "web-1")
	for name, tt := range map[string]struct {
		thaw func(w *world)
		want int
	}{
		"the agent knows more":            {func(w *world) { tell(w, 5, deploying) }, 5 + attemptGap},
		"the agent knows nonsense":        {func(w *world) { tell(w, 1<<40, deploying) }, maxAttempts + attemptGap},
		"it does not remember the server": {func(w *world) { tell(w, 5); tell(w, 5) }, 1},
		"an operator": {func(w *world) {
			w.ok(&logpb.Command{Command: &logpb.Command_ThawRack{ThawRack: &logpb.ThawRack{RackId: rack1}}})
		}, 1 + attemptGap},
	} {
		for _, failed := range []bool{false, true} {
			w := available(t, 1)
			w.ok(cCreate("op-x", "web-1"))
			w.until("op-x", metal.StepConfigure)
			if failed {
				w.ok(&logpb.Command{Command: &logpb.Command_FailOperation{FailOperation: &logpb.FailOperation{OperationId: "op-x", Attempt: 1, Reason: "LOST"}}})
			}
			w.ok(&logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{}}})
			rack, _ := w.f.View().Rack(rack1)
			w.ok(cGrant(rack1, agt1, rack.Lease.Epoch))
			tt.thaw(w)
			if o, _ := w.f.View().Operation("op-x"); o.Attempt != tt.want {
				t.Errorf("%s, failed %v: attempt %d, want %d", name, failed, o.Attempt, tt.want)
			}
		}
	}
}
