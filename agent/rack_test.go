package agent

import (
	"log/slog"
	"path/filepath"
	"testing"

	"bmc/agent/boot"
	agentv1 "bmc/api/agent/v1"
)

func openTestRack(t *testing.T) *rack {
	t.Helper()
	r, err := openRack(RackConfig{Name: "r1", Address: "10.77.1.1/24"}, filepath.Join(t.TempDir(), "r1.json"), boot.New(boot.Config{Log: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func spec(id, state, addr, mac string) *agentv1.ServerSpec {
	return &agentv1.ServerSpec{Id: id, Name: id, State: state, Hostname: id, Address: addr, Macs: []string{mac}}
}

// An agent that has no seed for a machine leaves its network boot to the one
// that has.
func TestSilent(t *testing.T) {
	r := openTestRack(t)
	waits := spec("srv-1", "deploying", "10.77.1.11", testMAC)
	waits.BootRamdisk = true
	r.replace("n1", &agentv1.RackUpdate{Revision: 1, Rack: &agentv1.RackSpec{Subnet: "10.77.1.0/24"}, Upserts: []*agentv1.ServerSpec{waits}})
	if m, ok := r.Lookup(testMAC); !ok || !m.Boot.Silent || m.Boot.Ramdisk {
		t.Errorf("without a seed: %+v, %v", m.Boot, ok)
	}
	sess := r.boots.Open(boot.Binding{Server: "srv-1", MAC: testMAC}, nil, func(boot.Event) error { return nil })
	defer sess.Close()
	if err := sess.Arm(); err != nil {
		t.Fatal(err)
	}
	if m, ok := r.Lookup(testMAC); !ok || m.Boot.Silent || !m.Boot.Ramdisk {
		t.Errorf("with a seed: %+v, %v", m.Boot, ok)
	}
	// The agent is cut off, and another one may have powered the machine on; what
	// this one heard last of the operation does not matter.
	sess.Attend(false)
	waits.BootRamdisk = false
	if m, ok := r.Lookup(testMAC); !ok || !m.Boot.Silent || m.Boot.Ramdisk {
		t.Errorf("with a seed, without the lease: %+v, %v", m.Boot, ok)
	}
	sess.Attend(true)
	if m, ok := r.Lookup(testMAC); !ok || m.Boot.Silent || !m.Boot.Ramdisk {
		t.Errorf("with a seed and the lease again: %+v, %v", m.Boot, ok)
	}
}

// A server is idle only by the word of a node that is connected, in a state without
// operations of its own, and with nothing assigned.
func TestIdle(t *testing.T) {
	for name, tc := range map[string]struct {
		state    string
		assigned string // server
		gone     bool
		frozen   bool
		want     bool
	}{
		"restored":        {state: "available", frozen: true},
		"available":       {state: "available", want: true},
		"active":          {state: "active", want: true},
		"failed":          {state: "failed", want: true},
		"cut off":         {state: "available", gone: true},
		"deploying":       {state: "deploying"},
		"warming":         {state: "available", assigned: "srv-1"},
		"another's":       {state: "available", assigned: "srv-2", want: true},
		"of another rack": {},
	} {
		r := openTestRack(t)
		m := &agentv1.RackUpdate{Revision: 1, Rack: &agentv1.RackSpec{Subnet: "10.77.1.0/24", Frozen: tc.frozen}}
		if tc.state != "" {
			m.Upserts = []*agentv1.ServerSpec{spec("srv-1", tc.state, "10.77.1.11", testMAC)}
		}
		if tc.assigned != "" {
			m.Assignments = []*agentv1.Assignment{{OperationId: "op-1", ServerId: tc.assigned}}
		}
		mustReplace(t, r, m)
		if tc.gone {
			r.gone("n1")
		}
		if got := r.idle("srv-1"); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func mustReplace(t *testing.T, r *rack, m *agentv1.RackUpdate) change {
	t.Helper()
	c, err := r.replace("n1", m)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// After a restored backup the rack's machines are answered from what was known
// before, over a restart too, and nothing is begun, until the rack is thawed.
func TestFrozenRack(t *testing.T) {
	r := openTestRack(t)
	rackSpec := func(generation uint64, frozen bool) *agentv1.RackSpec {
		return &agentv1.RackSpec{Name: "r1", Subnet: "10.77.1.0/24", Generation: generation, Frozen: frozen}
	}
	now := &agentv1.RackUpdate{Revision: 900, Rack: rackSpec(1, false), Upserts: []*agentv1.ServerSpec{
		spec("srv-1", "active", "10.77.1.11", testMAC), spec("srv-2", "available", "10.77.1.12", "52:54:00:00:00:02")}}
	mustReplace(t, r, now)
	if err := r.save(); err != nil {
		t.Fatal(err)
	}
	// The backup is older: it has the first machine at another address, and not
	// rented, and knows a third.
	backup := &agentv1.RackUpdate{Revision: 50, Rack: rackSpec(2, true), Assignments: []*agentv1.Assignment{{OperationId: "op-1", ServerId: "srv-1"}},
		Upserts: []*agentv1.ServerSpec{spec("srv-1", "available", "10.77.1.99", testMAC), spec("srv-3", "available", "10.77.1.13", "52:54:00:00:00:03")}}
	check := func(when string, r *rack) {
		t.Helper()
		if m, ok := r.Lookup(testMAC); !ok || m.Addr.Addr().String() != "10.77.1.11" || m.Authoritative || m.Boot.Ramdisk {
			t.Errorf("%s: %+v, %v", when, m, ok)
		}
		if _, ok := r.Lookup("52:54:00:00:00:03"); ok {
			t.Errorf("%s: a machine that was not known before is answered", when)
		}
		known, generation := r.frozen()
		if known == nil || generation != 2 || len(known.servers) != 2 || known.servers["srv-1"].GetState() != "active" {
			t.Errorf("%s: known %+v in generation %d", when, known, generation)
		}
		if len(r.assigned()) != 0 {
			t.Errorf("%s: assigned %v", when, r.assigned())
		}
		if err := r.save(); err != nil {
			t.Error(err)
		}
	}
	if c := mustReplace(t, r, backup); len(c.assigned) != 0 || !c.reset {
		t.Errorf("a frozen rack was assigned %v", c.assigned)
	}
	check("frozen", r)
	r.apply(2, &agentv1.RackUpdate{Revision: 51, Upserts: []*agentv1.ServerSpec{spec("srv-2", "quarantined", "10.77.1.98", "52:54:00:00:00:02")}})
	check("after a change", r)
	// Nor is one that has not heard of the restore yet, whose revisions are higher.
	r.apply(1, &agentv1.RackUpdate{Revision: 901, Removed: []string{"srv-2"}, Assignments: []*agentv1.Assignment{{OperationId: "op-2", ServerId: "srv-2"}}})
	if _, ok := r.server("srv-2"); !ok || r.revision != 51 || r.assignments["op-2"] != nil {
		t.Errorf("a change of the former generation was taken: revision %d, assigned %v", r.revision, r.assignments)
	}
	if _, err := r.replace("n2", now); err == nil {
		t.Error("a node of the former generation was believed")
	}
	again, err := openRack(r.conf, r.path, r.boots)
	if err != nil {
		t.Fatal(err)
	}
	mustReplace(t, again, backup)
	check("after a restart", again)

	c := again.apply(2, &agentv1.RackUpdate{Revision: 60, Rack: rackSpec(2, false)})
	if len(c.assigned) != 1 {
		t.Errorf("thawed: assigned %v", c.assigned)
	}
	if m, ok := again.Lookup(testMAC); !ok || m.Addr.Addr().String() != "10.77.1.99" || !m.Authoritative {
		t.Errorf("thawed: %+v, %v", m, ok)
	}
	if known, _ := again.frozen(); known != nil {
		t.Errorf("thawed: %+v", known)
	}
	if err := again.save(); err != nil {
		t.Fatal(err)
	}
	last, err := openRack(r.conf, r.path, r.boots)
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := last.Lookup(testMAC); !ok || m.Addr.Addr().String() != "10.77.1.99" {
		t.Errorf("saved after the thaw: %+v, %v", m, ok)
	}
}
