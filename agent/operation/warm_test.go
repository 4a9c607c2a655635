package operation

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// wait has the machine's ramdisk wait for a tenant, from the first agent's start on.
func (w *world) wait() {
	w.spec.WarmBootId = w.adopts
	w.machine.on, w.machine.ready = true, false
	ctx, cancel := context.WithCancel(context.Background())
	w.machine.stop = cancel
	w.machine.wg.Go(func() {
		for w.svc() == nil {
			if sleep(ctx, time.Second) != nil {
				return
			}
		}
		w.tasks(ctx, w.adopts)
	})
}

// A deployment on a server that waits neither switches nor boots it, and what
// asks nothing of the controller does not wait for it.
func TestDeployAdoptsWhoWaits(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w := rentedWarm(t, metal.KindDeploy)
		w.machine.powerErrs = 1000 // its controller does not answer
		m := w.start()
		time.Sleep(time.Hour) // it waits meanwhile
		began := time.Now()
		m.Assign(w.reassigned())
		until(t, "the image is written", func() bool { return slices.Contains(w.look().tasks, "WriteImage") })
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the ramdisk heard of its task after %s", took)
		}
		waitEnd(t, m, w.reassigned())
		m.Close()
		w.shutdown()
		if got := w.look(); len(got.log) != 0 || got.boots != 0 {
			t.Errorf("power %v, %d boots", got.log, got.boots)
		}
		var boots []string
		for _, r := range w.reports {
			if r.Step == string(metal.StepBootRamdisk) && r.Phase == "done" {
				boots = append(boots, r.BootId)
			}
		}
		if !slices.Equal(boots, []string{"boot-that-waits"}) {
			t.Errorf("boots %v: %v", boots, w.told())
		}
	})
}

// Where nobody calls, the machine is started as any other, and that is said.
func TestDeployFindsNobodyWaiting(t *testing.T) {
	testCA(t)
	for name, tt := range map[string]struct {
		change func(*world)
		within time.Duration // until the machine is started
		power  string
	}{
		"off":          {func(w *world) { w.power(false) }, 5 * time.Second, "on"},
		"hung":         {func(w *world) { w.machine.stop() }, 20 * time.Second, "off on"},
		"another boot": {func(w *world) { w.adopts = "boot-of-before" }, 20 * time.Second, "off on"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := rentedWarm(t, metal.KindDeploy)
				m := w.start()
				time.Sleep(time.Minute)
				w.mu.Lock()
				tt.change(w)
				w.machine.log = nil
				w.mu.Unlock()
				began := time.Now()
				m.Assign(w.reassigned())
				until(t, "the machine is started", func() bool { return w.look().boots > 0 })
				if took := time.Since(began); took > tt.within {
					t.Errorf("it was started after %s", took)
				}
				waitEnd(t, m, w.reassigned())
				m.Close()
				w.shutdown()
				if got := strings.Join(w.look().log, " "); got != tt.power {
					t.Errorf("power %q, want %q", got, tt.power)
				}
				if w.current() != "" {
					t.Errorf("ended at %s: %v", w.current(), w.told())
				}
				said := slices.ContainsFunc(w.reports, func(r *agentv1.ReportStepRequest) bool {
					return slices.ContainsFunc(r.Recovery, func(s string) bool { return strings.Contains(s, "waited does not answer") })
				})
				if !said {
					t.Errorf("nobody was told: %v", w.reports)
				}
			})
		})
	}
}

// An agent that restarts between the adoption and its report goes on with it, and
// never cuts the power of a ramdisk that lives.
func TestAdoptionSurvivesRestart(t *testing.T) {
	testCA(t)
	points := 0
	for n := 0; n == 0 || n < points; n++ {
		for _, written := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				w := rentedWarm(t, metal.KindDeploy)
				count, fired := crashAt(w, n, written)
				for range 2 {
					m := w.start()
					a := w.reassigned()
					m.Assign(a)
					waitEnd(t, m, a)
					m.Close()
					w.mu.Lock()
					w.crash = nil
					w.mu.Unlock()
				}
				w.shutdown()
				points = max(points, count())
				if got := w.look(); len(got.log) != 0 || !slices.Equal(got.tasks, []string{"WriteImage", "Configure", "Kexec"}) || w.current() != "" {
					t.Errorf("record %d, written %v (%v): power %v, tasks %v, ended at %q: %v", n, written, fired(), got.log, got.tasks, w.current(), w.told())
				}
			})
		}
		if n == 0 {
			synctest.Test(t, func(t *testing.T) { // count them all
				w := rentedWarm(t, metal.KindDeploy)
				count, _ := crashAt(w, -1, false)
				m := w.start()
				m.Assign(w.reassigned())
				waitEnd(t, m, w.reassigned())
				m.Close()
				w.shutdown()
				points = count()
			})
		}
	}
	if points < 12 {
		t.Errorf("only %d records", points)
	}
}
