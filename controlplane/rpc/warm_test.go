package rpc

import (
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/metal"

	"google.golang.org/grpc/codes"
)

// waitsWarm has r1-u01 wait in boot-1 of the ramdisk.
func waitsWarm(t *testing.T, nodes int) (*bed, *testAgent, *metal.Server) {
	t.Helper()
	b, a := rentable(t, nodes)
	if _, err := b.user(0).inv.SetRackWarm(b.admin(), &bmcv1.SetRackWarmRequest{Ref: "r1", Warm: "all"}); err != nil {
		t.Fatal(err)
	}
	srv, _ := b.fsm.View().ServerByName("r1-u01")
	b.must(&logpb.Command{Command: &logpb.Command_WarmServer{WarmServer: &logpb.WarmServer{ServerId: srv.ID, OperationId: "op-warm"}}})
	op := a.begin("r1-u01")
	a.step(op.ID, metal.StepPowerOff)
	for _, phase := range []string{"started", "done"} {
		if err := a.report(op.ID, metal.StepBootRamdisk, phase, func(r *agentv1.ReportStepRequest) { r.BootId, r.Ramdisk = "boot-1", "v1" }); err != nil {
			t.Fatal(err)
		}
	}
	srv, _ = b.fsm.View().ServerByName("r1-u01")
	if !srv.Warm.Waits() {
		t.Fatalf("%+v", srv.Warm)
	}
	return b, a, srv
}

// What an agent is told of a server that waits, and of the deployment that goes
// on with it: the boot, and no power-off.
func TestAgentHearsWhoWaits(t *testing.T) {
	b, a, srv := waitsWarm(t, 1)
	w, err := a.ctl.WatchRack(a.ctx, &agentv1.WatchRackRequest{Rack: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	find := func(u *agentv1.RackUpdate) *agentv1.ServerSpec {
		for _, s := range u.GetUpserts() {
			if s.GetId() == srv.ID {
				return s
			}
		}
		return nil
	}
	u := recv(t, w, func(u *agentv1.RackUpdate) bool { return find(u) != nil })
	if got := find(u).GetWarmBootId(); got != "boot-1" {
		t.Fatalf("waits in boot %q", got)
	}
	if _, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1", Image: "debian"}); err != nil {
		t.Fatal(err)
	}
	a.begin("r1-u01")
	spec := find(u)
	u = recv(t, w, func(u *agentv1.RackUpdate) bool {
		if s := find(u); s != nil {
			spec = s
		}
		return len(u.GetAssignments()) > 0
	})
	got := u.GetAssignments()[0]
	if got.GetBootId() != "boot-1" || !slices.Equal(got.GetDoneSteps(), []string{string(metal.StepPowerOff)}) || spec.GetWarmBootId() != "" {
		t.Errorf("assigned %v, done %v, waits in %q", got.GetBootId(), got.GetDoneSteps(), spec.GetWarmBootId())
	}
}

// A renewed certificate is for a server that waits, in that boot, and for nobody else.
func TestRenewalIsForWhoWaits(t *testing.T) {
	b, a, srv := waitsWarm(t, 1)
	_, csr := newCSR(t)
	renew := func(boot string) error {
		_, err := a.ctl.IssueServerCertificate(a.ctx, &agentv1.IssueServerCertificateRequest{ServerId: srv.ID, Csr: csr, BootId: boot})
		return err
	}
	if err := renew("boot-1"); err != nil {
		t.Fatal(err)
	}
	refused(t, renew("boot-0"), codes.PermissionDenied, metal.CodeDenied, "")
	if _, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1", Image: "debian"}); err != nil {
		t.Fatal(err)
	}
	refused(t, renew("boot-1"), codes.PermissionDenied, metal.CodeDenied, "")
}

// The cost of waiting is shown, and that of which nothing is known is counted.
func TestWarmIsShown(t *testing.T) {
	b, a, srv := waitsWarm(t, 1)
	rack := func() *bmcv1.Rack {
		r, err := b.user(0).inv.GetRack(b.admin(), &bmcv1.GetRackRequest{Ref: "r1"})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := rack(); r.GetWarm() != "all" || r.GetWaiting() != 1 || r.GetWatts() != 0 || r.GetUnmetered() != 1 {
		t.Errorf("%v", r)
	}
	before := b.fsm.View().Revision()
	tell := func(w *agentv1.Watts) {
		if _, err := a.ctl.ReportWatts(a.ctx, &agentv1.ReportWattsRequest{Rack: "r1", Readings: []*agentv1.Watts{w}}); err != nil {
			t.Fatal(err)
		}
	}
	tell(&agentv1.Watts{ServerId: srv.ID, Watts: 1 << 30}) // a controller errs
	tell(&agentv1.Watts{ServerId: "srv-none", Watts: 1})
	if r := rack(); r.GetUnmetered() != 1 {
		t.Errorf("%v", r)
	}
	tell(&agentv1.Watts{ServerId: srv.ID, Watts: 120})
	if r := rack(); r.GetWatts() != 120 || r.GetUnmetered() != 0 || b.fsm.View().Revision() != before {
		t.Errorf("%v, revision %d, was %d", r, b.fsm.View().Revision(), before)
	}
	e, err := b.user(0).ExplainServer(b.admin(), &bmcv1.ExplainServerRequest{Ref: "r1-u01"})
	if err != nil || !strings.Contains(e.GetWaitingFor(), "waits warm in ramdisk v1 since") || e.GetServer().GetWatts().GetWatts() != 120 || e.GetServer().GetWarm().GetBootId() != "boot-1" {
		t.Errorf("%v, %v", e, err)
	}
	b.advance(wattsFor + 1)
	if r := rack(); r.GetUnmetered() != 1 {
		t.Errorf("an old reading counts: %v", r)
	}
	b.must(&logpb.Command{Command: &logpb.Command_Observe{Observe: &logpb.Observe{RackId: srv.RackID, Observations: []*logpb.Observation{{ServerId: srv.ID, Power: "off"}}}}})
	e, err = b.user(0).ExplainServer(b.admin(), &bmcv1.ExplainServerRequest{Ref: "r1-u01"})
	if err != nil || !strings.Contains(e.GetWaitingFor(), "after 1 of 5 tries: its management controller read off") {
		t.Errorf("%q, %v", e.GetWaitingFor(), err)
	}
	_, err = b.user(0).inv.SetRackWarm(b.admin(), &bmcv1.SetRackWarmRequest{Ref: "r1", Warm: "some"})
	refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
}

// Readings of servers that are gone do not stay.
func TestWattsArePruned(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	h := newWattsHub()
	h.prune(now, func(string) bool { return true })
	h.note("srv-a", reading{at: now})
	h.note("srv-b", reading{at: now})
	known := func(id string) bool { return id == "srv-a" }
	if h.prune(now.Add(wattsFor-1), known); len(h.latest) != 2 {
		t.Error("pruned with every report")
	}
	if h.prune(now.Add(wattsFor), known); len(h.latest) != 1 || h.of("srv-a", now) == nil {
		t.Errorf("kept %v", h.latest)
	}
}
