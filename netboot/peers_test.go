package netboot

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"bmc/netboot/ipxe"
)

// udhcpc asks once and returns what it was given; ok is false if nobody answered.
func (h *host) udhcpc(extra ...string) (map[string]string, bool) {
	h.t.Helper()
	args := append([]string{"busybox", "udhcpc", "-f", "-q", "-n", "-t", "3", "-T", "1", "-i", "eth0", "-s", h.script("$1")}, extra...)
	out, err := h.command(args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, false
	}
	if err != nil {
		h.t.Fatalf("udhcpc: %v\n%s", err, out)
	}
	return h.environment("bound"), true
}

func check(t *testing.T, got map[string]string, want map[string]string) {
	t.Helper()
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
}

func TestUdhcpc(t *testing.T) {
	if !inNamespace(t, "busybox") {
		return
	}
	r, d := newRack(t), testDirectory()
	serveRack(t, d)
	want := map[string]string{"ip": "10.77.0.101", "subnet": "255.255.255.0", "router": "10.77.0.1", "dns": "10.77.0.2",
		"domain": "rack.test", "hostname": "r1-u01", "serverid": "10.77.0.1", "siaddr": "10.77.0.1", "lease": "8"}
	h := r.host(ramdiskMAC)
	got, ok := h.udhcpc()
	if !ok {
		t.Fatal("no answer")
	}
	check(t, got, want)
	got, ok = h.udhcpc("-B") // broadcast flag
	if !ok {
		t.Fatal("no answer to the broadcast flag")
	}
	check(t, got, want)
	got, ok = h.udhcpc("-r", "10.77.0.66") // another address
	if !ok {
		t.Fatal("no answer to a request for another address")
	}
	check(t, got, want)
	if !d.has(EventLease, ramdiskMAC, "") {
		t.Error("no lease was told")
	}

	stranger := r.host(strangerMAC)
	if got, ok := stranger.udhcpc(); ok {
		t.Errorf("a machine that is not enrolled got %v", got)
	}
	waitFor(t, "the event", func() bool { return d.has(EventUnknown, strangerMAC, "") })
}

func TestDhclient(t *testing.T) {
	if !inNamespace(t, "dhclient") {
		return
	}
	r, d := newRack(t), testDirectory()
	serveRack(t, d)
	h := r.host(diskMAC)
	dhclient := func(lease string, more ...string) []string {
		return append([]string{"dhclient", "-4", "-d", "-sf", h.script("$reason"), "-cf", "/dev/null",
			"-lf", filepath.Join(h.dir, lease), "-pf", filepath.Join(h.dir, lease+".pid")}, more...)
	}
	h.start(dhclient("leases", "eth0")...)
	want := map[string]string{"new_ip_address": "10.77.0.102", "new_subnet_mask": "255.255.255.0", "new_host_name": "r1-u02",
		"new_domain_name": "rack.test", "new_dhcp_server_identifier": "10.77.0.1", "new_dhcp_lease_time": "8"}
	check(t, h.environment("BOUND"), want)
	// With its address, which the script does not set, the client renews by unicast.
	h.run("ip", "addr", "add", "10.77.0.102/24", "dev", "eth0")
	check(t, h.environment("RENEW"), want)

	// A client that comes back with its lease is told at once that it still holds.
	h = r.host(ramdiskMAC)
	text := "lease { interface \"eth0\"; fixed-address 10.77.0.101; option subnet-mask 255.255.255.0; option dhcp-lease-time 100000; " +
		"option dhcp-message-type 5; option dhcp-server-identifier 10.77.0.7; renew 4 2037/01/01 00:00:00; rebind 4 2037/01/01 00:00:00; expire 4 2037/01/01 00:00:00; }\n"
	if err := os.WriteFile(filepath.Join(h.dir, "old"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start(dhclient("old", "eth0")...)
	check(t, h.environment("REBOOT"), map[string]string{"new_ip_address": "10.77.0.101", "new_dhcp_server_identifier": "10.77.0.1"})
}

// A client that remembers another network's lease is refused, and then gets its own.
func TestDhclientRefused(t *testing.T) {
	if !inNamespace(t, "dhclient") {
		return
	}
	r, d := newRack(t), testDirectory()
	serveRack(t, d)
	h := r.host(diskMAC)
	text := "lease { interface \"eth0\"; fixed-address 192.168.9.9; option subnet-mask 255.255.255.0; option dhcp-lease-time 100000; " +
		"option dhcp-message-type 5; option dhcp-server-identifier 192.168.9.1; renew 4 2037/01/01 00:00:00; rebind 4 2037/01/01 00:00:00; expire 4 2037/01/01 00:00:00; }\n"
	if err := os.WriteFile(filepath.Join(h.dir, "old"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start("dhclient", "-4", "-d", "-sf", h.script("$reason"), "-cf", "/dev/null", "-lf", filepath.Join(h.dir, "old"), "-pf", filepath.Join(h.dir, "pid"), "eth0")
	check(t, h.environment("BOUND"), map[string]string{"new_ip_address": "10.77.0.102"})
	if !d.has(EventDHCP, diskMAC, "refused") {
		t.Error("the old address was not refused")
	}
}

func TestRelay(t *testing.T) {
	if !inNamespace(t, "busybox", "dhcrelay") {
		return
	}
	r, d := newRack(t), testDirectory()
	serveRack(t, d)
	run(t, "ip", "route", "add", "10.88.0.0/24", "via", "10.77.0.9")

	relay := newHost(t)
	r.plug(relay, "north", "52:54:00:00:01:01")
	relay.run("ip", "addr", "add", "10.77.0.9/24", "dev", "north")
	client := newHost(t)
	relay.run("ip", "link", "add", "south", "type", "veth", "peer", "name", "eth0", "netns", client.pid)
	relay.run("ip", "addr", "add", "10.88.0.1/24", "dev", "south")
	relay.run("ip", "link", "set", "south", "up")
	client.run("ip", "link", "set", "eth0", "address", relayMAC)
	client.run("ip", "link", "set", "eth0", "up")
	relay.start("dhcrelay", "-4", "-d", "--no-pid", "-a", "-id", "south", "-iu", "north", "10.77.0.1") // -a: option 82

	want := map[string]string{"ip": "10.88.0.103", "subnet": "255.255.255.0", "router": "10.88.0.1", "serverid": "10.77.0.1"}
	for _, flag := range [][]string{nil, {"-B"}} {
		var got map[string]string
		waitFor(t, "an answer through the relay", func() bool { // it starts beside us
			var ok bool
			got, ok = client.udhcpc(flag...)
			return ok
		})
		check(t, got, want)
	}

	// A machine of another network does not get its address behind the relay.
	client.run("ip", "link", "set", "eth0", "down")
	client.run("ip", "link", "set", "eth0", "address", ramdiskMAC)
	client.run("ip", "link", "set", "eth0", "up")
	if got, ok := client.udhcpc(); ok {
		t.Errorf("a machine of another network got %v", got)
	}
	// Nor does a stranger.
	client.run("ip", "link", "set", "eth0", "down")
	client.run("ip", "link", "set", "eth0", "address", strangerMAC)
	client.run("ip", "link", "set", "eth0", "up")
	if got, ok := client.udhcpc(); ok {
		t.Errorf("a machine that is not enrolled got %v", got)
	}
	waitFor(t, "the event", func() bool { return d.has(EventStray, strangerMAC, "") })
}

func TestTFTPAndHTTPPeers(t *testing.T) {
	if !inNamespace(t, "curl", "tftp", "busybox") {
		return
	}
	r, d := newRack(t), testDirectory()
	serveRack(t, d)
	h := r.host(ramdiskMAC)
	h.run("ip", "addr", "add", "10.77.0.101/24", "dev", "eth0")
	same := func(how string, want []byte) {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(h.dir, "out"))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes differ from the loader's %d: %v", how, len(got), len(want), err)
		}
		_ = os.Remove(filepath.Join(h.dir, "out"))
	}
	loaders, err := ipxe.Loaders("")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range loaders {
		h.run("tftp", "-m", "binary", "10.77.0.1", "-c", "get", name, "out")
		same("tftp-hpa "+name, want)
		h.run("curl", "-sSf", "--max-time", "20", "-o", "out", "--tftp-blksize", "1400", "tftp://10.77.0.1/"+name)
		same("curl tftp "+name, want)
		if _, err := exec.LookPath("atftp"); err == nil {
			h.run("atftp", "--option", "blksize 1468", "--option", "windowsize 8", "-g", "-r", name, "-l", "out", "10.77.0.1")
			same("atftp in windows "+name, want)
		}
		h.run("busybox", "tftp", "-g", "-b", "1400", "-r", name, "-l", "out", "10.77.0.1")
		same("busybox tftp "+name, want)
		h.run("curl", "-sSf", "--max-time", "20", "-o", "out", "http://10.77.0.1/loader/"+name)
		same("curl http "+name, want)
		waitFor(t, "the event", func() bool { return d.has(EventLoader, ramdiskMAC, name) })
	}
	if out := h.run("tftp", "-m", "binary", "10.77.0.1", "-c", "get", "../etc/passwd", "out"); !strings.Contains(out, "no such file") {
		t.Errorf("tftp of another file: %s", out)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "ipxe.efi"), []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := h.run("tftp", "-m", "binary", "10.77.0.1", "-c", "put", "ipxe.efi"); !strings.Contains(out, "Error") {
		t.Errorf("tftp put: %s", out)
	}

	status := func(url string) string {
		t.Helper()
		return h.run("curl", "-sS", "--max-time", "20", "-o", "out", "-w", "%{http_code}", "http://10.77.0.1"+url)
	}
	if got := h.run("curl", "-sSf", "--max-time", "20", "http://10.77.0.1/boot/ipxe?mac="+ramdiskMAC); !strings.Contains(got, "console=ttyS0,115200 no_timer_check panic=30 quiet ||") {
		t.Errorf("script: %s", got)
	}
	if got := h.run("curl", "-sSf", "--max-time", "20", "http://10.77.0.1/boot/seed/"+ramdiskMAC+".cpio"); got != "seed of "+ramdiskMAC {
		t.Errorf("seed: %s", got)
	}
	if got := h.run("curl", "-sSf", "--max-time", "20", "-r", "1-3", "http://10.77.0.1/ramdisk/vmlinuz"); got != "ern" {
		t.Errorf("part of the kernel: %s", got)
	}
	for _, url := range []string{"/boot/ipxe?mac=" + diskMAC, "/boot/seed/" + diskMAC + ".cpio", "/boot/ipxe?mac=" + strangerMAC} {
		if got := status(url); got != "404" {
			t.Errorf("%s: status %s", url, got)
		}
	}
	if !d.has(EventScript, ramdiskMAC, "ramdisk") || !d.has(EventSeed, ramdiskMAC, "") || !d.has(EventRefused, diskMAC, "") || !d.has(EventRefused, strangerMAC, "") {
		t.Error("events are missing")
	}

	// The same host as the machine that boots its disk.
	h.run("ip", "addr", "add", "10.77.0.102/24", "dev", "eth0")
	local := []string{"curl", "-sS", "--max-time", "20", "--interface", "10.77.0.102"}
	if got := h.run(append(local, "http://10.77.0.1/boot/ipxe?mac="+diskMAC)...); !strings.Contains(got, "sanboot --no-describe --drive 0x80") {
		t.Errorf("script: %s", got)
	}
	if got := h.run(append(local, "-o", "out", "-w", "%{http_code}", "http://10.77.0.1/boot/seed/"+diskMAC+".cpio")...); got != "404" {
		t.Errorf("seed without an intent: status %s", got)
	}
}

func TestRouterAdvertisement(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r, d := newRack(t), testDirectory()
	serveRack(t, d)
	h := r.host(ramdiskMAC)
	type advert struct {
		body []byte
		hops int
	}
	got := make(chan advert, 1)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		adv, hops, err := solicit(h.pid)
		if err != nil {
			failed <- err
			return
		}
		got <- advert{body: adv, hops: hops}
	}()
	select {
	case err := <-failed:
		t.Fatal(err)
	case a := <-got:
		if a.hops != 255 || len(a.body) < 12 {
			t.Fatalf("hop limit %d, body %x", a.hops, a.body)
		}
		if flags, lifetime := a.body[1], a.body[2:4]; flags != 0 || !bytes.Equal(lifetime, []byte{0, 0}) {
			t.Errorf("flags %x, lifetime %x", flags, lifetime)
		}
		for opts := a.body[12:]; len(opts) >= 8; opts = opts[8*int(opts[1]):] {
			if opts[0] != 1 || opts[1] != 1 {
				t.Fatalf("option %d", opts[0])
			}
		}
	case <-time.After(30 * time.Second):
		t.Fatal("no router advertisement")
	}
}

// solicit asks in a host's namespace until a router advertisement comes.
func solicit(pid string) ([]byte, int, error) {
	ns, err := os.Open("/proc/" + pid + "/ns/net")
	if err != nil {
		return nil, 0, err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), syscall.CLONE_NEWNET); err != nil {
		return nil, 0, err
	}
	conn, err := net.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	p := ipv6.NewPacketConn(conn)
	if err := errors.Join(p.SetControlMessage(ipv6.FlagHopLimit, true), p.SetMulticastHopLimit(255)); err != nil {
		return nil, 0, err
	}
	m := icmp.Message{Type: ipv6.ICMPTypeRouterSolicitation, Body: &icmp.RawBody{Data: make([]byte, 4)}}
	raw, err := m.Marshal(nil)
	if err != nil {
		return nil, 0, err
	}
	buf := make([]byte, 1500)
	for range 60 {
		// The first ones fail: the link-local address is still being checked.
		_, _ = p.WriteTo(raw, nil, &net.IPAddr{IP: net.ParseIP("ff02::2"), Zone: "eth0"})
		if err := p.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			return nil, 0, err
		}
		n, cm, _, err := p.ReadFrom(buf)
		if err == nil && n >= 4 && cm != nil && ipv6.ICMPType(buf[0]) == ipv6.ICMPTypeRouterAdvertisement {
			return bytes.Clone(buf[4:n]), cm.HopLimit, nil
		}
	}
	return nil, 0, errors.New("no router advertisement came")
}
