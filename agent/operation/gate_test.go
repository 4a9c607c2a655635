package operation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmc/agent/boot"
	"bmc/agent/oob"
	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// bench is a rack of servers at one agent. wired says whose machine answers at
// whose controller.
type bench struct {
	t      *testing.T
	worlds []*world
	wired  []int
	svc    *boot.Service
	m      *Manager
}

func newBench(t *testing.T, wired ...int) *bench {
	testCA(t)
	b := &bench{t: t, wired: wired}
	for i := range wired {
		w := newWorld(t)
		w.spec.Id, w.spec.Name = fmt.Sprintf("srv-%d", i), fmt.Sprintf("r1-u%02d", i+1)
		w.spec.Macs, w.spec.Oob.Address = []string{fmt.Sprintf("52:54:00:00:00:0%d", i+1)}, fmt.Sprintf("10.78.0.1%d", i+1)
		b.worlds = append(b.worlds, w)
	}
	first := b.worlds[0].start() // for its Ramdisk service
	first.Close()
	b.svc = b.worlds[0].service
	for _, w := range b.worlds {
		w.service, w.services = b.svc, []*boot.Service{b.svc}
	}
	m, err := NewManager(journals(t), Deps{
		Server: func(id string) (*agentv1.ServerSpec, bool) {
			i := b.index(id)
			return b.worlds[i].spec, true
		},
		OOB:   func(s *agentv1.ServerSpec) oob.Controller { return controller{b.worlds[wired[b.index(s.GetId())]]} },
		Lease: b.worlds[0], Ramdisks: sessions{b.svc}, Strange: b, Reporter: b, Now: clock, Log: discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.m = m
	return b
}

func (b *bench) index(id string) int {
	return slices.IndexFunc(b.worlds, func(w *world) bool { return w.spec.Id == id })
}

func (b *bench) Report(ctx context.Context, rep *agentv1.ReportStepRequest) error {
	i := slices.IndexFunc(b.worlds, func(w *world) bool { return strings.HasSuffix(rep.OperationId, w.spec.Id) })
	return b.worlds[i].Report(ctx, rep)
}

func (b *bench) Since(serverID string, t time.Time) map[string]Stranger {
	out := make(map[string]Stranger)
	for _, w := range b.worlds {
		if w.spec.Id != serverID && w.Seen("", t) && !b.svc.Expected(w.spec.Macs[0]) {
			out[w.spec.Macs[0]] = Stranger{Name: w.spec.Name, State: metal.StateEnrolling}
		}
	}
	return out
}

func (b *bench) Seen(serverID string, t time.Time) bool {
	return b.worlds[b.index(serverID)].Seen("", t)
}
func (b *bench) Rack(string) string               { return "r1" }
func (b *bench) SharesController(string) []string { return nil }

// enrol enrols the first n servers at once and returns how long it took.
func (b *bench) enrol(n int) time.Duration {
	b.t.Helper()
	began := time.Now()
	var all []*agentv1.Assignment
	for i := range n {
		all = append(all, b.begin(i))
	}
	b.finish(all...)
	return time.Since(began)
}

// begin assigns a server's enrolment.
func (b *bench) begin(i int) *agentv1.Assignment {
	w := b.worlds[i]
	a := w.assignment(metal.KindEnroll)
	a.OperationId, a.ServerId = "op-"+w.spec.Id, w.spec.Id
	b.m.Assign(a)
	return a
}

// finish waits for the ends and stops everything.
func (b *bench) finish(all ...*agentv1.Assignment) {
	b.t.Helper()
	for _, a := range all {
		waitEnd(b.t, b.m, a)
	}
	b.m.Close()
	for _, w := range b.worlds {
		w.shutdown()
	}
}

// mismatched checks that an enrolment ended without a task.
func (b *bench) mismatched(i int, says ...string) {
	b.t.Helper()
	w := b.worlds[i]
	last := w.last()
	if last.GetReason() != string(metal.CodeBMCMismatch) || len(w.machine.tasks) != 0 {
		b.t.Fatalf("server %d: %v, tasks %v", i, w.told(), w.machine.tasks)
	}
	for _, s := range says {
		if !strings.Contains(last.GetMessage(), s) {
			b.t.Errorf("server %d: %q lacks %q", i, last.GetMessage(), s)
		}
	}
}

// walked checks that an enrolment went well, but for waits.
func (b *bench) walked(i int) (waits int) {
	b.t.Helper()
	w := b.worlds[i]
	told := slices.DeleteFunc(w.told(), func(s string) bool { return strings.HasSuffix(s, " waiting") })
	if !slices.Equal(told, edges(metal.KindEnroll)) || !slices.Equal(w.machine.tasks, []string{"Inspect", "Wipe"}) {
		b.t.Errorf("server %d: %v, tasks %v", i, w.told(), w.machine.tasks)
	}
	for _, r := range w.reports {
		if r.Phase == "waiting" {
			waits++
		}
	}
	return waits
}

func TestSwappedControllersAtOnce(t *testing.T) {
	for _, wired := range [][]int{{1, 0}, {1, 2, 0}} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, wired...)
			for _, w := range b.worlds {
				w.machine.on = true
			}
			took := b.enrol(len(wired))
			if limit := time.Duration(len(wired)) * 150 * time.Second; took > limit {
				t.Errorf("took %s, want at most %s", took, limit)
			}
			for i, w := range b.worlds {
				other := b.worlds[wired[i]].spec
				b.mismatched(i, w.spec.Oob.Address, w.spec.Name, w.spec.Macs[0], other.Name, other.Macs[0])
				if w.machine.on {
					t.Errorf("server %d was left on", i)
				}
			}
		})
	}
}

func TestOneWrongControllerBesideRightOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, 1, 2) // the first has the third's
		b.enrol(2)
		b.mismatched(0, "r1-u03")
		b.walked(1)
	})
}

func TestRightControllersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0, 1, 2)
		took := b.enrol(3)
		for i := range b.worlds {
			b.walked(i)
		}
		if took > 3*time.Minute {
			t.Errorf("took %s: only the power-ons are to wait for each other", took)
		}
	})
}

// The others wait behind a machine that never boots, and say so often enough
// for their steps not to run out of time.
func TestWaitingBehindADeadMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0, 1)
		b.worlds[0].machine.faults.deadBoots = 99
		dead := b.begin(0)
		for !b.worlds[0].look().on { // it holds the gate
			time.Sleep(time.Second)
		}
		b.finish(dead, b.begin(1))
		if last := b.worlds[0].last(); last.GetReason() != string(metal.CodeNoNetboot) {
			t.Errorf("the dead one: %v", last)
		}
		if waits := b.walked(1); waits < 3 {
			t.Errorf("%d words of waiting", waits)
		}
	})
}

// A machine that is on all the time and boots from the network by chance right
// after a power-on of another: it still calls when its controller reads off.
func TestMachineThatDoesNotGoOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1, 0)
		w := b.worlds[0]
		ctx, cancel := context.WithCancel(t.Context())
		w.machine.stop = cancel
		w.machine.wg.Go(func() {
			_ = sleep(ctx, 5*time.Second)
			w.mu.Lock()
			w.machine.seen = clock()
			w.mu.Unlock()
			w.runRamdisk(ctx)
		})
		b.enrol(1)
		if last := w.last(); last.GetReason() != string(metal.CodeBMCMismatch) || last.GetStep() != string(metal.StepPowerOffEnd) {
			t.Errorf("last report %v", last)
		}
	})
}
