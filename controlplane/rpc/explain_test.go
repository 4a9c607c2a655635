package rpc

import (
	"testing"

	"bmc/fsm/state"
	"bmc/metal"
)

// A server that was put aside after a restored backup has failed in no step.
func TestExplainFailure(t *testing.T) {
	for want, f := range map[string]*metal.Failure{
		"r1-u01 waits for a person: step wipe failed with WIPE_FAILED, no disk": {Step: metal.StepWipe, Reason: metal.CodeWipeFailed, Message: "no disk"},
		"r1-u01 waits for a person: it was put aside with RESTORED, it differs": {Reason: metal.CodeRestored, Message: "it differs"},
		"r1-u01 waits for a person: it failed with CANCELLED, by ann":           {Reason: metal.CodeCancelled, Message: "by ann"},
	} {
		s := &metal.Server{ID: "srv-1", Name: "r1-u01", State: metal.StateQuarantined, Failure: f}
		if got := waitingFor(state.New(), s, nil); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
