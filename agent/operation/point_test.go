package operation

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"bmc/internal/failpoint"
	"bmc/metal"
)

// deployPoints are the records of a deploy that goes well, in order; labs and
// checks kill agents by these names.
var deployPoints = []string{
	"deploy/power-off/report-started", "deploy/power-off/begun", "deploy/power-off/done", "deploy/power-off/report-done",
	"deploy/boot-ramdisk/report-started", "deploy/boot-ramdisk/begun", "deploy/boot-ramdisk/boot-armed", "deploy/boot-ramdisk/intent-on-0",
	"deploy/boot-ramdisk/boot-minted", "deploy/boot-ramdisk/boot-greeted", "deploy/boot-ramdisk/done", "deploy/boot-ramdisk/report-done",
	"deploy/write-image/report-started", "deploy/write-image/begun", "deploy/write-image/boot-granted", "deploy/write-image/boot-finished",
	"deploy/write-image/done", "deploy/write-image/report-done",
	"deploy/configure/report-started", "deploy/configure/begun", "deploy/configure/boot-granted", "deploy/configure/boot-finished",
	"deploy/configure/done", "deploy/configure/report-done",
	"deploy/boot-disk/report-started", "deploy/boot-disk/begun", "deploy/boot-disk/boot-granted", "deploy/boot-disk/boot-finished",
	"deploy/boot-disk/done", "deploy/boot-disk/report-done",
	"deploy/ready/report-started", "deploy/ready/begun", "deploy/ready/intent-wait", "deploy/ready/done", "deploy/ready/report-done",
	"deploy/ready/ended",
}

func TestPointsOfADeploy(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var mu sync.Mutex
		var got []string
		w.crash = func(r Record, written bool) error {
			if !written {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, pointOf(metal.KindDeploy, r))
			}
			return nil
		}
		walk(t, w, w.assignment(metal.KindDeploy))
		if !slices.Equal(got, deployPoints) {
			t.Errorf("points\n got %q\nwant %q", got, deployPoints)
		}
	})
}

// With the build tag failpoints, a point's error is a journal that cannot be
// written: the run stops there, and a later assignment resumes it.
func TestFailpointStopsTheRun(t *testing.T) {
	if !failpoint.Enabled {
		t.Skip("built without the tag failpoints")
	}
	testCA(t)
	for _, name := range []string{"agent.journal.after", "agent.journal.restart.stop.intent-soft.before", "agent.journal.restart.ready.intent-wait.after"} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("BMC_FAILPOINTS", dir)
			if err := os.WriteFile(filepath.Join(dir, name), []byte("times 1 error ENOSPC"), 0o600); err != nil {
				t.Fatal(err)
			}
			w := newWorld(t)
			w.machine.on, w.machine.ready, w.machine.forGood = true, true, "disk"
			a := w.assignment(metal.KindRestart)
			m := w.start()
			m.Assign(a)
			waitEnd(t, m, a)
			if slices.Contains(w.told(), "ready done") {
				t.Errorf("%s did not stop the run", name)
			}
			m.Assign(a)
			waitEnd(t, m, a)
			m.Close()
			w.shutdown()
			checkOnce(t, w, name, metal.KindRestart)
		})
	}
}
