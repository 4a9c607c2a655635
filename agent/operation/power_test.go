package operation

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmc/metal"
)

// Whoever waits is told that the controller is what takes so long, again and again, and
// nothing of the kind where it obeys.
func TestSlowControllerIsTold(t *testing.T) {
	for name, slow := range map[string]time.Duration{"hangs": 35 * time.Second, "obeys": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.shutdown()
				w.machine.on, w.machine.forGood, w.machine.faults.slow = true, "disk", slow
				m := w.start()
				defer m.Close()
				a := w.assignment(metal.KindPower)
				a.Power.Wanted, a.Power.Hard = string(metal.PowerOff), true
				m.Assign(a)
				waitEnd(t, m, a)
				told := 0
				for _, p := range w.words() {
					if strings.Contains(p.Message, "has not read off yet") && p.Operation == a.GetOperationId() && p.Step == metal.StepSetPower {
						told++
					}
				}
				if want := int(slow / (10 * time.Second)); told != want {
					t.Errorf("told %d times, want %d: %+v", told, want, w.words())
				}
			})
		})
	}
}
