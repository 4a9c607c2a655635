package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

var relayGateway = netip.MustParseAddr("10.77.2.1")

// dhcpPacket is a packet's fixed part with options behind it.
func dhcpPacket(op byte, change func([]byte), options ...byte) []byte {
	p := make([]byte, bootpOptions)
	p[0], p[1], p[2] = op, 1, 6
	copy(p[bootpChaddr:], []byte{0x52, 0x54, 0, 2, 1, 1})
	copy(p[bootpOptions-4:], dhcpCookie)
	if change != nil {
		change(p)
	}
	return append(p, options...)
}

func at(offset int, b ...byte) func([]byte) { return func(p []byte) { copy(p[offset:], b) } }

func TestRelayUp(t *testing.T) {
	circuit := append([]byte{optionRelay, 7, 1, 5}, rackInterface...)
	for _, tt := range []struct {
		name    string
		raw     []byte
		giaddr  netip.Addr // zero: not relayed
		options []byte
	}{
		{"a request", dhcpPacket(1, nil, 53, 1, 1, 255), relayGateway, append([]byte{53, 1, 1}, append(circuit, 255)...)},
		{"with padding, and an option 82 of a client", dhcpPacket(1, nil, 82, 2, 9, 0, 0, 53, 1, 1, 255, 0, 0), relayGateway, append([]byte{53, 1, 1}, append(circuit, 255)...)},
		{"of another relay", dhcpPacket(1, at(bootpGiaddr, 10, 99, 0, 1), 82, 1, 7, 255), netip.MustParseAddr("10.99.0.1"), []byte{82, 1, 7, 255}},
		{"without options", dhcpPacket(1, nil), relayGateway, append(circuit, 255)},
		{"too many hops", dhcpPacket(1, at(bootpHops, maxHops), 255), netip.Addr{}, nil},
		{"a reply", dhcpPacket(2, nil, 255), netip.Addr{}, nil},
		{"no cookie", dhcpPacket(1, at(bootpOptions-4, 0)), netip.Addr{}, nil},
		{"short", dhcpPacket(1, nil)[:200], netip.Addr{}, nil},
		{"empty", nil, netip.Addr{}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, ok := relayUp(tt.raw, relayGateway)
			if ok != tt.giaddr.IsValid() {
				t.Fatalf("relayed: %v", ok)
			}
			if !ok {
				return
			}
			if got := netip.AddrFrom4([4]byte(out[bootpGiaddr:])); got != tt.giaddr || out[bootpHops] != tt.raw[bootpHops]+1 {
				t.Errorf("giaddr %s, %d hops", got, out[bootpHops])
			}
			if !bytes.Equal(out[bootpOptions:], tt.options) {
				t.Errorf("options % x, want % x", out[bootpOptions:], tt.options)
			}
		})
	}
}

func TestRelayDown(t *testing.T) {
	ours := func(more ...func([]byte)) func([]byte) {
		return func(p []byte) {
			copy(p[bootpGiaddr:], relayGateway.AsSlice())
			for _, f := range more {
				f(p)
			}
		}
	}
	yours, all := at(bootpYiaddr, 10, 77, 2, 100), netip.MustParseAddr("255.255.255.255")
	for _, tt := range []struct {
		name string
		raw  []byte
		to   netip.Addr // zero: not relayed
		mac  bool
	}{
		{"an offer", dhcpPacket(2, ours(yours), 53, 1, 2, 82, 2, 1, 0, 255), netip.MustParseAddr("10.77.2.100"), true},
		{"to who asked for a broadcast", dhcpPacket(2, ours(yours, at(bootpFlags, 0x80)), 53, 1, 2, 255), all, false},
		{"to who has an address", dhcpPacket(2, ours(at(bootpCiaddr, 10, 77, 2, 7)), 53, 1, 5, 255), netip.MustParseAddr("10.77.2.7"), true},
		{"to nowhere", dhcpPacket(2, ours(), 53, 1, 6, 255), all, false},
		{"of another relay", dhcpPacket(2, func(p []byte) { copy(p[bootpGiaddr:], []byte{10, 77, 3, 1}) }, 255), netip.Addr{}, false},
		{"a request", dhcpPacket(1, ours(yours), 255), netip.Addr{}, false},
		{"malformed options", dhcpPacket(2, ours(yours), 53, 1, 2, 54, 200, 1), netip.MustParseAddr("10.77.2.100"), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, to, mac, ok := relayDown(tt.raw, relayGateway)
			if ok != tt.to.IsValid() || ok && (to != tt.to || (mac != nil) != tt.mac) {
				t.Fatalf("to %s, %s, %v", to, mac, ok)
			}
			if ok && (len(out) < 300 || bytes.Contains(out[bootpOptions:], []byte{82, 2})) {
				t.Errorf("%d bytes: % x", len(out), out[bootpOptions:])
			}
		})
	}
}

func TestPlanOfRelayedRacks(t *testing.T) {
	c := Config{Dir: t.TempDir(), Racks: 3, Relayed: 2, Agents: 2, Light: 2}
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	if err := c.validate(); err != nil {
		t.Fatal(err)
	}
	p := newPlan(&c)
	if len(p.racks[0].agents) != 2 || len(p.racks[1].agents)+len(p.racks[2].agents) != 0 || p.racks[0].relay != nil {
		t.Fatalf("racks %+v", p.racks)
	}
	r := p.racks[2]
	if r.gateway != netip.MustParseAddr("10.77.3.1") || r.relay.up != netip.MustParseAddr("10.77.1.252") || len(r.relay.servers) != 2 || p.agentsOf(r)[1].oobIn(r) != netip.MustParseAddr("10.78.3.2") {
		t.Errorf("rack %+v behind %+v", r, r.relay)
	}
	f := c.agentFile(&p, p.racks[0], p.racks[0].agents[1], storeFile{})
	want := []agentRackFile{
		{Name: "r1", Interface: "rack0", Address: "10.77.1.2/24"},
		{Name: "r2", Interface: "rack0", Address: "10.77.1.2/24", Relayed: true},
		{Name: "r3", Interface: "rack0", Address: "10.77.1.2/24", Relayed: true},
	}
	if fmt.Sprint(f.Racks) != fmt.Sprint(want) {
		t.Errorf("an agent's racks %+v", f.Racks)
	}
	for _, n := range []int{-1, 3} {
		c.Relayed = n
		if err := c.validate(); err == nil || !strings.Contains(err.Error(), "behind a relay") {
			t.Errorf("%d of three racks behind a relay: %v", n, err)
		}
	}
}
