package operation

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

const leaseGap = 17 * time.Second

// reassigned is the assignment that the control plane makes of the reports it
// has, under the present epoch.
func (w *world) reassigned() *agentv1.Assignment {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.assignment(w.strict)
	begun := make(map[string]*timestamppb.Timestamp)
	for _, r := range w.reports {
		a.ReportedEpoch, a.Recovery = r.Epoch, r.Recovery
		if r.Epoch == w.epoch {
			a.Sequence = r.Sequence
		}
		switch {
		case r.Phase == "started" && begun[r.Step] == nil:
			begun[r.Step] = r.At
		case r.Phase == "booted" || r.Phase == "done" && r.Step == string(metal.StepBootRamdisk):
			a.BootId = r.BootId
		}
		if r.Phase == "done" {
			a.DoneSteps = append(a.DoneSteps, r.Step)
			a.RootDisk += r.RootDisk
		}
	}
	if now := string(w.current()); begun[now] != nil {
		a.BegunStep, a.BegunAt = now, begun[now]
	} else {
		a.Recovery = nil
	}
	return a
}

// rented is a world at the beginning of a plan.
func rented(t *testing.T, kind metal.OperationKind) *world {
	w := newWorld(t)
	w.strict = kind
	w.machine.on, w.machine.ready, w.machine.forGood = kind != metal.KindDeploy && kind != metal.KindWarm, true, "disk"
	return w
}

// rentedWarm is a world whose server waits in the ramdisk for the operation.
func rentedWarm(t *testing.T, kind metal.OperationKind) *world {
	w := rented(t, kind)
	w.adopts = "boot-that-waits"
	w.wait()
	return w
}

// successor kills the agent, lets its lease run out, and brings up another one
// on a directory, which gets what the control plane knows.
func (w *world) successor(m *Manager, dir string) (*Manager, *agentv1.Assignment) {
	m.Close()
	w.mu.Lock()
	w.crash = nil
	epoch := w.epoch + 1
	w.mu.Unlock()
	w.setLease(false, epoch)
	time.Sleep(leaseGap)
	w.setLease(true, epoch)
	a := w.reassigned()
	m = w.startIn(dir)
	m.Assign(a)
	return m, a
}

func TestTakeoverAtEveryRecord(t *testing.T) {
	testCA(t)
	for _, kind := range []metal.OperationKind{metal.KindEnroll, metal.KindDeploy, metal.KindRelease, metal.KindRestart, metal.KindWarm} {
		takeoverAtEach(t, kind, rented)
	}
	takeoverAtEach(t, metal.KindDeploy, rentedWarm)
}

func takeoverAtEach(t *testing.T, kind metal.OperationKind, make func(*testing.T, metal.OperationKind) *world) {
	for n := range takeovers(t, kind, make, -1, false, -1) {
		takeovers(t, kind, make, n, false, -1)
		takeovers(t, kind, make, n, true, -1)
		takeovers(t, kind, make, n, true, 1+5*n%9)
	}
}

// takeovers has the first agent die around its nth record, and another one,
// that knows what the control plane knows, end the operation. If second is not
// negative, that one dies after so many records too, and the first comes back
// with its old journal. Whoever is not at it any more comes back at the end.
func takeovers(t *testing.T, kind metal.OperationKind, make func(*testing.T, metal.OperationKind) *world, n int, written bool, second int) (points int) {
	name := fmt.Sprintf("%s, record %d, written %v, then %d", kind, n, written, second)
	synctest.Test(t, func(t *testing.T) {
		w := make(t, kind)
		dirs := []string{journals(t), journals(t)}
		count, _ := crashAt(w, n, written)
		m := w.startIn(dirs[0])
		first := w.reassigned()
		m.Assign(first)
		waitEnd(t, m, first)
		points = count()
		lost := 0 // boots of the ramdisk that no agent could know
		unsure := func(a *agentv1.Assignment) {
			if w.adopts == "" && a.GetBegunStep() == string(metal.StepBootRamdisk) {
				lost++
			}
		}
		m, a := w.successor(m, dirs[1])
		unsure(a)
		if second >= 0 {
			m.Close()
			w.mu.Lock()
			crashAt(w, second, true)
			w.mu.Unlock()
			m = w.startIn(dirs[1])
			m.Assign(a)
			waitEnd(t, m, a)
			m, a = w.successor(m, dirs[0])
			unsure(a)
		}
		waitEnd(t, m, a)
		before := w.look()
		m.Close()
		m = w.startIn(dirs[0]) // back, and told by a node that is behind
		m.Assign(first)
		time.Sleep(40 * time.Second)
		m.Close()
		if after := w.look(); !slices.Equal(after.log, before.log) || !slices.Equal(after.tasks, before.tasks) {
			t.Errorf("%s: the one that came back acted: %v, %v", name, after.log, after.tasks)
		}
		w.shutdown()
		checkTakeover(t, w, name, lost)
	})
	return points
}

// checkTakeover checks that the plan ended, that every task ran once, and that
// the power was switched as without any death; but a boot whose hello was not
// in the log yet is begun anew.
func checkTakeover(t *testing.T, w *world, name string, lost int) {
	t.Helper()
	kind := w.strict
	want := map[metal.OperationKind]struct{ power, tasks []string }{
		metal.KindEnroll:  {[]string{"off", "on", "off"}, []string{"Inspect", "Wipe"}},
		metal.KindDeploy:  {[]string{"on"}, []string{"WriteImage", "Configure", "Kexec"}},
		metal.KindRelease: {[]string{"off", "on", "off"}, []string{"Wipe"}},
		metal.KindRestart: {[]string{"soft", "on"}, nil},
		metal.KindWarm:    {[]string{"on"}, nil},
	}[kind]
	if w.adopts != "" {
		want.power = nil
	}
	if w.current() != "" {
		t.Errorf("%s: ended at %s: %v", name, w.current(), w.told())
	}
	if told := w.told(); slices.ContainsFunc(told, func(s string) bool { return strings.Contains(s, "failed") }) {
		t.Errorf("%s: told %v", name, told)
	}
	if !slices.Equal(w.machine.tasks, want.tasks) {
		t.Errorf("%s: tasks %v, want %v", name, w.machine.tasks, want.tasks)
	}
	for task, n := range w.machine.ran {
		if n > 1 {
			t.Errorf("%s: %s ran %d times", name, task, n)
		}
	}
	got := strings.Join(w.machine.log, " ")
	allowed := []string{strings.Join(want.power, " ")}
	if kind == metal.KindRestart {
		allowed = append(allowed, "off on") // whether it was asked to shut down, nobody knew
	}
	for range lost {
		last := allowed[len(allowed)-1]
		allowed = append(allowed, strings.Replace(last, "on", "on off on", 1))
	}
	if !slices.Contains(allowed, got) {
		t.Errorf("%s: power %q, want one of %q", name, got, allowed)
	}
}

// until waits, in the bubble's time, for the world to be so.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	for range 3600 {
		if so() {
			return
		}
		time.Sleep(time.Second)
	}
	t.Fatalf("never: %s", what)
}

// midWrite runs a deploy until its image is being written.
func midWrite(t *testing.T) (*world, *Manager) {
	w := rented(t, metal.KindDeploy)
	m := w.startIn(journals(t))
	m.Assign(w.reassigned())
	until(t, "an image is written", func() bool { return slices.Contains(w.look().tasks, "WriteImage") })
	return w, m
}

// An agent that is cut off from the nodes, but not from its rack, sends the
// ramdisk on: the write goes on under the agent that has the lease.
func TestCutOffAgentLetsTheRamdiskGo(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w, former := midWrite(t)
		w.setLease(false, epoch+1)
		time.Sleep(leaseGap)
		w.setLease(true, epoch+1)
		a := w.reassigned()
		m := w.startIn(journals(t))
		m.Assign(a)
		waitEnd(t, m, a)
		former.Close()
		m.Close()
		w.shutdown()
		checkTakeover(t, w, "cut off", 0)
	})
}

// The machine lost its power with its agent: it boots the ramdisk again, the
// control plane hears which boot counts, and only then the image is begun.
func TestBootedAgain(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w, m := midWrite(t)
		w.mu.Lock()
		was := w.reports[len(w.reports)-2].BootId
		w.power(false)
		w.mu.Unlock()
		began := clock()
		m, a := w.successor(m, journals(t))
		if a.BootId == "" || a.BootId != was {
			t.Fatalf("boot %q, reported %q", a.BootId, was)
		}
		waitEnd(t, m, a)
		m.Close()
		w.shutdown()
		told := w.told()
		i := slices.Index(told, "write-image booted")
		if i < 0 || told[len(told)-1] != "ready done" || !slices.Equal(w.machine.log, []string{"on", "on"}) {
			t.Fatalf("told %v, power %v", told, w.machine.log)
		}
		for _, r := range w.reports {
			if r.Phase == "booted" && (r.BootId == was || r.At.AsTime().Sub(began) > 90*time.Second) {
				t.Errorf("booted: %v, %s after the death", r, r.At.AsTime().Sub(began))
			}
		}
	})
}

// The restart of a machine that does not get ready is not done twice.
func TestRungIsNotClimbedTwice(t *testing.T) {
	testCA(t)
	for _, act := range []string{"restart-off", "restart-on"} {
		synctest.Test(t, func(t *testing.T) {
			w := rented(t, metal.KindRestart)
			w.machine.faults.notReady = 1
			w.crash = func(r Record, written bool) error {
				if len(w.look().log) > 2 || r.Kind == RecordIntent && r.Act == act && written {
					return errCrash
				}
				return nil
			}
			m := w.startIn(journals(t))
			a := w.reassigned()
			m.Assign(a)
			waitEnd(t, m, a)
			m, a = w.successor(m, journals(t))
			waitEnd(t, m, a)
			m.Close()
			w.shutdown()
			if told := w.told(); told[len(told)-1] != "ready done" || !slices.Equal(w.machine.log, []string{"soft", "on", "off", "on"}) {
				t.Errorf("%s: told %v, power %v", act, told, w.machine.log)
			}
		})
	}
}

// An operation that is withdrawn, or tried again under another attempt, while
// its agent waits, has no further effect.
func TestWithdrawnDoesNothingMore(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w := rented(t, metal.KindRestart)
		w.machine.faults.ignoreSoft = true
		m := w.startIn(journals(t))
		m.Assign(w.reassigned())
		until(t, "it was asked to shut down", func() bool { return len(w.look().log) > 0 })
		m.Withdraw(w.reassigned().OperationId)
		time.Sleep(time.Hour)
		m.Close()
		w.shutdown()
		if !slices.Equal(w.machine.log, []string{"soft"}) || w.last().Phase != "started" {
			t.Errorf("power %v, told %v", w.machine.log, w.told())
		}
	})
}
