package rpc

import (
	"testing"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/chaos/check"
	"bmc/metal"
)

func (b *bed) holds(invariant string) {
	b.t.Helper()
	e := &check.Evidence{}
	e.View(b.fsm.View())
	for _, v := range check.Of(e, invariant) {
		b.t.Errorf("violated %s", v)
	}
}

// Who asks for a server gets one that nobody has.
func TestInvariantOneTenant(t *testing.T) {
	b, a := rentable(t, 1)
	if _, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	if op := a.run("web-1"); op.State != metal.OperationSucceeded {
		t.Fatalf("%+v", op)
	}
	if _, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-2"}); err != nil {
		t.Log(err) // the only server is rented
	}
	b.holds("I7")
}

// An agent's certificate is good for its own rack's servers: a report about
// another's counts for nothing, even with everything else in it right.
func TestInvariantReportsOfOwnRack(t *testing.T) {
	b, _ := rentable(t, 1)
	b.inventory("r2", 2, 1)
	own := b.join("a2", "r2", 0)
	foreign := b.join("a3", "r1", 0)
	op := own.begin("r2-u01")
	if _, err := foreign.ctl.ReportStep(foreign.ctx, &agentv1.ReportStepRequest{OperationId: op.ID, Attempt: 1, Epoch: op.Epoch, Sequence: 1,
		Step: string(op.Current()), Phase: "started"}); err != nil {
		t.Log(err) // it serves another rack
	}
	b.holds("I12")
}
