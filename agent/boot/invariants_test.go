package boot

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/chaos/check"
	"bmc/lab/light"
	"bmc/metal"
)

// A task whose result is known is not given out again, whoever grants it once
// more: the machine, which in this test remembers nothing, would do it again.
func TestInvariantGrantedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.armed()
		if code := d.hello(d.seed(), "key"); code != "" {
			t.Fatal(code)
		}
		ctx := as(t.Context(), server)
		e := &check.Evidence{Servers: []*metal.Server{{ID: server, Name: "r1-u01"}}}
		wipe := &agentv1.Task{Id: "op-a/1/wipe", Kind: &agentv1.Task_Wipe{Wipe: &agentv1.WipeTask{}}}
		for range 2 { // the second time after a restart of the agent
			if err := d.session.Grant(wipe); err != nil {
				t.Fatal(err)
			}
			resp, err := d.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: "boot-1"})
			if err != nil {
				t.Fatal(err)
			}
			if id := resp.GetTask().GetId(); id != "" {
				e.Machines = append(e.Machines, light.Event{Time: time.Now(), Server: "r1-u01", Event: light.TaskStart, Boot: "boot-1", Task: id})
				if _, err := d.service.CompleteTask(ctx, &agentv1.CompleteTaskRequest{BootId: "boot-1", TaskId: id}); err != nil {
					t.Fatal(err)
				}
			}
			d.session.Detach()
			d.open(slices.Clone(d.journal))
		}
		if len(e.Machines) == 0 {
			t.Error("nothing was granted")
		}
		for _, v := range check.Of(e, "twice") {
			t.Errorf("violated %s", v)
		}
		d.session.Close()
	})
}
