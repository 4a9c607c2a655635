package rpc

import (
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/internal/jointoken"
	"bmc/metal"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// joinSecret reads the secret out of a join token.
func joinSecret(t *testing.T, text string) string {
	t.Helper()
	tok, err := jointoken.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return tok.Secret
}

func TestJoinAgent(t *testing.T) {
	b := newBed(t, 2)
	b.inventory("r1", 1, 1)
	tok, err := b.user(0).clu.CreateJoinToken(b.admin(), &bmcv1.CreateJoinTokenRequest{Role: "agent", Racks: []string{"r1"}})
	if err != nil {
		t.Fatal(err)
	}
	secret := joinSecret(t, tok.GetToken())
	enroll := agentv1.NewEnrollmentClient(b.conn(1, nil))
	_, csr := newCSR(t)
	req := &agentv1.JoinAgentRequest{TokenSecret: secret, Csr: csr, Name: "a1"}

	_, err = enroll.JoinAgent(t.Context(), &agentv1.JoinAgentRequest{TokenSecret: "wrong", Csr: csr, Name: "a1"})
	refused(t, err, codes.Unauthenticated, metal.CodeUnauthenticated, "bmc cluster join-token --role agent")
	_, err = enroll.JoinAgent(t.Context(), &agentv1.JoinAgentRequest{TokenSecret: secret, Csr: []byte("x"), Name: "a1"})
	refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
	_, err = enroll.JoinNode(t.Context(), &agentv1.JoinNodeRequest{TokenSecret: secret, Csr: csr, Name: "cp9", Address: "10.0.0.9:1"})
	refused(t, err, codes.PermissionDenied, metal.CodeDenied, "bmc cluster join-token --role node")

	one, err := enroll.JoinAgent(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(one.GetRacks(), []string{"r1"}) || len(one.GetNodes()) != 2 || len(one.GetGossipKey()) != 32 || one.GetClusterId() != testCluster {
		t.Fatalf("%v", one)
	}
	// The answer was lost: the same newcomer asks again and is the same agent.
	two, err := enroll.JoinAgent(t.Context(), req)
	if err != nil || two.GetAgentId() != one.GetAgentId() {
		t.Fatalf("%v %v", two, err)
	}
	// Somebody else with the same token is refused.
	_, other := newCSR(t)
	_, err = enroll.JoinAgent(t.Context(), &agentv1.JoinAgentRequest{TokenSecret: secret, Csr: other, Name: "a2"})
	refused(t, err, codes.Unauthenticated, metal.CodeUnauthenticated, "")

	late, err := b.user(0).clu.CreateJoinToken(b.admin(), &bmcv1.CreateJoinTokenRequest{Role: "agent", Racks: []string{"r1"}})
	if err != nil {
		t.Fatal(err)
	}
	b.advance(2 * time.Hour)
	_, err = enroll.JoinAgent(t.Context(), &agentv1.JoinAgentRequest{TokenSecret: joinSecret(t, late.GetToken()), Csr: other, Name: "a2"})
	refused(t, err, codes.Unauthenticated, metal.CodeTokenExpired, "bmc cluster join-token --role agent")
}

func TestJoinNode(t *testing.T) {
	b := newBed(t, 2)
	tok, err := b.user(1).clu.CreateJoinToken(b.admin(), &bmcv1.CreateJoinTokenRequest{Role: "node"})
	if err != nil {
		t.Fatal(err)
	}
	_, csr := newCSR(t)
	resp, err := agentv1.NewEnrollmentClient(b.conn(1, nil)).JoinNode(t.Context(), &agentv1.JoinNodeRequest{
		TokenSecret: joinSecret(t, tok.GetToken()), Csr: csr, Name: "cp9", Address: "10.0.0.9:7443"})
	if err != nil || string(resp.GetCaKey()) != "ca-key" || string(resp.GetKeyring()) != "{}" || len(resp.GetNodes()) != 3 {
		t.Fatalf("%v %v", resp, err)
	}
}

// recv receives until ok, failing after too long.
func recv[T any](t *testing.T, s grpc.ServerStreamingClient[T], ok func(*T) bool) *T {
	t.Helper()
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ok(m) {
			return m
		}
	}
}

func TestWatchRack(t *testing.T) {
	b, a := rentable(t, 2)
	b.inventory("r2", 2, 1)
	// By way of the node that does not lead.
	follower := agentv1.NewControlClient(b.conn(1, &a.cert))
	w, err := follower.WatchRack(a.ctx, &agentv1.WatchRackRequest{Rack: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	first := recv(t, w, func(*agentv1.RackUpdate) bool { return true })
	if !first.GetReset_() || first.GetRack().GetSubnet() != "10.77.1.0/24" {
		t.Fatalf("%v", first)
	}
	up := recv(t, w, func(u *agentv1.RackUpdate) bool { return len(u.GetUpserts()) > 0 })
	s := up.GetUpserts()[0]
	if len(up.GetUpserts()) != 1 || s.GetName() != "r1-u01" || s.GetOob().GetPassword() != "pw-1" || s.GetBootDisk() || s.GetAddress() == "" {
		t.Fatalf("%v", up)
	}
	recv(t, w, func(u *agentv1.RackUpdate) bool { return u.GetSynced() })

	op, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1", UserData: []byte("#cloud-config")})
	if err != nil {
		t.Fatal(err)
	}
	up = recv(t, w, func(u *agentv1.RackUpdate) bool { return len(u.GetUpserts()) > 0 })
	if up.GetUpserts()[0].GetHostname() != "web-1" || up.GetUpserts()[0].GetState() != "deploying" {
		t.Fatalf("%v", up)
	}
	a.begin("web-1")
	as := recv(t, w, func(u *agentv1.RackUpdate) bool { return len(u.GetAssignments()) > 0 }).GetAssignments()[0]
	d := as.GetDeploy()
	if as.GetOperationId() != op.GetId() || as.GetAttempt() != 1 || d.GetHostname() != "web-1" || string(d.GetManifest()) != "{}" ||
		string(d.GetUserData()) != "#cloud-config" || len(d.GetSshKeys()) != 1 || !strings.HasSuffix(d.GetAddress(), "/24") || d.GetGateway() != "10.77.1.1" {
		t.Fatalf("%v", as)
	}
	for _, st := range metal.Plan(metal.KindDeploy) {
		a.step(op.GetId(), st)
	}
	var spec *agentv1.ServerSpec
	withdrawn := false
	for !withdrawn || spec.GetState() != "active" {
		u := recv(t, w, func(*agentv1.RackUpdate) bool { return true })
		if len(u.GetUpserts()) > 0 {
			spec = u.GetUpserts()[0]
		}
		withdrawn = withdrawn || slices.Contains(u.GetWithdrawn(), op.GetId())
		if len(u.GetAssignments()) > 0 {
			t.Fatalf("assigned again: %v", u)
		}
	}
	if !spec.GetBootDisk() || spec.GetSshHostKey() == "" {
		t.Fatalf("%v", spec)
	}
	// Another rack's news are not for this stream.
	b.inventory("r2", 2, 2)
	if _, err := b.user(0).RestartServer(b.admin(), &bmcv1.RestartServerRequest{Ref: "web-1"}); err != nil {
		t.Fatal(err)
	}
	a.begin("web-1")
	u := recv(t, w, func(u *agentv1.RackUpdate) bool {
		for _, s := range u.GetUpserts() {
			if !strings.HasPrefix(s.GetName(), "r1-") {
				t.Fatalf("%v", u)
			}
		}
		return len(u.GetAssignments()) > 0
	})
	if u.GetAssignments()[0].GetKind() != "restart" || u.GetAssignments()[0].GetPower() == nil {
		t.Fatalf("%v", u)
	}
}

// An agent says where it is, under the name that its certificate has, and hears
// who else serves the rack.
func TestLeaseCarriesEndpoints(t *testing.T) {
	b, a := rentable(t, 2)
	follower := agentv1.NewControlClient(b.conn(1, &a.cert))
	ask := func(e *agentv1.Endpoint) (*agentv1.RenewLeaseResponse, error) {
		return follower.RenewLease(a.ctx, &agentv1.RenewLeaseRequest{Rack: "r1", Endpoint: e})
	}
	resp, err := ask(&agentv1.Endpoint{Address: "10.77.1.1", HttpPort: 80, TlsPort: 8443, AgentId: "agt-somebody-else"})
	if err != nil || len(resp.GetAgents()) != 1 || !resp.GetPartial() {
		t.Fatalf("%v %v", resp, err)
	}
	if e := resp.GetAgents()[0]; e.GetAddress() != "10.77.1.1" || e.GetHttpPort() != 80 || e.GetTlsPort() != 8443 || e.GetAgentId() != a.id {
		t.Fatalf("%v", e)
	}
	for _, e := range []*agentv1.Endpoint{
		{Address: "fd00::1", HttpPort: 80, TlsPort: 8443},
		{Address: "10.77.1.1", HttpPort: 80},
		{Address: "10.77.1.1", HttpPort: 80, TlsPort: 70000},
	} {
		_, err := ask(e)
		refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
	}
}

// What an operation knows of its machine's ramdisk travels with its assignment,
// and the rack's agents hear that the ramdisk is waited for.
// What one change takes several messages to tell, the agent must take whole.
func TestWatchRackTellsOfPartsThatBelongTogether(t *testing.T) {
	b, a := rentable(t, 1)
	v := b.fsm.View()
	rack, err := v.ResolveRack("r1")
	if err != nil {
		t.Fatal(err)
	}
	var sent []*agentv1.RackUpdate
	w := &rackWatch{API: b.nodes[0].api, rack: rack.ID, agent: a.id,
		send: func(m *agentv1.RackUpdate) error { sent = append(sent, proto.CloneOf(m)); return nil }}
	if err := w.snapshot(v); err != nil {
		t.Fatal(err)
	}
	sent = nil
	if _, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	a.begin("web-1")
	now := b.fsm.View()
	changes, ok := now.Changes(v.Revision())
	if !ok {
		t.Fatal("off the ring")
	}
	if err := w.delta(now, changes); err != nil {
		t.Fatal(err)
	}
	if len(sent) != 2 || len(sent[0].GetUpserts()) != 1 || !sent[0].GetMore() || len(sent[1].GetAssignments()) != 1 || sent[1].GetMore() {
		t.Errorf("%v", sent)
	}
}

func TestWatchRackTellsOfRamdisks(t *testing.T) {
	b, a := rentable(t, 1)
	w, err := a.ctl.WatchRack(a.ctx, &agentv1.WatchRackRequest{Rack: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	first := recv(t, w, func(*agentv1.RackUpdate) bool { return true })
	if spec := first.GetRack(); spec.GetFrozen() || len(spec.GetNodes()) != 1 || spec.GetNodes()[0] != "10.0.0.1:7443" {
		t.Fatalf("%v", spec)
	}
	recv(t, w, func(u *agentv1.RackUpdate) bool { return u.GetSynced() })
	op, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"})
	if err != nil {
		t.Fatal(err)
	}
	a.begin("web-1")
	var waits []string
	for _, st := range metal.Plan(metal.KindDeploy) {
		if err := a.report(op.GetId(), st, "started", nil); err != nil {
			t.Fatal(err)
		}
		v := b.fsm.View()
		srv, _ := v.ServerByName("r1-u01")
		if bootsRamdisk(v, srv) {
			waits = append(waits, string(st))
		}
		if st == metal.StepBootRamdisk { // seen before it goes on: a watch skips what is over already
			recv(t, w, func(u *agentv1.RackUpdate) bool { return len(u.GetUpserts()) > 0 && u.GetUpserts()[0].GetBootRamdisk() })
		}
		if st == metal.StepBootDisk {
			break
		}
		if err := a.report(op.GetId(), st, "done", func(r *agentv1.ReportStepRequest) {
			switch st {
			case metal.StepBootRamdisk:
				r.BootId = "boot-1"
			case metal.StepWriteImage:
				r.RootDisk = "vda"
			case metal.StepConfigure:
				r.Installed = &agentv1.Installed{SshHostKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFakeFake host"}, RootDisk: "vda"}
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"boot-ramdisk", "write-image", "configure"}; !slices.Equal(waits, want) {
		t.Errorf("the ramdisk is waited for in %v, want %v", waits, want)
	}
	recv(t, w, func(u *agentv1.RackUpdate) bool {
		return len(u.GetUpserts()) > 0 && !u.GetUpserts()[0].GetBootRamdisk()
	})

	// Another watch, as an agent that has restarted: the snapshot has it all.
	again, err := a.ctl.WatchRack(a.ctx, &agentv1.WatchRackRequest{Rack: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	as := recv(t, again, func(u *agentv1.RackUpdate) bool { return len(u.GetAssignments()) > 0 }).GetAssignments()[0]
	if as.GetBootId() != "boot-1" || as.GetRootDisk() != "vda" || as.GetSequence() == 0 ||
		as.GetBegunStep() != "boot-disk" || !as.GetBegunAt().IsValid() || as.GetReportedEpoch() != as.GetEpoch() {
		t.Errorf("%v", as)
	}

	// A node that joins, and a restored backup, are news.
	b.addNode(1)
	recv(t, w, func(u *agentv1.RackUpdate) bool { return len(u.GetRack().GetNodes()) == 2 })
	b.must(&logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{}}})
	u := recv(t, w, func(u *agentv1.RackUpdate) bool { return u.GetRack().GetFrozen() })
	if u.GetRack().GetGeneration() != b.fsm.View().Meta().Generation || u.GetRack().GetGeneration() == 0 {
		t.Errorf("%v", u.GetRack())
	}
}

func TestForeignRackIsRefused(t *testing.T) {
	b, a := rentable(t, 2)
	b.inventory("r2", 2, 1)
	other, _ := b.fsm.View().ServerByName("r2-u01")
	for node := range 2 {
		ctl := agentv1.NewControlClient(b.conn(node, &a.cert))
		_, err := ctl.RenewLease(a.ctx, &agentv1.RenewLeaseRequest{Rack: "r2"})
		refused(t, err, codes.PermissionDenied, metal.CodeDenied, "--rack r2")
		w, err := ctl.WatchRack(a.ctx, &agentv1.WatchRackRequest{Rack: "r2"})
		if err == nil {
			_, err = w.Recv()
		}
		refused(t, err, codes.PermissionDenied, metal.CodeDenied, "")
		_, csr := newCSR(t)
		_, err = ctl.IssueServerCertificate(a.ctx, &agentv1.IssueServerCertificateRequest{ServerId: other.ID, Csr: csr})
		refused(t, err, codes.PermissionDenied, metal.CodeDenied, "")
		_, err = ctl.ReportStep(a.ctx, &agentv1.ReportStepRequest{OperationId: other.Operation, Attempt: 1, Sequence: 1, Step: "verify-oob", Phase: "started"})
		refused(t, err, codes.PermissionDenied, metal.CodeDenied, "")
		_, err = ctl.ReportProgress(a.ctx, &agentv1.ReportProgressRequest{OperationId: other.Operation, Attempt: 1})
		refused(t, err, codes.PermissionDenied, metal.CodeDenied, "")
		_, err = ctl.ReportObservations(a.ctx, &agentv1.ReportObservationsRequest{Rack: "r1", Observations: []*agentv1.Observation{{ServerId: other.ID, Power: "on"}}})
		refused(t, err, codes.PermissionDenied, metal.CodeDenied, "")
	}
}

func TestAgentCertificates(t *testing.T) {
	b, a := rentable(t, 2)
	ctl := agentv1.NewControlClient(b.conn(1, &a.cert))
	srv, _ := b.fsm.View().ServerByName("r1-u01")
	_, csr := newCSR(t)
	issued, err := ctl.IssueServerCertificate(a.ctx, &agentv1.IssueServerCertificateRequest{ServerId: srv.ID, Csr: csr})
	if err != nil || len(issued.GetCertificate()) == 0 {
		t.Fatal(err)
	}
	renewed, err := ctl.RenewCertificate(a.ctx, &agentv1.RenewCertificateRequest{Csr: csr})
	if err != nil || len(renewed.GetCertificate()) == 0 {
		t.Fatal(err)
	}
	_, err = ctl.RenewCertificate(a.ctx, &agentv1.RenewCertificateRequest{Csr: csr[:len(csr)-4]})
	refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
}

func TestStaleReportsAreRefused(t *testing.T) {
	b, a := rentable(t, 1)
	if _, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	op := a.begin("web-1")
	err := a.report(op.ID, metal.StepPowerOff, "started", func(r *agentv1.ReportStepRequest) { r.Epoch += 5 })
	refused(t, err, codes.FailedPrecondition, metal.CodeStaleEpoch, "")
	err = a.report(op.ID, metal.StepPowerOff, "started", func(r *agentv1.ReportStepRequest) { r.Attempt += 5 })
	refused(t, err, codes.FailedPrecondition, metal.CodeStaleAttempt, "")
	a.seq = 0
	req := &agentv1.ReportStepRequest{OperationId: op.ID, Attempt: 1, Epoch: op.Epoch, Sequence: 1, Step: string(metal.StepPowerOff), Phase: "started"}
	for range 2 { // the answer was lost: sent again, no effect
		if _, err := a.ctl.ReportStep(a.ctx, req); err != nil {
			t.Fatal(err)
		}
	}
}

// Progress is in the leader's memory, and every node's watch shows it.
func TestWatchOperationShowsProgressEverywhere(t *testing.T) {
	b, a := rentable(t, 3)
	op, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := b.user(2).ops.WatchOperation(b.admin(), &bmcv1.WatchOperationRequest{Id: op.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	recv(t, w, func(o *bmcv1.Operation) bool { return o.GetState() == "pending" })
	a.begin("web-1")
	if err := a.report(op.GetId(), metal.StepPowerOff, "started", nil); err != nil {
		t.Fatal(err)
	}
	before := b.fsm.View().Revision()
	other := agentv1.NewControlClient(b.conn(1, &a.cert))
	if _, err := other.ReportProgress(a.ctx, &agentv1.ReportProgressRequest{OperationId: op.GetId(), Attempt: 1, Step: string(metal.StepPowerOff), Done: 3, Total: 7}); err != nil {
		t.Fatal(err)
	}
	recv(t, w, func(o *bmcv1.Operation) bool {
		return o.GetProgress().GetDone() == 3 && o.GetProgress().GetTotal() == 7
	})
	if b.fsm.View().Revision() != before {
		t.Fatal("progress entered the log")
	}
	// The leader changes: the watch goes on there, and has what the agent sends again.
	b.lead(1)
	recv(t, w, func(o *bmcv1.Operation) bool { return o.GetProgress() == nil })
	b.eventually("the new leader takes what the agent sends again", func() bool { // nodes look for one for 3 s
		_, err := other.ReportProgress(a.ctx, &agentv1.ReportProgressRequest{OperationId: op.GetId(), Attempt: 1, Step: string(metal.StepPowerOff), Done: 5, Total: 7, Message: "the disk is full"})
		if err != nil && status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
		return err == nil
	})
	recv(t, w, func(o *bmcv1.Operation) bool { return o.GetProgress().GetDone() == 5 })
	ex, err := b.user(2).ExplainServer(b.admin(), &bmcv1.ExplainServerRequest{Ref: "web-1"})
	if err != nil || !strings.HasSuffix(ex.GetWaitingFor(), "; the disk is full") {
		t.Errorf("explained as %q, %v", ex.GetWaitingFor(), err)
	}
	if err := a.report(op.GetId(), metal.StepPowerOff, "failed", func(r *agentv1.ReportStepRequest) {
		r.Reason, r.Message = string(metal.CodeOOBUnreachable), "no answer"
	}); err != nil {
		t.Fatal(err)
	}
	last := recv(t, w, func(o *bmcv1.Operation) bool { return o.GetState() == "failed" })
	if last.GetFailure().GetReason() != "OOB_UNREACHABLE" || last.GetFailure().GetHint() == "" || last.GetServer().GetState() != "failed" {
		t.Fatalf("%v", last)
	}
	if _, err := w.Recv(); err == nil {
		t.Fatal("the watch goes on after the end")
	}
}
