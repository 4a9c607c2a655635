package dhcp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	testID = Identity{Addr: netip.MustParseAddr("10.77.0.1"), Base: "http://10.77.0.1"}

	testLease = Lease{
		Addr:          netip.MustParsePrefix("10.77.0.101/24"),
		Gateway:       netip.MustParseAddr("10.77.0.254"),
		DNS:           []netip.Addr{netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("10.77.0.3")},
		Domain:        "rack.test",
		Hostname:      "r1-u01",
		Time:          90 * time.Second,
		Authoritative: true,
	}
	testMAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
)

// request builds a client's packet.
type request struct {
	kind    dhcpv4.MessageType
	flags   uint16
	ciaddr  string
	giaddr  string
	options map[uint8]string
}

func (r request) packet(t testing.TB) *dhcpv4.DHCPv4 {
	t.Helper()
	p := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootRequest,
		HWType:        1,
		TransactionID: dhcpv4.TransactionID{1, 2, 3, 4},
		Flags:         r.flags,
		ClientIPAddr:  net.ParseIP(r.ciaddr),
		GatewayIPAddr: net.ParseIP(r.giaddr),
		ClientHWAddr:  testMAC,
		Options:       dhcpv4.Options{},
	}
	if r.kind != 0 {
		p.Options[53] = []byte{byte(r.kind)}
	}
	for code, value := range r.options {
		p.Options[code] = []byte(value)
	}
	decoded, err := dhcpv4.FromBytes(p.ToBytes()) // as it comes from the wire
	if err != nil {
		t.Fatal(err)
	}
	return decoded
}

func ip4(s string) string { return string(netip.MustParseAddr(s).AsSlice()) }

const (
	discover = dhcpv4.MessageTypeDiscover
	ask      = dhcpv4.MessageTypeRequest
)

var (
	l2        = Destination{Way: ToHardware, Addr: netip.MustParseAddrPort("10.77.0.101:68"), MAC: [6]byte(testMAC)}
	everybody = Destination{Way: ToBroadcast, Addr: netip.MustParseAddrPort("255.255.255.255:68"), MAC: broadcastMAC}
	direct    = Destination{Way: ToAddress, Addr: netip.MustParseAddrPort("10.77.0.101:68")}
	relayed   = Destination{Way: ToRelay, Addr: netip.MustParseAddrPort("10.77.0.9:67")}
)

func TestDecide(t *testing.T) {
	stale := testLease
	stale.Authoritative = false
	elsewhere := testLease
	elsewhere.Silent = true
	behind := testLease
	behind.Relayed = true
	tests := []struct {
		name  string
		req   request
		lease *Lease // nil: testLease
		want  Outcome
		to    Destination
	}{
		{name: "discover", req: request{kind: discover}, want: Offered, to: l2},
		{name: "discover with the broadcast flag", req: request{kind: discover, flags: 0x8000}, want: Offered, to: everybody},
		{name: "discover for another address gets its own", req: request{kind: discover, options: map[uint8]string{50: ip4("10.77.0.7")}}, want: Offered, to: l2},
		{name: "discover with a ciaddr is not sent there", req: request{kind: discover, ciaddr: "10.77.0.101"}, want: Offered, to: l2},
		{name: "discover relayed", req: request{kind: discover, giaddr: "10.77.0.9"}, want: Offered, to: relayed},
		{name: "discover relayed with the broadcast flag", req: request{kind: discover, giaddr: "10.77.0.9", flags: 0x8000}, want: Offered, to: relayed},
		{name: "discover relayed from another network", req: request{kind: discover, giaddr: "10.88.0.9"}, want: Ignored},
		{name: "discover relayed, the relay names the network", want: Offered,
			req: request{kind: discover, giaddr: "10.88.0.9", options: map[uint8]string{82: "\x01\x02ab\x05\x04" + ip4("10.77.0.9")}},
			to:  Destination{Way: ToRelay, Addr: netip.MustParseAddrPort("10.88.0.9:67")}},
		{name: "discover relayed, the relay names another network", want: Ignored,
			req: request{kind: discover, giaddr: "10.77.0.9", options: map[uint8]string{82: "\x05\x04" + ip4("10.88.0.9")}}},
		{name: "discover of a machine without an address", req: request{kind: discover}, lease: &Lease{}, want: Ignored},

		{name: "selecting", req: request{kind: ask, options: map[uint8]string{54: ip4("10.77.0.1"), 50: ip4("10.77.0.101")}}, want: Acked, to: l2},
		{name: "selecting, broadcast", req: request{kind: ask, flags: 0x8000, options: map[uint8]string{54: ip4("10.77.0.1"), 50: ip4("10.77.0.101")}}, want: Acked, to: everybody},
		{name: "selecting, relayed", req: request{kind: ask, giaddr: "10.77.0.9", options: map[uint8]string{54: ip4("10.77.0.1"), 50: ip4("10.77.0.101")}}, want: Acked, to: relayed},
		{name: "selecting another server", req: request{kind: ask, options: map[uint8]string{54: ip4("10.77.0.2"), 50: ip4("10.77.0.101")}}, want: Ignored},
		{name: "selecting another server's other address", req: request{kind: ask, options: map[uint8]string{54: ip4("10.77.0.2"), 50: ip4("10.77.0.7")}}, want: Ignored},
		{name: "selecting a wrong address", req: request{kind: ask, options: map[uint8]string{54: ip4("10.77.0.1"), 50: ip4("10.77.0.7")}}, want: Refused, to: everybody},
		{name: "selecting a wrong address, relayed", req: request{kind: ask, giaddr: "10.77.0.9", options: map[uint8]string{54: ip4("10.77.0.1"), 50: ip4("10.77.0.7")}}, want: Refused, to: relayed},
		{name: "selecting a wrong address, stale", lease: &stale, req: request{kind: ask, options: map[uint8]string{54: ip4("10.77.0.1"), 50: ip4("10.77.0.7")}}, want: Ignored},
		{name: "selecting without an address", req: request{kind: ask, options: map[uint8]string{54: ip4("10.77.0.1")}}, want: Ignored},

		{name: "init-reboot", req: request{kind: ask, options: map[uint8]string{50: ip4("10.77.0.101")}}, want: Acked, to: l2},
		{name: "init-reboot with a wrong address", req: request{kind: ask, options: map[uint8]string{50: ip4("192.168.1.5")}}, want: Refused, to: everybody},
		{name: "init-reboot with a wrong address, stale", lease: &stale, req: request{kind: ask, options: map[uint8]string{50: ip4("192.168.1.5")}}, want: Ignored},
		{name: "init-reboot, stale", lease: &stale, req: request{kind: ask, options: map[uint8]string{50: ip4("10.77.0.101")}}, want: Acked, to: l2},
		{name: "renew and rebind", req: request{kind: ask, ciaddr: "10.77.0.101"}, want: Acked, to: direct},
		{name: "rebind with the broadcast flag", req: request{kind: ask, ciaddr: "10.77.0.101", flags: 0x8000}, want: Acked, to: direct},
		{name: "rebind, relayed", req: request{kind: ask, ciaddr: "10.77.0.101", giaddr: "10.77.0.9"}, want: Acked, to: relayed},
		{name: "renew of a wrong address", req: request{kind: ask, ciaddr: "10.77.0.7"}, want: Refused, to: everybody},
		{name: "renew of a wrong address, stale", lease: &stale, req: request{kind: ask, ciaddr: "10.77.0.7"}, want: Ignored},
		{name: "request of nothing", req: request{kind: ask}, want: Ignored},
		{name: "request with a malformed server identifier", req: request{kind: ask, options: map[uint8]string{54: "abc"}}, want: Ignored},

		{name: "PXE, boots from another server", lease: &elsewhere, req: request{kind: discover, options: map[uint8]string{60: "PXEClient:Arch:00007", 93: "\x00\x07"}}, want: Ignored},
		{name: "UEFI HTTP, boots from another server", lease: &elsewhere, req: request{kind: discover, options: map[uint8]string{60: "HTTPClient:Arch:00016", 93: "\x00\x10"}}, want: Ignored},
		{name: "iPXE, boots from another server", lease: &elsewhere, req: request{kind: discover, options: map[uint8]string{77: "iPXE"}}, want: Ignored},
		{name: "iPXE selects us, boots from another server", lease: &elsewhere, want: Ignored,
			req: request{kind: ask, options: map[uint8]string{54: ip4("10.77.0.1"), 50: ip4("10.77.0.101"), 77: "Tinkerbell"}}},
		{name: "a system, boots from another server", lease: &elsewhere, req: request{kind: discover, options: map[uint8]string{60: "bmc-ramdisk"}}, want: Offered, to: l2},
		{name: "a system renews, boots from another server", lease: &elsewhere, req: request{kind: ask, ciaddr: "10.77.0.101"}, want: Acked, to: direct},

		{name: "inform", req: request{kind: dhcpv4.MessageTypeInform, ciaddr: "10.77.0.50"}, want: Informed,
			to: Destination{Way: ToAddress, Addr: netip.MustParseAddrPort("10.77.0.50:68")}},
		{name: "inform, relayed", req: request{kind: dhcpv4.MessageTypeInform, ciaddr: "10.77.0.50", giaddr: "10.77.0.9"}, want: Informed, to: relayed},
		{name: "inform from elsewhere", req: request{kind: dhcpv4.MessageTypeInform, ciaddr: "8.8.8.8"}, want: Ignored},
		{name: "inform without an address", req: request{kind: dhcpv4.MessageTypeInform}, want: Ignored},

		{name: "a rack behind a relay: discover", lease: &behind, req: request{kind: discover, giaddr: "10.77.0.9"}, want: Offered, to: relayed},
		{name: "a rack behind a relay: renew", lease: &behind, req: request{kind: ask, ciaddr: "10.77.0.101"}, want: Acked, to: direct},
		{name: "a rack behind a relay: release", lease: &behind, req: request{kind: dhcpv4.MessageTypeRelease, ciaddr: "10.77.0.101"}, want: Released},
		{name: "a rack behind a relay: discover without it", lease: &behind, req: request{kind: discover}, want: Ignored},
		{name: "a rack behind a relay: discover without it, with a ciaddr", lease: &behind, req: request{kind: discover, ciaddr: "10.77.0.101"}, want: Ignored},
		{name: "a rack behind a relay: init-reboot without it", lease: &behind, req: request{kind: ask, options: map[uint8]string{50: ip4("10.77.0.101")}}, want: Ignored},
		{name: "a rack behind a relay: renew of a wrong address", lease: &behind, req: request{kind: ask, ciaddr: "10.77.0.7"}, want: Ignored},
		{name: "a rack behind a relay: rebind of a wrong address", lease: &behind, req: request{kind: ask, ciaddr: "10.77.0.7", giaddr: "10.77.0.9"}, want: Refused, to: relayed},

		{name: "decline", req: request{kind: dhcpv4.MessageTypeDecline, options: map[uint8]string{54: ip4("10.77.0.1"), 50: ip4("10.77.0.101")}}, want: Declined},
		{name: "decline of another server's", req: request{kind: dhcpv4.MessageTypeDecline, options: map[uint8]string{54: ip4("10.77.0.2")}}, want: Ignored},
		{name: "release", req: request{kind: dhcpv4.MessageTypeRelease, ciaddr: "10.77.0.101", options: map[uint8]string{54: ip4("10.77.0.1")}}, want: Released},
		{name: "a server's message", req: request{kind: dhcpv4.MessageTypeAck}, want: Ignored},
		{name: "an unknown message", req: request{kind: 77}, want: Ignored},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			lease := testLease
			if tt.lease != nil {
				lease = *tt.lease
			}
			req := tt.req.packet(t)
			if why := Check(req); why != "" {
				t.Fatalf("Check: %s", why)
			}
			d := testID.Decide(req, lease)
			if d.Outcome != tt.want {
				t.Fatalf("outcome %v (%s), want %v", d.Outcome, d.Reason, tt.want)
			}
			if d.Outcome == Ignored && (d.Reason == "" || d.Reply != nil) {
				t.Errorf("ignored with reason %q and reply %v", d.Reason, d.Reply)
			}
			if d.Reply == nil {
				return
			}
			if d.To != tt.to {
				t.Errorf("to %+v, want %+v", d.To, tt.to)
			}
			checkReply(t, req, d)
		})
	}
}

// checkReply checks what holds of every reply, on the wire.
func checkReply(t *testing.T, req *dhcpv4.DHCPv4, d Decision) {
	t.Helper()
	raw := d.Reply.ToBytes()
	r, err := dhcpv4.FromBytes(raw)
	if err != nil {
		t.Fatal(err)
	}
	if r.OpCode != dhcpv4.OpcodeBootReply || r.TransactionID != req.TransactionID || !bytes.Equal(r.ClientHWAddr, req.ClientHWAddr) {
		t.Errorf("reply does not belong to its request: %v", r.Summary())
	}
	if !r.GatewayIPAddr.Equal(req.GatewayIPAddr) {
		t.Errorf("giaddr %v, want %v", r.GatewayIPAddr, req.GatewayIPAddr)
	}
	if got := string(r.Options[54]); got != ip4("10.77.0.1") {
		t.Errorf("server identifier %x", got)
	}
	if !bytes.Equal(r.Options[82], req.Options[82]) {
		t.Errorf("option 82 %x, want %x", r.Options[82], req.Options[82])
	}
	wantType := map[Outcome]dhcpv4.MessageType{Offered: dhcpv4.MessageTypeOffer, Acked: dhcpv4.MessageTypeAck, Informed: dhcpv4.MessageTypeAck, Refused: dhcpv4.MessageTypeNak}[d.Outcome]
	if r.MessageType() != wantType {
		t.Errorf("message type %v, want %v", r.MessageType(), wantType)
	}
	_, hasLease := r.Options[51]
	switch d.Outcome {
	case Offered, Acked:
		if r.YourIPAddr.String() != "10.77.0.101" || r.ServerIPAddr.String() != "10.77.0.1" {
			t.Errorf("yiaddr %v, siaddr %v", r.YourIPAddr, r.ServerIPAddr)
		}
		if binary.BigEndian.Uint32(r.Options[51]) != 90 || r.HostName() != "r1-u01" || r.DomainName() != "rack.test" ||
			r.SubnetMask().String() != "ffffff00" || r.Router()[0].String() != "10.77.0.254" || len(r.DNS()) != 2 {
			t.Errorf("options: %v", r.Summary())
		}
	case Informed:
		if !r.YourIPAddr.IsUnspecified() || hasLease || !r.ClientIPAddr.Equal(req.ClientIPAddr) {
			t.Errorf("an answer to an inform grants an address: %v", r.Summary())
		}
	case Refused:
		if !r.YourIPAddr.IsUnspecified() || !r.ServerIPAddr.IsUnspecified() || hasLease || r.BootFileName != "" {
			t.Errorf("a NAK grants something: %v", r.Summary())
		}
		if d.To.Way == ToRelay && !r.IsBroadcast() {
			t.Error("a relayed NAK does not ask the relay to broadcast")
		}
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name   string
		change func(*dhcpv4.DHCPv4)
		ok     bool
	}{
		{"as it is", func(*dhcpv4.DHCPv4) {}, true},
		{"a reply", func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootReply }, false},
		{"InfiniBand", func(p *dhcpv4.DHCPv4) { p.HWType = 32 }, false},
		{"a short hardware address", func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = p.ClientHWAddr[:2] }, false},
		{"no hardware address", func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = nil }, false},
		{"a multicast hardware address", func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = net.HardwareAddr{1, 0, 0, 0, 0, 0} }, false},
		{"a loop of relays", func(p *dhcpv4.DHCPv4) { p.HopCount = 17 }, false},
		{"BOOTP", func(p *dhcpv4.DHCPv4) { delete(p.Options, 53) }, false},
		{"an empty message type", func(p *dhcpv4.DHCPv4) { p.Options[53] = nil }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := request{kind: discover}.packet(t)
			tt.change(p)
			if why := Check(p); (why == "") != tt.ok {
				t.Errorf("Check = %q", why)
			}
		})
	}
}

// The client's identifier comes back in every answer (RFC 6842), and option 82 as
// the last of all (RFC 3046), whatever it holds.
func TestEcho(t *testing.T) {
	circuit := "\x01\x04eth7\x02\x06remote\xff\x00\x99"
	for _, r := range []request{
		{kind: discover, options: map[uint8]string{61: "\x01me", 82: circuit}},
		{kind: discover, giaddr: "10.77.0.9", options: map[uint8]string{61: "\x01me", 82: circuit}},
		{kind: ask, options: map[uint8]string{50: ip4("10.77.0.7"), 61: "\x01me", 82: circuit}},
		{kind: dhcpv4.MessageTypeInform, ciaddr: "10.77.0.101", options: map[uint8]string{61: "\x01me", 82: circuit}},
	} {
		raw := testID.Decide(r.packet(t), testLease).Reply.ToBytes()
		p, err := dhcpv4.FromBytes(raw)
		if err != nil {
			t.Fatal(err)
		}
		if string(p.Options[61]) != "\x01me" || string(p.Options[82]) != circuit {
			t.Errorf("%v: identifier %q, option 82 %q", r.kind, p.Options[61], p.Options[82])
		}
		tail := append([]byte{82, byte(len(circuit))}, circuit...)
		if !bytes.HasSuffix(bytes.TrimRight(raw, "\x00"), append(tail, 255)) {
			t.Errorf("%v: option 82 is not the last: %x", r.kind, raw[236:])
		}
	}
}

func TestOrigin(t *testing.T) {
	at := netip.MustParseAddr
	for _, tt := range []struct {
		name string
		req  request
		want Origin
	}{
		{"without an address", request{kind: discover}, Origin{}},
		{"renews", request{kind: ask, ciaddr: "10.77.0.101"}, Origin{Addr: at("10.77.0.101")}},
		{"relayed", request{kind: discover, giaddr: "10.77.0.9"}, Origin{Relayed: true, Addr: at("10.77.0.9")}},
		{"rebinds through the relay", request{kind: ask, ciaddr: "10.88.0.5", giaddr: "10.77.0.9"}, Origin{Relayed: true, Addr: at("10.77.0.9")}},
		{"the relay names the link", request{kind: discover, giaddr: "10.77.0.9", options: map[uint8]string{82: "\x01\x02ab\x05\x04" + ip4("10.88.0.9")}}, Origin{Relayed: true, Addr: at("10.88.0.9")}},
		{"a link that is no address", request{kind: discover, giaddr: "10.77.0.9", options: map[uint8]string{82: "\x05\x02ab"}}, Origin{Relayed: true, Addr: at("10.77.0.9")}},
		{"a link without a relay", request{kind: discover, options: map[uint8]string{82: "\x05\x04" + ip4("10.88.0.9")}}, Origin{}},
	} {
		if got := origin(tt.req.packet(t)); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
