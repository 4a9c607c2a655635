package light

import (
	"encoding/binary"
	"net/netip"

	"bmc/lab/vswitch"
)

type mac = vswitch.MAC

var broadcast = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Ethernet, ARP (RFC 826), IPv4 (RFC 791) and UDP (RFC 768), as much of each as a
// machine without an address needs.
const (
	etherLen  = 14
	etherIPv4 = 0x0800
	etherARP  = 0x0806

	arpLen     = etherLen + 28
	arpRequest = 1
	arpReply   = 2
	arpOp      = etherLen + 6
	arpSender  = etherLen + 8  // hardware, then protocol address
	arpTarget  = etherLen + 18 // the same

	ipLen  = 20
	udpLen = 8
	ipUDP  = 17

	maxTTL = 64
)

func etherType(f []byte) uint16 { return binary.BigEndian.Uint16(f[12:14]) }

func putEther(f []byte, dst, src mac, kind uint16) {
	copy(f[0:6], dst[:])
	copy(f[6:12], src[:])
	binary.BigEndian.PutUint16(f[12:14], kind)
}

// isARP says whether f is a whole ARP packet for IPv4 over Ethernet.
func isARP(f []byte) bool {
	return len(f) >= arpLen && etherType(f) == etherARP && [6]byte(f[etherLen:]) == [6]byte{0, 1, 8, 0, 6, 4}
}

// answerARP makes the reply of a machine that owns the address asked for.
func answerARP(request []byte, owner mac) []byte {
	f := make([]byte, arpLen)
	asker := mac(request[arpSender:])
	putEther(f, asker, owner, etherARP)
	copy(f[etherLen:], []byte{0, 1, 8, 0, 6, 4, 0, arpReply})
	copy(f[arpSender:], owner[:])
	copy(f[arpSender+6:], request[arpTarget+6:arpTarget+10])
	copy(f[arpTarget:], request[arpSender:arpSender+10])
	return f
}

// isIPv4 says whether f is a whole IPv4 packet of which the header can be read.
func isIPv4(f []byte) bool {
	if len(f) < etherLen+ipLen || etherType(f) != etherIPv4 || f[etherLen]>>4 != 4 {
		return false
	}
	header, total := int(f[etherLen]&15)*4, int(binary.BigEndian.Uint16(f[etherLen+2:]))
	return header >= ipLen && total >= header && len(f) >= etherLen+total
}

func ipSource(f []byte) netip.Addr { return netip.AddrFrom4([4]byte(f[etherLen+12:])) }
func ipTarget(f []byte) netip.Addr { return netip.AddrFrom4([4]byte(f[etherLen+16:])) }

// udpPayload returns what an unfragmented UDP datagram to port carries. Frames do
// not lose bits here, so that no checksum is looked at.
func udpPayload(f []byte, port uint16) ([]byte, bool) {
	if !isIPv4(f) || f[etherLen+9] != ipUDP || binary.BigEndian.Uint16(f[etherLen+6:])&0x3fff != 0 {
		return nil, false
	}
	u := f[etherLen+int(f[etherLen]&15)*4 : etherLen+int(binary.BigEndian.Uint16(f[etherLen+2:]))]
	if len(u) < udpLen || binary.BigEndian.Uint16(u[2:]) != port {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(u[4:]))
	if n < udpLen || n > len(u) {
		return nil, false
	}
	return u[udpLen:n], true
}

// udpFrame makes a datagram of a machine that may have no address. The UDP
// checksum is left out, as IPv4 allows.
func udpFrame(dst, src mac, from, to netip.AddrPort, payload []byte) []byte {
	f := make([]byte, etherLen+ipLen+udpLen+len(payload))
	putEther(f, dst, src, etherIPv4)
	ip := f[etherLen:]
	ip[0] = 4<<4 | ipLen/4
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	ip[8], ip[9] = maxTTL, ipUDP
	a, b := from.Addr().As4(), to.Addr().As4()
	copy(ip[12:], a[:])
	copy(ip[16:], b[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:ipLen]))
	u := ip[ipLen:]
	binary.BigEndian.PutUint16(u[0:], from.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	copy(u[udpLen:], payload)
	return f
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
