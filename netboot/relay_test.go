package netboot

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bmc/netboot/dhcp"
	"bmc/netboot/httpboot"
)

// twoRacks are the interface's own rack, 10.77.0.0/24, and one behind a relay,
// 10.88.0.0/24. The second still knows a machine that has moved to the first.
func twoRacks() (own, behind *directory) {
	all := testDirectory()
	own, behind = &directory{machines: map[string]Machine{}}, &directory{machines: map[string]Machine{}}
	own.machines[ramdiskMAC] = all.machines[ramdiskMAC]
	own.machines[diskMAC] = all.machines[diskMAC]
	behind.machines[relayMAC] = all.machines[relayMAC]
	moved := all.machines[relayMAC]
	moved.ServerID, moved.MAC, moved.Addr = "srv-moved", diskMAC, netip.MustParsePrefix("10.88.0.102/24")
	behind.machines[diskMAC] = moved
	return own, behind
}

func (d *directory) rack() Rack {
	return Rack{Subnet: func() netip.Prefix { return netip.MustParsePrefix("10.88.0.0/24") }, Directory: d, Events: d.event}
}

// Which rack a packet belongs to: the one it is of and no other hears of it.
func TestSender(t *testing.T) {
	at := netip.MustParseAddr
	relay := func(a string) dhcp.Origin { return dhcp.Origin{Relayed: true, Addr: at(a)} }
	for _, tt := range []struct {
		name   string
		mac    string
		from   dhcp.Origin
		addr   string // "": no answer
		own    []EventKind
		behind []EventKind
	}{
		{"direct", ramdiskMAC, dhcp.Origin{}, "10.77.0.101/24", []EventKind{EventUnserved}, nil},
		{"direct, of the other rack", relayMAC, dhcp.Origin{}, "", []EventKind{EventUnknown}, nil},
		{"direct, known to both", diskMAC, dhcp.Origin{}, "10.77.0.102/24", []EventKind{EventUnserved}, nil},
		{"relayed", relayMAC, relay("10.88.0.1"), "10.88.0.103/24", nil, []EventKind{EventUnserved}},
		{"relayed, of the other rack", ramdiskMAC, relay("10.88.0.1"), "", nil, []EventKind{EventUnknown}},
		{"relayed, known to both", diskMAC, relay("10.88.0.1"), "10.88.0.102/24", nil, []EventKind{EventUnserved}},
		{"relayed, unknown", strangerMAC, relay("10.88.0.1"), "", nil, []EventKind{EventUnknown}},
		{"relayed from a network of no rack", relayMAC, relay("10.99.0.1"), "", []EventKind{EventStray}, nil},
		{"relayed within the own network", ramdiskMAC, relay("10.77.0.9"), "10.77.0.101/24", []EventKind{EventUnserved}, nil},
		{"renews", ramdiskMAC, dhcp.Origin{Addr: at("10.77.0.101")}, "10.77.0.101/24", []EventKind{EventUnserved}, nil},
		{"renews from behind the relay", relayMAC, dhcp.Origin{Addr: at("10.88.0.103")}, "10.88.0.103/24", nil, []EventKind{EventUnserved}},
		{"has moved, and asks for its old address", ramdiskMAC, dhcp.Origin{Addr: at("10.88.0.103")}, "10.77.0.101/24", []EventKind{EventUnserved}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			own, behind := twoRacks()
			c := testConfig(own)
			c.Relayed = []Rack{behind.rack()}
			s, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			l, ok := s.lease(tt.mac, tt.from)
			if ok != (tt.addr != "") || ok && (l.Addr.String() != tt.addr || l.Relayed != strings.HasPrefix(tt.addr, "10.88.")) {
				t.Errorf("lease %+v, %v; want the address %q", l, ok, tt.addr)
			}
			s.seenDHCP(dhcp.Seen{MAC: tt.mac, From: tt.from, Known: ok})
			kinds := func(d *directory) (out []EventKind) {
				for _, e := range d.seen {
					out = append(out, e.Kind)
				}
				return out
			}
			if !slices.Equal(kinds(own), tt.own) || !slices.Equal(kinds(behind), tt.behind) {
				t.Errorf("events %+v of the own rack, %+v of the other; want %v, %v", own.seen, behind.seen, tt.own, tt.behind)
			}
		})
	}
}

// Requests of TFTP and HTTP come with the machine's own address: it names the rack.
func TestClientsOfTwoRacks(t *testing.T) {
	own, behind := twoRacks()
	c := testConfig(own)
	c.Relayed = []Rack{behind.rack()}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	here, there := netip.MustParseAddr("10.77.0.102"), netip.MustParseAddr("10.88.0.102")
	for _, addr := range []netip.Addr{here, there} { // the same MAC
		if got, ok := (source{s}).Assigned(diskMAC, addr); !ok || got != addr {
			t.Errorf("%s: assigned %v, %v", addr, got, ok)
		}
	}
	if name, _, err := (source{s}).Script(t.Context(), diskMAC, here); err != nil || name != "local" {
		t.Errorf("script %q, %v", name, err)
	}
	if name, _, err := (source{s}).Script(t.Context(), diskMAC, there); err != nil || name != "ramdisk" {
		t.Errorf("script %q, %v", name, err)
	}
	if data, err := (source{s}).Seed(t.Context(), diskMAC, here); err == nil {
		t.Errorf("the seed of another rack's machine: %q", data)
	}
	s.loaderSent(there, "ipxe.efi")
	s.served(httpboot.Served{Kind: httpboot.Script, MAC: ramdiskMAC, Addr: here, Name: "ramdisk"})
	if len(own.seen) != 1 || own.seen[0].Kind != EventScript || len(behind.seen) != 1 || behind.seen[0].ServerID != "srv-moved" {
		t.Errorf("events %+v and %+v", own.seen, behind.seen)
	}
}

func TestOnlyRelayed(t *testing.T) {
	own, behind := twoRacks()
	c := testConfig(own)
	c.Directory, c.Relayed = nil, []Rack{behind.rack()}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if l, ok := s.lease(relayMAC, dhcp.Origin{}); ok {
		t.Errorf("without a relay: %+v", l)
	}
	s.seenDHCP(dhcp.Seen{MAC: relayMAC})
	if !own.has(EventStray, relayMAC, "") || len(behind.seen) > 0 {
		t.Errorf("events %+v and %+v", own.seen, behind.seen)
	}
	s.loaderSent(netip.MustParseAddr("10.77.0.101"), "ipxe.efi") // of nobody: no event
	if _, ok := (source{s}).Assigned(relayMAC, netip.MustParseAddr("10.77.0.101")); ok {
		t.Error("an address of no rack was found")
	}
	if err := s.advertise(t.Context()); err != nil {
		t.Error(err)
	}
}

// One server, two racks, one of them behind ISC's relay.
func TestRelayedRack(t *testing.T) {
	if !inNamespace(t, "busybox", "dhcrelay", "curl") {
		return
	}
	r := newRack(t)
	own, behind := twoRacks()
	serveOn(t, own, "rack0", "10.77.0.1", behind.rack())
	run(t, "ip", "route", "add", "10.88.0.0/24", "via", "10.77.0.9")
	relay := newHost(t)
	r.plug(relay, "north", "52:54:00:00:01:01")
	relay.run("ip", "addr", "add", "10.77.0.9/24", "dev", "north")
	relay.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
	far := newHost(t)
	relay.run("ip", "link", "add", "south", "type", "veth", "peer", "name", "eth0", "netns", far.pid)
	relay.run("ip", "addr", "add", "10.88.0.1/24", "dev", "south")
	relay.run("ip", "link", "set", "south", "up")
	become := func(mac string) {
		far.run("ip", "link", "set", "eth0", "down")
		far.run("ip", "link", "set", "eth0", "address", mac)
		far.run("ip", "link", "set", "eth0", "up")
	}
	become(relayMAC)
	relay.start("dhcrelay", "-4", "-d", "--no-pid", "-a", "-id", "south", "-iu", "north", "10.77.0.1")

	near := r.host(ramdiskMAC)
	got, ok := near.udhcpc()
	if !ok {
		t.Fatal("no answer in the own rack")
	}
	check(t, got, map[string]string{"ip": "10.77.0.101", "router": "10.77.0.1", "serverid": "10.77.0.1"})
	waitFor(t, "an answer through the relay", func() bool { // it starts beside us
		got, ok = far.udhcpc()
		return ok
	})
	check(t, got, map[string]string{"ip": "10.88.0.103", "router": "10.88.0.1", "serverid": "10.77.0.1"})
	if own.has(EventLease, relayMAC, "") || !behind.has(EventLease, relayMAC, "") || behind.has(EventLease, ramdiskMAC, "") {
		t.Errorf("events %+v and %+v", own.seen, behind.seen)
	}

	far.run("ip", "addr", "add", "10.88.0.103/24", "dev", "eth0")
	far.run("ip", "route", "add", "default", "via", "10.88.0.1")
	near.run("ip", "addr", "add", "10.77.0.101/24", "dev", "eth0")
	for mac, h := range map[string]*host{ramdiskMAC: near, relayMAC: far} {
		if text := h.run("curl", "-sSf", "--max-time", "20", "http://10.77.0.1/boot/ipxe?mac="+mac); !strings.Contains(text, "http://10.77.0.1/boot/seed/"+mac+".cpio") {
			t.Errorf("script of %s: %s", mac, text)
		}
	}
	if status := far.run("curl", "-sS", "--max-time", "20", "-o", "out", "-w", "%{http_code}", "http://10.77.0.1/boot/ipxe?mac="+ramdiskMAC); status != "404" {
		t.Errorf("the other rack's script: status %s", status)
	}
	// A system that has its address renews without the relay.
	far.start("busybox", "udhcpc", "-f", "-i", "eth0", "-s", far.script("$1"))
	check(t, far.environment("renew"), map[string]string{"ip": "10.88.0.103", "serverid": "10.77.0.1"})

	for mac, d := range map[string]*directory{ramdiskMAC: behind, strangerMAC: behind} {
		become(mac)
		if got, ok := far.udhcpc(); ok {
			t.Errorf("%s got %v behind the relay", mac, got)
		}
		waitFor(t, "the event", func() bool { return d.has(EventUnknown, mac, "") })
	}
	if got, ok := r.host(relayMAC).udhcpc(); ok {
		t.Errorf("a machine of the rack behind the relay got %v in the other", got)
	}
	waitFor(t, "the event", func() bool { return own.has(EventUnknown, relayMAC, "") })
}
