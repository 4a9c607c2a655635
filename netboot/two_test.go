package netboot

import (
	"maps"
	"net/netip"
	"testing"
)

// A rack's two agents on one network: both offer a machine the same address,
// each in its own name; what a machine chose of the other is left alone; and
// while one has a machine's seed, the other does not answer its network boot.
func TestTwoServers(t *testing.T) {
	if !inNamespace(t, "busybox", "curl") {
		return
	}
	r, first := newRack(t), testDirectory()
	second := testDirectory()
	m := second.machines[ramdiskMAC]
	m.Boot = BootSpec{Silent: true}
	second.machines[ramdiskMAC] = m
	// The second server's port, in the same namespace: it must not answer ARP
	// for the first one's address.
	for _, cmd := range [][]string{
		{"sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2", "net.ipv4.conf.all.rp_filter=0"},
		{"ip", "link", "add", "second", "type", "veth", "peer", "name", "port2"},
		{"ip", "link", "set", "port2", "master", "rack0"},
		{"ip", "link", "set", "port2", "up"},
		{"ip", "addr", "add", "10.77.0.3/24", "dev", "second"},
		{"ip", "link", "set", "second", "up"},
	} {
		run(t, cmd...)
	}
	serveOn(t, first, "rack0", "10.77.0.1")
	serveOn(t, second, "second", "10.77.0.3")

	h := r.host(ramdiskMAC)
	pxe := []string{"-V", "PXEClient:Arch:00007", "-x", "0x5d:0007"}
	for i := range 10 {
		got, ok := h.udhcpc(pxe...)
		if !ok {
			t.Fatal("no answer to a network boot")
		}
		check(t, got, map[string]string{"ip": "10.77.0.101", "serverid": "10.77.0.1", "siaddr": "10.77.0.1", "boot_file": "ipxe.efi"})
		if i == 0 {
			waitFor(t, "the other one to have been silent", func() bool {
				return second.has(EventUnserved, ramdiskMAC, "boots from another server")
			})
		}
	}
	// A system that runs is answered by both, and takes the first that comes.
	system := r.host(diskMAC)
	seen := map[string]int{}
	for range 10 {
		got, ok := system.udhcpc()
		if !ok {
			t.Fatal("no answer")
		}
		check(t, got, map[string]string{"ip": "10.77.0.102"})
		seen[got["serverid"]]++
	}
	for server := range maps.Keys(seen) {
		if addr := netip.MustParseAddr(server); addr != netip.MustParseAddr("10.77.0.1") && addr != netip.MustParseAddr("10.77.0.3") {
			t.Errorf("an answer of %s", server)
		}
	}
	for _, d := range []*directory{first, second} {
		waitFor(t, "both to offer", func() bool { return d.has(EventDHCP, diskMAC, "offered") })
	}
	if !first.has(EventUnserved, diskMAC, "chose another server") && !second.has(EventUnserved, diskMAC, "chose another server") {
		t.Error("nobody was passed over")
	}
	if first.has(EventDHCP, diskMAC, "refused") || second.has(EventDHCP, diskMAC, "refused") {
		t.Error("the address that the other one offered was refused")
	}
	// Either gives the files, and the one without a seed sends on to the other.
	h.run("ip", "addr", "add", "10.77.0.101/24", "dev", "eth0")
	for url, want := range map[string]string{
		"http://10.77.0.1/ramdisk/vmlinuz":                   "kernel",
		"http://10.77.0.3/ramdisk/vmlinuz":                   "kernel",
		"http://10.77.0.1/boot/seed/" + ramdiskMAC + ".cpio": "seed of " + ramdiskMAC,
	} {
		if got := h.run("curl", "-sSf", "--max-time", "20", url); got != want {
			t.Errorf("%s: %q", url, got)
		}
	}
	if got := h.run("curl", "-sSf", "--max-time", "20", "http://10.77.0.3/boot/ipxe?mac="+ramdiskMAC); got != "#!ipxe\n:anew\nsleep 2\ndhcp || goto anew\nchain --replace --autofree ${filename} || goto anew\n" {
		t.Errorf("script of the one without a seed: %s", got)
	}
	if got := h.run("curl", "-sS", "--max-time", "20", "-o", "out", "-w", "%{http_code}", "http://10.77.0.3/boot/seed/"+ramdiskMAC+".cpio"); got != "404" {
		t.Errorf("seed of the one without a seed: status %s", got)
	}
}
