package oob

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"bmc/chaos/check"
	"bmc/metal"
)

// takeover has an agent stopped between its look at the lease and its send, its
// successor take over, and the first one go on. It returns what the controller
// was told, as from the agents' addresses, and the time of the second grant.
func takeover(t *testing.T, stop bool) *check.Evidence {
	_, cfg, told := startLab(t)
	began := time.Now()
	old, lease := held(cfg, 1)
	stopped, resume := make(chan struct{}), make(chan struct{})
	if stop {
		old.paused = func() {
			close(stopped)
			<-resume
			old.paused = nil
		}
	}
	failed := make(chan error, 1)
	act := func() { failed <- old.SetPower(context.Background(), metal.PowerOn) }
	if stop {
		go act()
		<-stopped
	} else if _, err := old.Power(t.Context()); err != nil {
		t.Fatal(err)
	}
	lease.set(1, false)
	granted := time.Now()
	next, _ := held(cfg, 2)
	if err := next.SetBootDevice(t.Context(), DeviceDisk, true, false); err != nil {
		t.Error(err)
	}
	before := len(told())
	if stop {
		close(resume)
	} else {
		go act()
	}
	<-failed // it may well fail
	e := &check.Evidence{
		Servers: []*metal.Server{{ID: "srv-1", Name: "m1", RackID: "rack-1"}},
		Agents:  []*metal.Agent{{ID: "agt-1", Name: "a1"}, {ID: "agt-2", Name: "a2"}},
		Sources: map[netip.Addr]string{netip.MustParseAddr("10.78.1.1"): "a1", netip.MustParseAddr("10.78.1.2"): "a2"},
		Audit: []*metal.AuditEntry{{Revision: 1, Time: began.Add(-time.Second), Command: "grant_lease", ObjectID: "rack-1", AgentID: "agt-1", Epoch: 1},
			{Revision: 2, Time: granted, Command: "grant_lease", ObjectID: "rack-1", AgentID: "agt-2", Epoch: 2}},
	}
	for i, c := range told() {
		c.From = "10.78.1.1:4000" // both agents of this test have one address
		if !c.Time.Before(granted) && i < before {
			c.From = "10.78.1.2:4000"
		}
		e.Commands = append(e.Commands, c)
	}
	if err := errors.Join(old.Close(t.Context()), next.Close(t.Context())); err != nil {
		t.Log(err) // of a session that is gone
	}
	return e
}

func acted(e *check.Evidence) (n int) {
	for _, c := range e.Commands {
		if c.OK && c.NetFn == 0 && c.Cmd != 1 {
			n++
		}
	}
	return n
}

func TestInvariantPausedBetweenLookAndSend(t *testing.T) { obeys(t, takeover(t, true)) }

func TestInvariantActsWithoutLease(t *testing.T) { obeys(t, takeover(t, false)) }

func obeys(t *testing.T, e *check.Evidence) {
	t.Helper()
	if acted(e) == 0 {
		t.Error("the successor did nothing")
	}
	for _, v := range check.Of(e, "I4") {
		t.Errorf("violated %s", v)
	}
}
