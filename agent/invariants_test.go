package agent

import (
	"net/netip"
	"testing"

	agentv1 "bmc/api/agent/v1"
	"bmc/chaos/check"
	"bmc/metal"
)

// Whoever is not enrolled gets no address, whatever is known of others.
func TestInvariantUnknownMAC(t *testing.T) {
	r := openTestRack(t)
	known := spec("srv-1", "active", "10.77.1.11", testMAC)
	mustReplace(t, r, &agentv1.RackUpdate{Revision: 1, Rack: &agentv1.RackSpec{Subnet: "10.77.1.0/24"}, Upserts: []*agentv1.ServerSpec{known}})
	e := &check.Evidence{Servers: []*metal.Server{{ID: "srv-1", RackID: "rack-1", MACs: known.Macs, Address: netip.MustParseAddr(known.Address)}}}
	for _, mac := range []string{testMAC, "52:54:00:ff:ff:ff"} {
		if m, ok := r.Lookup(mac); ok { // which DHCP then answers
			e.DHCP = append(e.DHCP, check.DHCPAnswer{Agent: "r1-a1", MAC: mac, Address: m.Addr.Addr().String(), Line: mac + " was given " + m.Addr.Addr().String()})
		}
	}
	if len(e.DHCP) == 0 {
		t.Error("nobody was answered")
	}
	for _, v := range check.Of(e, "I6") {
		t.Errorf("violated %s", v)
	}
}
