package operation

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// A backup does not know of an operation's later attempts and gives their numbers
// away again: what this agent's journal says of them is void, also that they ended,
// whether the agent was restarted meanwhile or not.
func TestJournalFromBeforeARestore(t *testing.T) {
	testCA(t)
	for _, restart := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			m := w.start()
			before := w.assignment(metal.KindClean)
			m.Assign(before)
			waitEnd(t, m, before)
			if restart {
				m.Close()
				m = w.start()
			}
			w.mu.Lock()
			w.reports = nil
			w.mu.Unlock()
			w.setLease(true, 1<<32+1)
			after := w.assignment(metal.KindClean)
			m.Assign(after)
			waitEnd(t, m, after)
			m.Assign(after) // ended in this generation, too
			waitEnd(t, m, after)
			m.Close()
			w.shutdown()
			if got := w.told(); !slices.Equal(got, edges(metal.KindClean)) || !slices.Equal(w.machine.tasks, []string{"Wipe", "Wipe"}) {
				t.Errorf("restarted %v: told %v, tasks %v", restart, got, w.machine.tasks)
			}
		})
	}
}

// The control plane withdraws what has ended, often before its agent has written
// the end down. Nothing is kept of it.
func TestEndAndWithdrawalMeet(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		a := w.assignment(metal.KindClean)
		w.refuse = func(r *agentv1.ReportStepRequest) error {
			if r.Step == string(metal.StepPowerOffEnd) && r.Phase == "done" {
				m.Withdraw(a.OperationId)
			}
			return nil
		}
		m.Assign(a)
		waitEnd(t, m, a)
		m.Close()
		w.shutdown()
		if len(m.runs) != 0 || w.last().Phase != "done" {
			t.Errorf("%d runs are kept, last report %v", len(m.runs), w.last())
		}
	})
}

// A machine that was on all the time, behind another controller, still calls when
// its enrolment's controller reads off; it does not matter which agent it calls.
func TestSilenceIsProvedAfterATakeover(t *testing.T) {
	testCA(t)
	for _, wrong := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := rented(t, metal.KindEnroll)
			w.machine.faults.deaf = wrong
			w.crash = func(r Record, written bool) error {
				if r.Kind == RecordBegun && r.Step == metal.StepPowerOffEnd {
					return errCrash
				}
				return nil
			}
			m := w.startIn(t.TempDir())
			a := w.reassigned()
			m.Assign(a)
			waitEnd(t, m, a)
			m, a = w.successor(m, t.TempDir())
			began := time.Now()
			waitEnd(t, m, a)
			took := time.Since(began)
			m.Close()
			w.shutdown()
			want := metal.Code("")
			if wrong {
				want = metal.CodeBMCMismatch
			}
			if last := w.last(); last.Step != string(metal.StepPowerOffEnd) || metal.Code(last.Reason) != want || took > 2*time.Minute {
				t.Errorf("wrong controller %v: %v after %s", wrong, last, took)
			}
		})
	}
}
