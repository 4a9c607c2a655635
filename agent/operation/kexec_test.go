package operation

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// refuses has the ramdisk fail some kinds of tasks.
func (w *world) refuses(kinds ...string) {
	w.machine.faults.failTask = map[string]metal.Code{}
	for _, k := range kinds {
		w.machine.faults.failTask[k] = metal.CodeKexecRefused
	}
}

// done is the report of a step's end.
func (w *world) done(step metal.Step) *agentv1.ReportStepRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.reports {
		if r.Step == string(step) && r.Phase == "done" {
			return r
		}
	}
	return &agentv1.ReportStepRequest{}
}

// A deployment ends with the system up, whatever keeps kexec from working, and
// the reports say how it was started and why.
func TestKexec(t *testing.T) {
	testCA(t)
	kexec, reboot := []string{"WriteImage", "Configure", "Kexec"}, []string{"WriteImage", "Configure", "Reboot"}
	for _, tt := range []struct {
		name   string
		prep   func(*world, *agentv1.Assignment)
		tasks  []string
		power  []string
		method string
		says   string
		rung   string // of boot-disk or ready
		within time.Duration
	}{
		{name: "kexec", prep: func(*world, *agentv1.Assignment) {}, tasks: kexec, power: []string{"on"}, method: metal.BootKexec, says: "by kexec", within: 4 * time.Minute},
		{name: "no kernel", prep: func(_ *world, a *agentv1.Assignment) { a.Deploy.Manifest = testImage("") }, tasks: reboot, power: []string{"on"},
			method: metal.BootFirmware, says: "the image names no kernel", within: 4 * time.Minute},
		{name: "switched off", prep: func(_ *world, a *agentv1.Assignment) { a.Deploy.KexecOff = "kexec is off for Acme 3000" }, tasks: reboot, power: []string{"on"},
			method: metal.BootFirmware, says: "off for Acme 3000", within: 4 * time.Minute},
		{name: "refused by the ramdisk", prep: func(w *world, _ *agentv1.Assignment) { w.refuses("Kexec") }, tasks: append(slices.Clone(kexec), "Reboot"), power: []string{"on"},
			method: metal.BootFirmware, says: "the disk is too small", rung: "no kexec (the disk is too small): reboot", within: 4 * time.Minute},
		{name: "stuck", prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.ignoreBoot = true }, power: []string{"on", "off", "on"},
			method: metal.BootFirmware, rung: "did not start the image's kernel", within: 6 * time.Minute},
		{name: "jumped into nothing", prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.lostKernel = true }, tasks: kexec, power: []string{"on", "off", "on"},
			method: metal.BootKexec, rung: "not ready in half the time", within: 9 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.assignment(metal.KindDeploy)
				tt.prep(w, a)
				began := time.Now()
				told := walk(t, w, a)
				if told[len(told)-1] != "ready done" || time.Since(began) > tt.within {
					t.Errorf("ended with %q after %s", told[len(told)-1], time.Since(began))
				}
				if tt.tasks != nil && !slices.Equal(w.machine.tasks, tt.tasks) || !slices.Equal(w.machine.log, tt.power) {
					t.Errorf("tasks %v, power %v", w.machine.tasks, w.machine.log)
				}
				disk := w.done(metal.StepBootDisk)
				if disk.GetBootMethod() != tt.method || !strings.Contains(disk.GetMessage(), tt.says) {
					t.Errorf("boot-disk: by %q, %q", disk.GetBootMethod(), disk.GetMessage())
				}
				rungs := strings.Join(append(slices.Clone(disk.GetRecovery()), w.done(metal.StepReady).GetRecovery()...), "\n")
				if (rungs != "") != (tt.rung != "") || !strings.Contains(rungs, tt.rung) {
					t.Errorf("rungs %q, want %q", rungs, tt.rung)
				}
				if w.machine.forGood != "disk" {
					t.Error("the next reset does not boot from disk")
				}
			})
		})
	}
}
