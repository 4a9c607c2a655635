package agent

import (
	"slices"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// away stops every node; the returned function starts them again, at the same
// addresses.
func (b *bench) away() (back func()) {
	for _, n := range b.cluster.nodes {
		n.server.Stop()
	}
	return func() {
		for _, n := range b.cluster.nodes {
			n.start(b.t)
		}
	}
}

// With every node gone, and the agent restarted meanwhile, machines get their
// addresses, and a task that a ramdisk was given runs to its end. When the nodes
// are back all of it goes on, and nothing was done twice.
func TestEveryNodeGone(t *testing.T) {
	b := newBench(t, 2)
	slow, stop := b.runUntilWipe()
	back := b.away()
	if m, ok := b.lookup(); !ok || m != "127.0.0.1" {
		t.Errorf("the machine would get %q, %v", m, ok)
	}
	stop()
	defer b.run()()
	if m, ok := b.lookup(); !ok || m != "127.0.0.1" {
		t.Errorf("after a restart the machine would get %q, %v", m, ok)
	}
	close(slow) // the wipe ends while nobody is there
	power := len(b.bmc.Log())
	back()
	b.ended()
	b.mu.Lock()
	defer b.mu.Unlock()
	if want := []string{"inspect", "wipe"}; !slices.Equal(b.tasks, want) {
		t.Errorf("tasks %v, want %v", b.tasks, want)
	}
	if got := b.bmc.Log()[power:]; !slices.Equal(got, []string{"off"}) {
		t.Errorf("after the outage the controller got %v", got)
	}
}

// The agent's certificate runs out while no node is there. It may renew, and
// nothing else; the connections that showed the old one are dialed again.
func TestCertificateExpiresInAnOutage(t *testing.T) {
	b := newBench(t, 1)
	b.cluster.life = 4 * time.Second
	stop := b.run()
	b.eventually("the machine is known", func() bool { _, ok := b.lookup(); return ok })
	back := b.away()
	stop()
	id, err := loadIdentity(b.cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := newCredentials(id)
	if err != nil {
		t.Fatal(err)
	}
	b.eventually("the certificate runs out", func() bool { return time.Now().After(creds.cert.Load().Leaf.NotAfter) })
	b.cluster.mu.Lock()
	b.cluster.renewed, b.cluster.life = 0, 0
	b.cluster.mu.Unlock()
	defer b.run()()
	back()
	b.eventually("it renews", func() bool {
		b.cluster.mu.Lock()
		defer b.cluster.mu.Unlock()
		return b.cluster.renewed > 0
	})
	b.assign(metal.KindEnroll)
	b.ended()
}

// A static list of one node, and no gossip: the agent learns the others from any
// that answers, finds those that come later, and drops those that leave; then
// the one of the list may die, too.
func TestNodesAreLearntAndDropped(t *testing.T) {
	b := newBench(t, 3)
	addrs := func(which ...int) (out []string) {
		for _, i := range which {
			out = append(out, b.cluster.nodes[i].addr)
		}
		slices.Sort(out)
		return out
	}
	b.cfg.Nodes = addrs(0)
	members := func(which ...int) {
		b.cluster.edit(func() {
			b.cluster.rack = &agentv1.RackSpec{Id: "rack-1", Name: "r1", Subnet: "127.0.0.0/24", Domain: "lab", Nodes: addrs(which...)}
		})
	}
	connected := func(which ...int) func() bool {
		return func() bool {
			got := b.agent.nodes.addrs()
			slices.Sort(got)
			return slices.Equal(got, addrs(which...))
		}
	}
	members(0, 1)
	stop := b.run()
	b.eventually("the third, which has left the cluster, is dropped", connected(0, 1))
	late := &fakeNode{cluster: b.cluster, addr: "127.0.0.1:0"}
	late.start(t)
	b.cluster.nodes = append(b.cluster.nodes, late)
	members(0, 3)
	b.eventually("a node that came later is found, one that left is dropped", connected(0, 3))
	b.cluster.nodes[0].server.Stop()
	b.cluster.nodes[1].server.Stop()
	b.cluster.nodes[2].server.Stop()
	b.assign(metal.KindEnroll)
	b.ended()
	stop()
	// After a restart it finds its way without those that it first knew.
	defer b.run()()
	b.eventually("the rack is followed again", func() bool { _, live := b.agent.named(); return live })
}
