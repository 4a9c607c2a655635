package dhcp

import (
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

const (
	serverPort = 67
	clientPort = 68
	maxHops    = 16 // RFC 1542, section 4.1.1: more is a loop
)

// Check says why a packet deserves no look at the directory, or "".
func Check(req *dhcpv4.DHCPv4) string {
	switch {
	case req.OpCode != dhcpv4.OpcodeBootRequest:
		return "not a request"
	case req.HWType != iana.HWTypeEthernet || len(req.ClientHWAddr) != 6:
		return "not an Ethernet client"
	case req.ClientHWAddr[0]&1 != 0:
		return "a group address as hardware address"
	case req.HopCount > maxHops:
		return "too many relays"
	case len(req.Options[53]) != 1:
		return "no message type"
	}
	return ""
}

// Decide answers a packet that Check has passed, for a MAC whose lease is l.
// It reads nothing else and changes neither operand; the reply shares memory
// with the request.
func (id Identity) Decide(req *dhcpv4.DHCPv4, l Lease) Decision {
	if !l.Addr.Addr().Is4() {
		return Decision{Reason: "no address is assigned"}
	}
	switch from := origin(req); {
	case from.Relayed && !l.Addr.Contains(from.Addr):
		return Decision{Reason: "the relay serves another network than the machine's"}
	case l.Relayed && !from.Relayed && (from.Addr != l.Addr.Addr() || req.MessageType() == dhcpv4.MessageTypeDiscover):
		return Decision{Reason: "its rack is behind a relay, and this came without one"}
	}
	if l.Silent && bootsFromNetwork(req) {
		return Decision{Reason: Elsewhere}
	}
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return Decision{Outcome: Offered, Reply: id.grant(req, l, dhcpv4.MessageTypeOffer), To: destination(req, l.Addr.Addr())}
	case dhcpv4.MessageTypeRequest:
		return id.request(req, l)
	case dhcpv4.MessageTypeInform:
		return id.inform(req, l)
	case dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeRelease:
		if other, ok := serverID(req); ok && other != id.Addr {
			return Decision{Reason: "meant for another server"}
		}
		if req.MessageType() == dhcpv4.MessageTypeDecline {
			return Decision{Outcome: Declined}
		}
		return Decision{Outcome: Released}
	}
	return Decision{Reason: "unexpected message type"}
}

// request answers DHCPREQUEST. Which address the client speaks of depends on
// its state (RFC 2131, section 4.3.2).
func (id Identity) request(req *dhcpv4.DHCPv4, l Lease) Decision {
	assigned := l.Addr.Addr()
	requested, hasRequested := optAddr(req, 50)
	ciaddr, _ := toAddr(req.ClientIPAddr)

	var wanted netip.Addr
	if server, ok := serverID(req); ok { // SELECTING
		if server != id.Addr {
			return Decision{Reason: "chose another server"}
		}
		wanted = requested
		if !hasRequested { // some clients put the address into ciaddr instead
			wanted = ciaddr
		}
	} else if !ciaddr.IsUnspecified() { // RENEWING, REBINDING
		wanted = ciaddr
	} else { // INIT-REBOOT
		wanted = requested
	}

	switch {
	case !wanted.IsValid() || wanted.IsUnspecified():
		return Decision{Reason: "asks for no address"}
	case wanted == assigned:
		to := destination(req, assigned)
		if to.Way != ToRelay && ciaddr == assigned {
			to = Destination{Way: ToAddress, Addr: netip.AddrPortFrom(assigned, clientPort)}
		}
		return Decision{Outcome: Acked, Reply: id.grant(req, l, dhcpv4.MessageTypeAck), To: to}
	case l.Authoritative:
		return id.refuse(req)
	}
	// Another server may know better what this machine has: a NAK from here
	// would take a working address away (RFC 2131, section 4.3.2).
	return Decision{Reason: "asks for another address, and the directory may be stale"}
}

// inform answers a client that has an address and wants the rest (section 4.3.5).
func (id Identity) inform(req *dhcpv4.DHCPv4, l Lease) Decision {
	ciaddr, _ := toAddr(req.ClientIPAddr)
	if !l.Addr.Contains(ciaddr) { // never send to where a packet merely says
		return Decision{Reason: "informs of an address outside its network"}
	}
	to := destination(req, ciaddr)
	if to.Way != ToRelay {
		to = Destination{Way: ToAddress, Addr: netip.AddrPortFrom(ciaddr, clientPort)}
	}
	r := id.reply(req)
	r.ClientIPAddr = req.ClientIPAddr
	id.fill(r, req, l, dhcpv4.MessageTypeAck, false)
	return Decision{Outcome: Informed, Reply: r, To: to}
}

// refuse makes a DHCPNAK. Without a relay it is always broadcast, for the
// client's address is wrong; a relay is asked to do so.
func (id Identity) refuse(req *dhcpv4.DHCPv4) Decision {
	r := id.reply(req)
	r.ServerIPAddr = net.IPv4zero
	to := Destination{Way: ToBroadcast, Addr: netip.AddrPortFrom(broadcastIP, clientPort), MAC: broadcastMAC}
	if relay, _ := toAddr(req.GatewayIPAddr); !relay.IsUnspecified() {
		r.SetBroadcast()
		to = Destination{Way: ToRelay, Addr: netip.AddrPortFrom(relay, serverPort)}
	}
	o := options{m: r.Options, left: budget(req)}
	o.add(53, []byte{byte(dhcpv4.MessageTypeNak)})
	o.add(54, id.Addr.AsSlice())
	o.add(82, req.Options[82])
	o.add(61, req.Options[61])
	o.add(56, []byte("address is not assigned to this machine"))
	return Decision{Outcome: Refused, Reason: "asks for an address that is not its own", Reply: r, To: to}
}

func (id Identity) grant(req *dhcpv4.DHCPv4, l Lease, t dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	r := id.reply(req)
	r.YourIPAddr = l.Addr.Addr().AsSlice()
	if t == dhcpv4.MessageTypeAck {
		r.ClientIPAddr = req.ClientIPAddr
	}
	id.fill(r, req, l, t, true)
	return r
}

func (id Identity) reply(req *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	return &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        req.HWType,
		ClientHWAddr:  req.ClientHWAddr,
		TransactionID: req.TransactionID,
		Flags:         req.Flags,
		ServerIPAddr:  id.Addr.AsSlice(),
		GatewayIPAddr: req.GatewayIPAddr,
		Options:       make(dhcpv4.Options, 16),
	}
}

// destination is section 4.1's rule for a client that has no address yet.
func destination(req *dhcpv4.DHCPv4, yours netip.Addr) Destination {
	if relay, ok := toAddr(req.GatewayIPAddr); ok && !relay.IsUnspecified() {
		return Destination{Way: ToRelay, Addr: netip.AddrPortFrom(relay, serverPort)}
	}
	if req.IsBroadcast() {
		return Destination{Way: ToBroadcast, Addr: netip.AddrPortFrom(broadcastIP, clientPort), MAC: broadcastMAC}
	}
	return Destination{Way: ToHardware, Addr: netip.AddrPortFrom(yours, clientPort), MAC: [6]byte(req.ClientHWAddr)}
}

// origin says where a client stands: a machine that was carried to another rack
// must not get an address of its old one. The network is the relay's, unless the
// relay names one (RFC 3527).
func origin(req *dhcpv4.DHCPv4) Origin {
	if relay, ok := toAddr(req.GatewayIPAddr); ok && !relay.IsUnspecified() {
		if link, ok := subOption(req.Options[82], 5); ok {
			if a, ok := toAddr(link); ok {
				relay = a
			}
		}
		return Origin{Relayed: true, Addr: relay}
	}
	if own, ok := toAddr(req.ClientIPAddr); ok && !own.IsUnspecified() {
		return Origin{Addr: own}
	}
	return Origin{}
}

func subOption(data []byte, code byte) ([]byte, bool) {
	for len(data) >= 2 {
		n := int(data[1])
		if len(data) < 2+n {
			return nil, false
		}
		if data[0] == code {
			return data[2 : 2+n], true
		}
		data = data[2+n:]
	}
	return nil, false
}

func serverID(req *dhcpv4.DHCPv4) (netip.Addr, bool) { return optAddr(req, 54) }

func optAddr(req *dhcpv4.DHCPv4, code uint8) (netip.Addr, bool) {
	return toAddr(req.Options[code])
}

func toAddr(b []byte) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(b)
	if !ok || !a.Unmap().Is4() {
		return netip.IPv4Unspecified(), false
	}
	return a.Unmap(), true
}
