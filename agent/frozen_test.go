package agent

import (
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// A backup was restored while the agent was away. It tells what it knew, with
// what the controllers say now, once it holds the lease; until then it begins
// nothing, and its machines get what they had.
func TestReconcile(t *testing.T) {
	b := newBench(t, 2)
	b.cluster.edit(func() {
		b.cluster.rack.Generation = 1
		b.cluster.servers[0].State, b.cluster.servers[0].Hostname, b.cluster.servers[0].Revision = string(metal.StateActive), "web-1", 40
		b.cluster.revision = 100
	})
	stop := b.run()
	b.eventually("the machine is known", func() bool { _, ok := b.lookup(); return ok })
	b.assign(metal.KindEnroll)
	b.ended() // and its journal stays
	stop()
	before := len(b.bmc.Log())
	b.cluster.edit(func() {
		c := b.cluster
		c.revision, c.held, c.told = 7, false, nil
		c.rack = proto.CloneOf(c.rack)
		c.rack.Generation, c.rack.Frozen = 2, true
		past := proto.CloneOf(c.servers[0])
		past.State, past.Hostname, past.Address, past.Revision = string(metal.StateAvailable), "r1-u01", "127.0.0.9", 6
		c.servers = []*agentv1.ServerSpec{past}
	})
	b.assign(metal.KindRestart)
	stop = b.run()
	a := func(n int) func() bool {
		return func() bool {
			b.cluster.mu.Lock()
			defer b.cluster.mu.Unlock()
			return b.cluster.renewals > n
		}
	}
	b.cluster.mu.Lock()
	n := b.cluster.renewals
	b.cluster.mu.Unlock()
	b.eventually("it asks for the lease", a(n+1))
	stop() // what it knew survives another restart
	defer b.run()()
	b.eventually("it asks for the lease", a(n+3))
	if m, ok := b.lookup(); !ok || m != "127.0.0.1" {
		t.Errorf("the machine would get %q, %v", m, ok)
	}
	b.cluster.mu.Lock()
	if len(b.cluster.told) != 0 || len(b.cluster.reports) != 0 || len(b.bmc.Log()) != before {
		t.Errorf("without the lease: told %v, reported %v, the controller got %v", b.cluster.told, b.cluster.reports, b.bmc.Log())
	}
	b.cluster.mu.Unlock()

	b.cluster.edit(func() { b.cluster.held = true })
	b.ended() // the restart, once the rack was thawed
	b.cluster.mu.Lock()
	defer b.cluster.mu.Unlock()
	if len(b.cluster.told) != 1 {
		t.Fatalf("told %v", b.cluster.told)
	}
	req := b.cluster.told[0]
	if s := req.GetServers(); req.GetRack() != "r1" || req.GetGeneration() != 2 || req.GetRevision() < 100 || len(s) != 1 || s[0].GetServerId() != testServer ||
		s[0].GetState() != "active" || s[0].GetHostname() != "web-1" || s[0].GetRevision() != 40 || s[0].GetPower() != "off" {
		t.Errorf("told %v", req)
	}
	if ops := req.GetOperations(); len(ops) != 1 || ops[0].GetOperationId() != "op-enroll" || ops[0].GetAttempt() != 1 || len(ops[0].GetDoneSteps()) != len(metal.Plan(metal.KindEnroll)) {
		t.Errorf("operations %v", ops)
	}
	if len(b.cluster.reports) == 0 {
		t.Error("nothing was done after the thaw")
	}
}

// lookup is the address that the machine would get.
func (b *bench) lookup() (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.netboot.Directory == nil {
		return "", false
	}
	m, ok := b.netboot.Directory.Lookup(testMAC)
	return m.Addr.Addr().String(), ok
}
