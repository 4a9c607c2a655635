package dispatch

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// row is a rack with an agent at work: it renews its lease, and does each step of
// what it is assigned within two seconds.
type row struct {
	t       *testing.T
	s       *single
	d       *Dispatcher
	ramdisk string       // version that the agents serve
	broken  map[int]bool // servers that never reach the ramdisk
	stuck   bool         // no server goes off
	coming  int          // most servers ever on their way at once
	fewest  int          // least waiting since reset
	boots   int
}

// newRow has n servers enrolled, and the dispatcher at work.
func newRow(t *testing.T, n int) *row {
	r := &row{t: t, s: newCluster(t), ramdisk: "v1", broken: map[int]bool{}}
	apply := &logpb.ApplyInventory{}
	for i := 2; i <= n; i++ {
		apply.Servers = append(apply.Servers, &logpb.ServerInput{Id: id("srv", i), OperationId: id("op", i), Name: fmt.Sprintf("r1-u%02d", i), Rack: "r1",
			Macs: []string{fmt.Sprintf("52:54:00:00:00:%02x", i)}, Wipe: true,
			Oob: &logpb.OOB{Protocol: "ipmi", Address: fmt.Sprintf("10.78.1.%d", i), Username: "u", Password: []byte("sealed")}})
	}
	if n > 1 {
		r.s.must(&logpb.Command{Command: &logpb.Command_ApplyInventory{ApplyInventory: apply}})
	}
	r.d = New(r.s, nil)
	return r
}

// run lets time pass, with the agent at work.
func (r *row) run(d time.Duration) {
	r.t.Helper()
	for range d / time.Second {
		r.d.Note(rack1, Endpoint{Agent: id("agt", 1), Address: "10.77.1.1", HTTPPort: 80, TLSPort: 8443, Ramdisk: r.ramdisk})
		renew(r.t, r.d, id("agt", 1))
		r.work()
		coming := 0
		for o := range r.s.View().OpenOperations(rack1) {
			if o.Kind == metal.KindWarm {
				coming++
			}
		}
		r.coming, r.fewest = max(r.coming, coming), min(r.fewest, r.waiting())
		time.Sleep(time.Second)
		synctest.Wait()
	}
}

// work reports the next edge of each operation.
func (r *row) work() {
	v := r.s.View()
	for o := range v.OpenOperations(rack1) {
		if o.State != metal.OperationRunning {
			continue
		}
		s, _ := v.Server(o.ServerID)
		m := &logpb.ReportStep{OperationId: o.ID, Attempt: int64(o.Attempt), Epoch: o.Epoch, Sequence: o.Sequence + 1, Step: string(o.Current()), Phase: "started", AgentId: o.Agent}
		for _, st := range o.Steps {
			if st.Step == o.Current() && st.State == metal.StepRunning {
				m.Phase = "done"
			}
		}
		var n int
		_, _ = fmt.Sscanf(s.ID, "srv-%d", &n)
		if m.Phase == "done" {
			switch o.Current() {
			case metal.StepPowerOff:
				if r.stuck {
					m.Phase, m.Reason = "failed", string(metal.CodeOOBUnreachable)
				}
			case metal.StepBootRamdisk:
				r.boots++
				if m.BootId, m.Ramdisk = fmt.Sprintf("boot-%d", r.boots), r.ramdisk; r.broken[n] {
					m.Phase, m.Reason = "failed", string(metal.CodeNoNetboot)
				}
			case metal.StepInspect:
				m.Hardware = &logpb.Hardware{Serial: s.ID, Uuid: s.ID, Nics: []*logpb.NIC{{Mac: s.MACs[0]}}, Disks: []*logpb.Disk{{Name: "vda", Serial: s.ID}}}
			case metal.StepWipe:
				m.Wipes = []*logpb.WipeEvidence{{Disk: s.ID, Bytes: 1, BytesReadBack: 1}}
			}
		}
		res, err := r.s.Propose(context.Background(), &logpb.Command{Header: header(), Command: &logpb.Command_ReportStep{ReportStep: m}})
		if err != nil || res.Err != nil {
			r.t.Errorf("%s %s: %v, %v", m.Step, m.Phase, err, res.Err)
		}
	}
}

func (r *row) waiting() (n int) {
	for range r.s.View().Waiting(rack1, "") {
		n++
	}
	return n
}

// on is how many servers have power.
func (r *row) on() (n int) {
	for s := range r.s.View().Servers(state.ServerFilter{}) {
		if s.Power.Observed == metal.PowerOn {
			n++
		}
	}
	return n
}

func (r *row) warm(n int) {
	r.s.must(&logpb.Command{Command: &logpb.Command_SetRackWarm{SetRackWarm: &logpb.SetRackWarm{RackId: rack1, Warm: int64(n)}}})
}

func (r *row) want(waiting, on int) {
	r.t.Helper()
	if r.waiting() != waiting || r.on() != on {
		r.t.Fatalf("%d wait, %d are on, want %d and %d", r.waiting(), r.on(), waiting, on)
	}
}

func TestWarmAsManyAsShall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRow(t, 12)
		defer lead(r.d)()
		r.run(time.Minute)
		r.want(0, 0)
		r.warm(2)
		r.run(time.Minute)
		r.want(2, 2)
		// Who leaves for another purpose is replaced.
		for s := range r.s.View().Waiting(rack1, "") {
			r.s.must(&logpb.Command{Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Server: &logpb.ServerRef{ServerId: s.ID}, Hold: "cordoned", On: true}}})
			break
		}
		r.run(time.Minute)
		r.want(2, 2)
		r.coming = 0
		r.warm(metal.WarmAll)
		r.run(3 * time.Minute)
		r.want(11, 11) // all that may be rented
		if r.coming > warmAtOnce {
			t.Errorf("%d on their way at once", r.coming)
		}
		r.warm(3)
		r.run(3 * time.Minute)
		r.want(3, 3)
		for s := range r.s.View().Waiting(rack1, "") { // a retired one is switched off
			r.s.must(&logpb.Command{Command: &logpb.Command_RetireServer{RetireServer: &logpb.RetireServer{Server: &logpb.ServerRef{ServerId: s.ID}}}})
			break
		}
		r.run(time.Minute)
		r.want(3, 3)
		before := r.s.count("warm_server")
		r.run(time.Hour) // and then nothing happens
		if after := r.s.count("warm_server"); after != before {
			t.Errorf("%d operations in an hour of rest", after-before)
		}
		r.warm(0)
		r.run(time.Minute)
		r.want(0, 0)
	})
}

// Servers that wait move to the ramdisk that the agents serve, one after the
// other, and only when the agents agree.
func TestWarmMovesToTheNewRamdisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRow(t, 5)
		defer lead(r.d)()
		r.warm(metal.WarmAll)
		r.run(3 * time.Minute)
		r.want(5, 5)
		other := func(version string) {
			r.d.Note(rack1, Endpoint{Agent: id("agt", 2), Address: "10.77.1.2", HTTPPort: 80, TLSPort: 8443, Ramdisk: version})
		}
		outdated := func() (n int) {
			for s := range r.s.View().Waiting(rack1, "") {
				if s.Warm.Ramdisk != "v2" {
					n++
				}
			}
			return n
		}
		other("v1")
		r.ramdisk, r.fewest = "v2", 5
		r.run(time.Minute)
		if outdated() != 5 {
			t.Fatal("moved while the rack's agents serve different ones")
		}
		other("v2")
		r.run(2 * time.Minute)
		if r.want(5, 5); outdated() != 0 || r.fewest < 4 {
			t.Errorf("%d are left behind; at least %d waited", outdated(), r.fewest)
		}
		before := r.s.count("warm_server")
		r.run(time.Hour)
		if after := r.s.count("warm_server"); after != before {
			t.Errorf("%d more operations", after-before)
		}
		// A ramdisk that never calls itself what it should is not booted for ever.
		s := r.s.View()
		for srv := range s.Waiting(rack1, "") {
			r.s.must(&logpb.Command{Command: &logpb.Command_Observe{Observe: &logpb.Observe{RackId: rack1, Observations: []*logpb.Observation{{ServerId: srv.ID, WarmLost: srv.Warm.BootID}}}}})
			break
		}
		r.run(5 * time.Minute)
		r.want(5, 5)
	})
}

// A server that will not come warm is tried a few times, with growing pauses,
// then left in peace, switched off.
func TestWarmGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRow(t, 2)
		defer lead(r.d)()
		r.run(time.Minute)
		r.broken[2] = true
		r.warm(metal.WarmAll)
		r.run(4 * time.Hour)
		s, _ := r.s.View().Server(id("srv", 2))
		if _, raised := s.Conditions[metal.ConditionWarmFailed]; s.State != metal.StateAvailable || s.Warm.Tries != metal.MaxWarmTries || !raised {
			t.Fatalf("%s, %+v", s.State, s.Warm)
		}
		tries := 0
		for o := range r.s.View().OperationsOf(s.ID) {
			if o.Kind == metal.KindWarm {
				tries++
			}
		}
		if tries != metal.MaxWarmTries {
			t.Errorf("%d tries", tries)
		}
		r.s.must(&logpb.Command{Command: &logpb.Command_Observe{Observe: &logpb.Observe{RackId: rack1, Observations: []*logpb.Observation{{ServerId: s.ID, Power: "on"}}}}})
		r.run(time.Minute)
		r.want(1, 1) // the other one
		before := r.s.count("warm_server")
		r.run(2 * time.Hour)
		if after := r.s.count("warm_server"); after != before {
			t.Errorf("%d more operations", after-before)
		}
		r.broken[2] = false
		r.warm(metal.WarmAll) // somebody has mended it
		r.run(time.Minute)
		r.want(2, 2)
	})
}

// Whose place another has taken is not left on: one whose ramdisk was lost, and
// one that would not go off at first.
func TestWarmLeavesNobodyOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRow(t, 4)
		defer lead(r.d)()
		observe := func(ob *logpb.Observation) {
			r.s.must(&logpb.Command{Command: &logpb.Command_Observe{Observe: &logpb.Observe{RackId: rack1, Observations: []*logpb.Observation{ob}}}})
		}
		first := func() *metal.Server {
			for s := range r.s.View().Waiting(rack1, "") {
				return s
			}
			t.Fatal("nobody waits")
			return nil
		}
		r.warm(2)
		r.run(time.Minute)
		r.want(2, 2)
		s := first()
		observe(&logpb.Observation{ServerId: s.ID, WarmLost: s.Warm.BootID})
		r.run(3 * time.Minute)
		r.want(2, 2)

		r.stuck = true
		r.warm(1)
		r.run(20 * time.Second)
		r.want(1, 2)
		r.stuck = false
		r.run(10 * time.Minute)
		r.want(1, 1)
		before := r.s.count("warm_server")
		r.run(time.Hour)
		if after := r.s.count("warm_server"); after != before {
			t.Errorf("%d more operations", after-before)
		}
	})
}
