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
}
