package dhcp

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// FuzzDHCP takes raw bytes through everything that the server does with them:
// nothing panics, and every answer keeps to the rules that protect a rack.
func FuzzDHCP(f *testing.F) {
	for _, name := range []string{
		"ipxe-rom-bios-discover", "ipxe-rom-bios-request", "edk2-pxe-discover", "edk2-pxe-request",
		"edk2-http-discover", "edk2-http-request", "ipxedust-efi-discover", "ipxedust-efi-request",
	} {
		f.Add(captured(f, name), true, false)
	}
	f.Add(request{kind: ask, options: map[uint8]string{50: ip4("10.77.0.7")}}.packet(f).ToBytes(), true, false)
	f.Add(request{kind: ask, ciaddr: "10.77.0.7"}.packet(f).ToBytes(), false, true)
	f.Add(request{kind: dhcpv4.MessageTypeInform, ciaddr: "10.77.0.7"}.packet(f).ToBytes(), true, true)
	f.Add(request{kind: discover, giaddr: "10.77.0.9", options: map[uint8]string{82: "\x05\x04\x0a\x4d\x00\x09"}}.packet(f).ToBytes(), true, false)

	f.Fuzz(func(t *testing.T, raw []byte, authoritative, local bool) {
		req, err := dhcpv4.FromBytes(raw)
		if err != nil || Check(req) != "" {
			return
		}
		lease := testLease
		lease.Authoritative, lease.Local = authoritative, local
		d := testID.Decide(req, lease)
		if d.Reply == nil {
			return
		}
		if d.Outcome == Refused && !authoritative {
			t.Fatal("refused without knowing")
		}
		wire := d.Reply.ToBytes()
		if n := len(wire) + 28; n > 1500 {
			t.Fatalf("datagram of %d bytes", n)
		}
		r, err := dhcpv4.FromBytes(wire)
		if err != nil {
			t.Fatalf("our own answer: %v", err)
		}
		if yours, _ := toAddr(r.YourIPAddr); !yours.IsUnspecified() && yours != lease.Addr.Addr() {
			t.Fatalf("gave %v away", yours)
		}
		if !bytes.Equal(r.ClientHWAddr, req.ClientHWAddr) || r.OpCode != dhcpv4.OpcodeBootReply {
			t.Fatal("answered somebody else")
		}
		switch to := d.To.Addr.Addr(); d.To.Way {
		case ToAddress, ToHardware:
			if !lease.Addr.Contains(to) || d.To.Addr.Port() != clientPort {
				t.Fatalf("sent to %v", d.To.Addr)
			}
		case ToRelay:
			if relay, _ := toAddr(req.GatewayIPAddr); to != relay || d.To.Addr.Port() != serverPort {
				t.Fatalf("sent to %v", d.To.Addr)
			}
		case ToBroadcast:
			if to != netip.MustParseAddr("255.255.255.255") {
				t.Fatalf("broadcast to %v", to)
			}
		}
		frame(nil, testMAC, testID.Addr, d.To, wire)
	})
}
