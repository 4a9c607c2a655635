package rpc

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/metal"
)

const strangeMAC = "52:54:00:ff:00:01"

// From an unknown MAC to an enrolment, as an agent and an operator ask for it.
func TestDiscovery(t *testing.T) {
	b := newBed(t, 1)
	b.inventory("r1", 1, 1)
	a := b.join("a1", "r1", 0)
	op := b.user(0)
	lease := b.must(&logpb.Command{Command: &logpb.Command_GrantLease{GrantLease: &logpb.GrantLease{RackId: a.rack, AgentId: a.id}}}).Value.(metal.Lease)
	lend := func(mac string) (*agentv1.LendAddressResponse, error) {
		return a.ctl.LendAddress(a.ctx, &agentv1.LendAddressRequest{Rack: "r1", Epoch: lease.Epoch, Mac: mac})
	}
	_, err := lend(strangeMAC)
	refused(t, err, codes.PermissionDenied, metal.CodeDenied, "")
	on := rackFile("r1", 1)
	on.Discovery = true
	if _, err := op.inv.ApplyInventory(b.admin(), &bmcv1.ApplyInventoryRequest{Racks: []*bmcv1.RackInput{on}}); err != nil {
		t.Fatal(err)
	}
	if r, err := op.inv.GetRack(b.admin(), &bmcv1.GetRackRequest{Ref: "r1"}); err != nil || !r.GetDiscovery() {
		t.Fatalf("%v, %v", r, err)
	}
	lent, err := lend(strangeMAC)
	if err != nil || lent.GetAddress() == "" || lent.GetTtl().AsDuration() > fsm.LoanTime {
		t.Fatalf("%v, %v", lent, err)
	}
	// Asked for again, and again for what is refused, nothing enters the log.
	before := b.fsm.View().Revision()
	for range 20 {
		if again, err := lend(strangeMAC); err != nil || again.GetAddress() != lent.GetAddress() {
			t.Fatalf("%v, %v", again, err)
		}
		_, err := lend("nonsense")
		refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
	}
	if after := b.fsm.View().Revision(); after != before {
		t.Errorf("the log grew by %d", after-before)
	}
	h := &agentv1.Hardware{Serial: "XJ42", Uuid: "6b1f5a10-0000-4000-8000-525400000042", Vendor: "Dell Inc.", Product: "R640", OobAddress: "10.9.1.42",
		Nics: []*agentv1.NIC{{Name: "eth0", Mac: strangeMAC, Neighbour: &agentv1.Neighbour{System: "tor-1", Port: "7"}}}}
	found, err := a.ctl.ReportDiscovered(a.ctx, &agentv1.ReportDiscoveredRequest{Rack: "r1", Epoch: lease.Epoch, Mac: strangeMAC, Hardware: h})
	if err != nil || found.GetOutcome() != fsm.OutcomeDiscovered {
		t.Fatalf("%v, %v", found, err)
	}
	e, err := op.ExplainServer(b.admin(), &bmcv1.ExplainServerRequest{Ref: found.GetName()})
	if err != nil || !strings.Contains(strings.Join(e.GetNext(), "\n"), "bmc inventory approve "+found.GetName()+" --name NAME --oob-address 10.9.1.42") {
		t.Errorf("%v, %v", e, err)
	}
	if n := e.GetServer().GetHardware().GetNics()[0].GetNeighbour(); n.GetSystem() != "tor-1" || e.GetServer().GetOobAddress() != "" {
		t.Errorf("%v", e.GetServer())
	}

	// Three lines, two of them wrong: both are told, nothing is changed.
	line := func(name, serial string) *bmcv1.ServerInput {
		return &bmcv1.ServerInput{Name: name, Serial: serial, Wipe: true, Oob: &bmcv1.OOBInput{Protocol: "ipmi", Address: "10.9.7." + name[len(name)-1:], Username: "u", Password: "p"}}
	}
	_, err = op.inv.ApplyInventory(b.admin(), &bmcv1.ApplyInventoryRequest{Servers: []*bmcv1.ServerInput{line("x-1", "XJ42"), line("x-2", "none"), line("x-3", "none either")}})
	if e := refused(t, err, codes.InvalidArgument, metal.CodeInvalid, ""); !strings.Contains(e.Message, "servers[1]") || !strings.Contains(e.Message, "servers[2]") {
		t.Errorf("%v", e)
	}
	req := &bmcv1.ApplyInventoryRequest{Servers: []*bmcv1.ServerInput{line("x-1", "xj42")}}
	got, err := op.inv.ApplyInventory(b.admin(), req)
	if err != nil || got.GetObjects()[0].GetChange() != fsm.Enrolled || got.GetObjects()[0].GetId() != found.GetServerId() {
		t.Fatalf("%v, %v", got, err)
	}
	s, err := op.GetServer(b.admin(), &bmcv1.GetServerRequest{Ref: "x-1"})
	if err != nil || s.GetState() != string(metal.StateEnrolling) || s.GetMacs()[0] != strangeMAC || s.GetRack() != "r1" {
		t.Errorf("%v, %v", s, err)
	}
	if again, err := op.inv.ApplyInventory(b.admin(), &bmcv1.ApplyInventoryRequest{Servers: []*bmcv1.ServerInput{line("x-1", "xj42")}}); err != nil || again.GetObjects()[0].GetChange() != fsm.Unchanged {
		t.Errorf("the same list again: %v, %v", again, err)
	}
	tests, err := op.inv.TestSizes(b.admin(), &bmcv1.TestSizesRequest{Ref: "x-1"})
	if err != nil || len(tests.GetTests()) != 1 {
		t.Errorf("%v, %v", tests, err)
	}
}
