package operation

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/chaos/check"
	"bmc/lab/virtualbmc"
	"bmc/metal"
)

// release runs a whole release and returns what the control plane recorded and
// what the controller was told, each at a second of its own in their order.
func release(t *testing.T, w *world) *check.Evidence {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e := &check.Evidence{
		Servers: []*metal.Server{{ID: serverID, Name: "r1-u01", RackID: "rack-1"}},
		Agents:  []*metal.Agent{{ID: "agt-1", Name: "a1", Racks: []string{"rack-1"}}},
		Sources: map[netip.Addr]string{netip.MustParseAddr("10.78.1.1"): "a1"},
	}
	now := start
	next := func() time.Time { now = now.Add(time.Second); return now }
	a := w.assignment(metal.KindRelease)
	audit := func(command, step string) {
		e.Audit = append(e.Audit, &metal.AuditEntry{Revision: uint64(len(e.Audit) + 1), Time: next(), Command: command, ObjectID: serverID,
			OperationID: a.OperationId, AgentID: "agt-1", Epoch: epoch, Step: step})
	}
	audit("destroy_server", "")
	audit("assign_operation", "")
	w.refuse = func(r *agentv1.ReportStepRequest) error {
		audit("report_step", r.Step+"/"+r.Phase)
		return nil
	}
	w.obeyed = func(cmd uint8, data string, on bool, answer string) {
		e.Commands = append(e.Commands, virtualbmc.Command{Server: "r1-u01", Time: next(), From: "10.78.1.1:4000", Cmd: cmd, Data: data, On: on, OK: true, Answer: answer})
	}
	w.machine.on = true
	walk(t, w, a)
	if len(e.Commands) < 4 || e.Audit[len(e.Audit)-1].Step != "power-off-end/done" {
		t.Errorf("%d commands, the last report is %s", len(e.Commands), e.Audit[len(e.Audit)-1].Step)
	}
	return e
}

// Nothing is done to a machine before it is recorded that a step begins.
func TestInvariantWordBeforeAct(t *testing.T) { holds(t, "I5") }

// A tenant's machine is free only once it was read as off.
func TestInvariantReadOff(t *testing.T) { holds(t, "I9") }

func holds(t *testing.T, invariant string) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		for _, v := range check.Of(release(t, newWorld(t)), invariant) {
			t.Errorf("violated %s", v)
		}
	})
}
