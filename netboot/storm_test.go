package netboot

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"bmc/netboot/dhcp"
)

// A thousand machines that ask while the server does something else are all heard:
// what the socket drops costs each of them seconds.
func TestDHCPStorm(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	if ids, err := os.ReadFile("/proc/self/uid_map"); err != nil || !bytes.Contains(ids, []byte("4294967295")) {
		t.Skip("only root may have a larger socket buffer than the system's limit")
	}
	run(t, "ip", "link", "set", "lo", "up")
	const machines = 1000
	seen := make(chan string, 2*machines)
	s, err := dhcp.Listen(dhcp.Config{
		Interface: "lo",
		Identity:  dhcp.Identity{Addr: netip.MustParseAddr("127.0.0.1")},
		Lookup:    func(string, dhcp.Origin) (dhcp.Lease, bool) { return dhcp.Lease{}, false },
		Seen:      func(s dhcp.Seen) { seen <- s.MAC },
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("udp4", "127.0.0.1:67")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range machines {
		p, err := dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}, dhcpv4.WithGeneric(dhcpv4.OptionVendorIdentifyingVendorClass, make([]byte, 200)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(p.ToBytes()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	macs := map[string]bool{}
	for timeout := time.After(10 * time.Second); len(macs) < machines; {
		select {
		case m := <-seen:
			macs[m] = true
		case <-timeout:
			t.Fatalf("%d of %d machines were heard", len(macs), machines)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
