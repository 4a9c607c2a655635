package fsm

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
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

// An agent that was cut off before the backup was made knows each server, and nothing of
// what became of them since: another has rented them out. Its word thaws nothing.
func TestReconcileByOneThatWasCutOff(t *testing.T) {
	for _, tt := range []struct {
		name   string
		told   func(backup uint64) *uint64
		frozen bool
	}{
		{"before the backup", func(b uint64) *uint64 { b--; return &b }, true},
		{"long before", func(uint64) *uint64 { return new(uint64) }, true},
		{"not until the backup was made", func(b uint64) *uint64 { return &b }, false},
		{"nobody knows, it is of older software", func(uint64) *uint64 { return nil }, false},
	} {
		w := restored(t)
		rack, _ := w.f.View().Rack(rack1)
		c := cReconcile(w, known("srv-00000", "active", "web-1"), known("srv-00001", "available", "srv-00001"))
		for _, k := range c.GetReconcileRack().GetServers() {
			k.Revision = 1
		}
		c.GetReconcileRack().Revision = tt.told(rack.FrozenAt)
		if r := w.ok(c); r.Value != tt.frozen {
			t.Errorf("cut off %s: frozen %v", tt.name, r.Value)
		}
		if now, _ := w.f.View().Rack(rack1); now.Frozen != tt.frozen {
			t.Errorf("cut off %s: %+v", tt.name, now)
		}
		if err := sound(w.f.View()); err != nil {
			t.Error(err)
		}
	}
}

// toldOf is what an agent that follows the rack knows of its servers.
func toldOf(w *world) []*logpb.KnownServer {
	var out []*logpb.KnownServer
	for s := range w.f.View().Servers(state.ServerFilter{RackID: rack1}) {
		k := &logpb.KnownServer{ServerId: s.ID, Name: s.Name, State: string(s.State), Hostname: s.Name, Revision: s.Revision}
		if s.Rental != nil && !s.Rental.Released {
			k.Hostname = s.Rental.Name
		}
		out = append(out, k)
	}
	return out
}

func cRaise(m *logpb.RaiseGeneration) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: m}}
}

// load puts a state in the place of the world's, as raft does with a snapshot.
func (w *world) load(v *state.View) {
	w.t.Helper()
	var b bytes.Buffer
	if err := WriteSnapshot(&b, v); err != nil {
		w.t.Fatal(err)
	}
	if err := w.f.Restore(io.NopCloser(&b)); err != nil {
		w.t.Fatal(err)
	}
	w.idx = v.Revision()
}

// Ways in which a backup comes to count, after which the rack's lease is free.
var restores = map[string]func(w *world, backup *state.View){
	"onto a running cluster": func(w *world, backup *state.View) {
		w.t.Helper()
		// As controlplane/rpc does it: raised outside of the log, far above all that
		// was ever read, and once more in it.
		raise := &logpb.RaiseGeneration{AtLeast: w.f.View().Meta().Generation + 1, FeatureLevel: FeatureLevel}
		v, r, err := Advance(backup, w.f.View().Revision()+1<<20, w.by(cRaise(raise)))
		if err != nil || r.Err != nil {
			w.t.Fatal(err, r.Err)
		}
		w.load(v)
		w.ok(cRaise(raise))
	},
	"from a file": func(w *world, backup *state.View) {
		w.t.Helper()
		w.load(backup)
		w.ok(cRaise(&logpb.RaiseGeneration{AtLeast: w.f.View().Meta().Generation + 16, FeatureLevel: FeatureLevel}))
	},
}

// Whatever changed a server's row while its rack was frozen: what the agent knew
// is compared with the row of the backup. A machine that was rented after the
// backup is never given to another.
func TestReconcileComparesWithTheBackup(t *testing.T) {
	observe := func(ob *logpb.Observation) func(w *world) {
		return func(w *world) { ob.ServerId = srv1; w.ok(cObserve(ob)) }
	}
	frozen := map[string]func(w *world){
		"nothing":     func(*world) {},
		"a power":     observe(&logpb.Observation{Power: "on"}),
		"a condition": observe(&logpb.Observation{Raised: []string{string(metal.ConditionOOBUnreachable)}}),
		"a hold": func(w *world) {
			w.ok(&logpb.Command{Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Server: ref(srv1), Hold: string(metal.HoldCordoned), On: true}}})
		},
		"a lease": func(w *world) {
			rack, _ := w.f.View().Rack(rack1)
			w.ok(cGrant(rack1, "", rack.Lease.Epoch))
			w.ok(cGrant(rack1, agt1, rack.Lease.Epoch+1))
		},
		"the warmth that is wanted": func(w *world) { w.ok(cRackWarm(rack1, 2)) },
		"the inventory": func(w *world) {
			in := serverInput(1)
			in.Labels = []*logpb.Label{{Key: "row", Value: "4"}}
			w.ok(cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}}))
			rack := rackInput(rack1, "r1", 10)
			rack.Domain = "example.org"
			w.ok(cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{rack}}))
		},
		"another restore of the same backup": nil,
	}
	for how, restore := range restores {
		for _, warm := range []bool{false, true} {
			for what, meanwhile := range frozen {
				t.Run(fmt.Sprintf("%s, warm %v, %s", how, warm, what), func(t *testing.T) {
					w := available(t, 2)
					w.ok(cCreate("op-deploy", "web-1"))
					w.finish("op-deploy")
					if warm {
						w.ok(cRackWarm(rack1, 1))
						w.ok(cWarm(srv1, "op-warm", false))
						w.finish("op-warm")
					}
					backup := w.f.View()
					w.ok(cCreate("op-later", "web-2"))
					w.finish("op-later")
					told := toldOf(w)
					if told[1].GetState() != "active" || told[1].GetHostname() != "web-2" {
						t.Fatalf("%v", told)
					}
					restore(w, backup)
					w.state(srv1, metal.StateAvailable)
					if meanwhile == nil {
						restore(w, backup)
					}
					rack, _ := w.f.View().Rack(rack1)
					if !rack.Frozen || rack.FrozenAt != backup.Revision() {
						t.Fatalf("%+v, the backup is of revision %d", rack, backup.Revision())
					}
					w.ok(cGrant(rack1, agt1, rack.Lease.Epoch))
					if meanwhile != nil {
						meanwhile(w)
					}
					if r := w.ok(cReconcile(w, told...)); r.Value != false {
						t.Fatalf("still frozen: %+v", r)
					}
					w.state(srv0, metal.StateActive)
					w.state(srv1, metal.StateQuarantined)
					if rack, _ := w.f.View().Rack(rack1); rack.Frozen || rack.FrozenAt != 0 || !rack.FrozenSince.IsZero() {
						t.Errorf("%+v", rack)
					}
					w.sound()
				})
			}
		}
	}
}

// A backup of before the feature level rose is reconciled as well as any.
func TestReconcileABackupOfALowerLevel(t *testing.T) {
	for how, restore := range restores {
		t.Run(how, func(t *testing.T) {
			w, id := waiting(t, 1)
			old := w.f.View().Begin()
			old.SetMeta(old.Meta().ClusterID, old.Meta().Generation, BackupLevel-1)
			backup := old.Commit()
			w.ok(cCreate("op-later", "web-2"))
			w.finish("op-later")
			told := toldOf(w)
			restore(w, backup)
			rack, _ := w.f.View().Rack(rack1)
			w.ok(cGrant(rack1, agt1, rack.Lease.Epoch))
			w.ok(cReconcile(w, told...))
			w.state(id, metal.StateQuarantined)
			if got := w.f.View().Meta().FeatureLevel; got != FeatureLevel {
				t.Errorf("feature level %d", got)
			}
		})
	}
	w := available(t, 1)
	w.refused(cRaise(&logpb.RaiseGeneration{FeatureLevel: FeatureLevel + 1}), metal.CodeInvalid)
}

// A backup that was taken while its rack was frozen freezes it anew: what was put
// aside before that backup may have been rented after it.
func TestRestoreOfABackupOfAFrozenRack(t *testing.T) {
	for how, restore := range restores {
		for _, below := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, first frozen below the level %v", how, below), func(t *testing.T) {
				w := available(t, 2)
				first := w.f.View()
				w.ok(cCreate("op-later", "web-2"))
				w.finish("op-later")
				later := toldOf(w)
				restore(w, first)
				if below {
					x := w.f.View().Begin()
					rack, _ := x.Rack(rack1)
					old := *rack
					old.FrozenAt, old.FrozenSince = 0, time.Time{}
					x.PutRack(&old)
					w.load(x.Commit())
				}
				rack, _ := w.f.View().Rack(rack1)
				w.ok(cGrant(rack1, agt1, rack.Lease.Epoch))
				if r := w.ok(cReconcile(w, later[0])); r.Value != true {
					t.Fatal("it was thawed without the second server")
				}
				w.state(srv0, metal.StateQuarantined)
				backup := w.f.View()
				restore(w, backup)
				rack, _ = w.f.View().Rack(rack1)
				oldest := min(w.server(srv0).Revision, w.server(srv1).Revision)
				switch {
				case !rack.Frozen || !rack.FrozenSince.After(backup.Meta().Time):
					t.Errorf("frozen since %s, the backup is of %s", rack.FrozenSince, backup.Meta().Time)
				case !below && rack.FrozenAt != first.Revision() || below && rack.FrozenAt != oldest:
					t.Errorf("frozen at %d, the first backup is of %d, the oldest row of %d", rack.FrozenAt, first.Revision(), oldest)
				}
				w.ok(cGrant(rack1, agt1, rack.Lease.Epoch))
				w.ok(cReconcile(w, later...))
				if s := w.server(srv0); s.State != metal.StateQuarantined || !s.Failure.At.After(rack.FrozenSince) {
					t.Errorf("it was not compared with what the agent knew after this backup: %s, %+v", s.State, s.Failure)
				}
				w.sound()
			})
		}
	}
}

// Below its level a restore leaves the rows that older replicas would.
func TestFreezeBelowItsLevel(t *testing.T) {
	w, _ := waiting(t, 1)
	old := w.f.View().Begin()
	old.SetMeta(old.Meta().ClusterID, old.Meta().Generation, BackupLevel-1)
	w.load(old.Commit())
	w.ok(cRaise(&logpb.RaiseGeneration{AtLeast: 1}))
	if rack, _ := w.f.View().Rack(rack1); !rack.Frozen || rack.FrozenAt != 0 || !rack.FrozenSince.IsZero() {
		t.Errorf("%+v", rack)
	}
	w.ok(cRaise(&logpb.RaiseGeneration{AtLeast: 1}))
	if got := w.f.View().Meta().Generation; got != 2 {
		t.Errorf("generation %d", got)
	}
}

// The generation is raised once for one restore, and said once.
func TestRestoreRaisesOnce(t *testing.T) {
	w := available(t, 1)
	backup := w.f.View()
	restores["onto a running cluster"](w, backup)
	if got := w.f.View().Meta().Generation; got != backup.Meta().Generation+1 {
		t.Errorf("generation %d after %d", got, backup.Meta().Generation)
	}
	said := 0
	for e := range w.f.View().Events(0, 0) {
		if e.Kind == "cluster.restored" {
			said++
		}
	}
	if said != 1 {
		t.Errorf("said %d times", said)
	}
}

// While the rack stays frozen its agent tells again: who was put aside stays as a
// person has left it, and what came into the rack since is missed by nobody.
func TestReconcileAgain(t *testing.T) {
	w := available(t, 3)
	backup := w.f.View()
	w.ok(cCreate("op-later", "web-2"))
	w.finish("op-later")
	told := toldOf(w)
	restores["onto a running cluster"](w, backup)
	rack, _ := w.f.View().Rack(rack1)
	w.ok(cGrant(rack1, agt1, rack.Lease.Epoch))
	if r := w.ok(cReconcile(w, told[:2]...)); r.Value != true {
		t.Fatal("it was thawed without the third server")
	}
	w.state(srv0, metal.StateQuarantined)
	w.ok(&logpb.Command{Command: &logpb.Command_RetireServer{RetireServer: &logpb.RetireServer{Server: ref(srv0)}}})
	was := w.server(srv0)
	if r := w.ok(cReconcile(w, told...)); r.Value != false {
		t.Fatal("still frozen")
	}
	if s := w.server(srv0); s.State != metal.StateRetired || s.Revision != was.Revision {
		t.Errorf("%+v", s)
	}
	w.sound()
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
