package fsm_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"bmc/chaos/check"
	"bmc/fsm"
	"bmc/fsm/logpb"
)

// replicas apply the same log, one after the other.
type replicas struct {
	t     *testing.T
	all   []*fsm.FSM
	index uint64
	now   time.Time
	e     check.Evidence
}

const (
	rack   = "rack-0000000000000001"
	server = "srv-0000000000000001"
	op     = "op-0000000000000001"
)

func agent(n int) string { return fmt.Sprintf("agt-%016d", n) }

// apply returns what the first replica answers.
func (r *replicas) apply(c *logpb.Command) *fsm.Result {
	r.t.Helper()
	r.now = r.now.Add(time.Second)
	if c.Header == nil {
		c.Header = &logpb.Header{Principal: "test", Role: "admin"}
	}
	c.Header.Time = r.now.UnixNano()
	raw, err := fsm.Encode(c)
	if err != nil {
		r.t.Fatal(err)
	}
	r.index++
	var first *fsm.Result
	for i, f := range r.all {
		result, ok := f.Apply(&raft.Log{Index: r.index, Type: raft.LogCommand, Data: raw}).(*fsm.Result)
		if !ok {
			r.t.Fatal("no result")
		}
		if i == 0 {
			first = result
		}
		h := f.View().Hash()
		r.e.Replicas = append(r.e.Replicas, check.Replica{Node: fmt.Sprintf("cp%d", i+1), Revision: r.index, Hash: hex.EncodeToString(h[:])})
	}
	return first
}

func (r *replicas) must(c *logpb.Command) *fsm.Result {
	r.t.Helper()
	res := r.apply(c)
	if res.Err != nil {
		r.t.Fatalf("%s: %s", fsm.Name(c), res.Err)
	}
	return res
}

func (r *replicas) grant(agentID string) uint64 {
	now, _ := r.all[0].View().Rack(rack)
	r.must(&logpb.Command{Command: &logpb.Command_GrantLease{GrantLease: &logpb.GrantLease{RackId: rack, AgentId: agentID, ExpectedEpoch: now.Lease.Epoch}}})
	now, _ = r.all[0].View().Rack(rack)
	r.must(&logpb.Command{Command: &logpb.Command_AssignOperation{AssignOperation: &logpb.AssignOperation{OperationId: op, Attempt: 1, AgentId: agentID, Epoch: now.Lease.Epoch}}})
	return now.Lease.Epoch
}

func report(agentID string, epoch, sequence uint64, phase string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_ReportStep{ReportStep: &logpb.ReportStep{OperationId: op, Attempt: 1, Epoch: epoch, AgentId: agentID,
		Sequence: sequence, Step: "verify-oob", Phase: phase}}}
}

// A log with a takeover, a report that comes too late, and a request that comes
// twice, on two replicas: what is left is as promised.
func TestInvariantsOfTheLog(t *testing.T) {
	r := &replicas{t: t, all: []*fsm.FSM{fsm.New(fsm.Options{}), fsm.New(fsm.Options{})}, now: time.Now()}
	r.must(&logpb.Command{Command: &logpb.Command_InitCluster{InitCluster: &logpb.InitCluster{ClusterId: "test",
		Project: &logpb.Project{Id: "prj-0000000000000001", Name: "default"}}}})
	r.must(&logpb.Command{Command: &logpb.Command_ApplyInventory{ApplyInventory: &logpb.ApplyInventory{
		Racks: []*logpb.RackInput{{Id: rack, Name: "r1", Subnet: "10.77.1.0/24", RangeFrom: "10.77.1.10", RangeTo: "10.77.1.99"}},
		Servers: []*logpb.ServerInput{{Id: server, OperationId: op, Name: "r1-u01", Rack: "r1", Macs: []string{"52:54:00:00:00:01"},
			Oob: &logpb.OOB{Protocol: "ipmi", Address: "10.78.1.1", Username: "u", Password: []byte("sealed")}, Wipe: true}}}}})
	for n := 1; n <= 2; n++ {
		hash := sha256.Sum256([]byte{byte(n)})
		token := fmt.Sprintf("tok-%016d", n)
		r.must(&logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{Token: &logpb.Token{Id: token, Hash: hash[:],
			Kind: "join-agent", Name: "a", Racks: []string{rack}, Expires: r.now.Add(time.Hour).UnixNano()}}}})
		r.must(&logpb.Command{Command: &logpb.Command_JoinAgent{JoinAgent: &logpb.JoinAgent{TokenId: token, TokenHash: hash[:],
			Agent: &logpb.Agent{Id: agent(n), Name: fmt.Sprintf("r1-a%d", n)}}}})
	}
	first := r.grant(agent(1))
	r.must(report(agent(1), first, 1, "started"))
	r.grant(agent(2))
	r.apply(report(agent(1), first, 2, "done")) // of the one that was cut off
	id := uuid.Must(uuid.NewV7()).String()
	for range 2 {
		r.apply(&logpb.Command{Header: &logpb.Header{Principal: "ann", Role: "admin", RequestId: id, RequestMac: []byte("mac")},
			Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Server: &logpb.ServerRef{ServerId: server}, Hold: "cordoned", On: true}}})
	}
	r.e.View(r.all[0].View())
	for _, v := range check.Of(&r.e, "I3", "I4", "I7", "I14") {
		t.Errorf("violated %s", v)
	}
}
