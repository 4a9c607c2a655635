package rpc

import (
	"strings"
	"testing"

	bmcv1 "bmc/api/bmc/v1"
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

// What waits in a frozen rack waits for its thaw, and not for an agent.
func TestExplainFrozenRack(t *testing.T) {
	b, a := rentable(t, 1)
	c := b.user(0)
	explained := func() string {
		t.Helper()
		ex, err := c.ExplainServer(b.admin(), &bmcv1.ExplainServerRequest{Ref: "web-1"})
		if err != nil {
			t.Fatal(err)
		}
		return ex.GetWaitingFor()
	}
	if _, err := c.CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1", Image: "debian"}); err != nil {
		t.Fatal(err)
	}
	resp, err := c.inv.FreezeRacks(b.admin(), &bmcv1.FreezeRacksRequest{Reason: "feed B"})
	if err != nil {
		t.Fatal(err)
	}
	got := explained()
	for _, want := range []string{"waits to begin its deploy: rack r1 was frozen by " + resp.GetRacks()[0].GetFrozenBy(), "feed B", "(bmc cluster thaw r1)"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not say %q", got, want)
		}
	}
	if _, err := c.inv.FreezeRacks(b.admin(), &bmcv1.FreezeRacksRequest{Thaw: true}); err != nil {
		t.Fatal(err)
	}
	a.begin("web-1")
	if _, err := c.inv.FreezeRacks(b.admin(), &bmcv1.FreezeRacksRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := explained(); strings.Contains(got, "frozen") { // it goes on
		t.Error(got)
	}
}

// gossip knows who is alive.
type gossip map[string]bool

func (g gossip) Alive(id string) bool { return g[id] }

// Where nobody does what a server waits for, that is said.
func TestExplainSilentAgent(t *testing.T) {
	b, a := rentable(t, 1)
	second := b.join("a2", "r1", 0)
	c := b.user(0)
	if _, err := c.CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1", Image: "debian"}); err != nil {
		t.Fatal(err)
	}
	a.begin("web-1")
	for _, tt := range []struct {
		alive gossip
		want  string
	}{
		{gossip{a.id: true}, ""},
		{gossip{second.id: true}, "another takes over"},
		{gossip{}, "start it again"},
	} {
		b.nodes[0].api.Membership = tt.alive
		ex, err := c.ExplainServer(b.admin(), &bmcv1.ExplainServerRequest{Ref: "web-1"})
		if err != nil {
			t.Fatal(err)
		}
		if got := ex.GetWaitingFor(); !strings.Contains(got, tt.want) || strings.Contains(got, "does not answer") != (tt.want != "") {
			t.Errorf("%v: %q", tt.alive, got)
		}
	}
}
