package fsm

import "testing"

// A check of the controllers' record asks the audit who was allowed what, when.
func TestAuditSaysWhoUnderWhichEpoch(t *testing.T) {
	w := deployed(t)
	lease := func() uint64 {
		r, _ := w.f.View().Rack(rack1)
		return r.Lease.Epoch
	}
	w.ok(cGrant(rack1, agt1, lease()))
	seen := map[string]bool{}
	for e := range w.f.View().Audit(0) {
		switch e.Command {
		case "grant_lease":
			if e.ObjectID != rack1 || e.AgentID != agt1 || e.Epoch == 0 || e.Epoch > lease() {
				t.Errorf("%+v", e)
			}
		case "create_server":
			if e.ObjectID == "" || e.OperationID == "" {
				t.Errorf("%+v", e)
			}
		case "assign_operation", "report_step":
			if e.ObjectID == "" || e.OperationID == "" || e.AgentID != agt1 || e.Epoch == 0 {
				t.Errorf("%+v", e)
			}
		}
		seen[e.Command+" "+e.Step] = true
	}
	for _, want := range []string{"grant_lease ", "create_server ", "assign_operation ", "report_step write-image/started", "report_step write-image/done"} {
		if !seen[want] {
			t.Errorf("the audit has no %q", want)
		}
	}
}
