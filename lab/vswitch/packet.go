package vswitch

import "encoding/binary"

const (
	etherIPv4 = 0x0800
	etherVLAN = 0x8100
	protoTCP  = 6
	protoUDP  = 17
)

// hasPort says whether a frame is an IPv4 packet from or to a TCP or UDP port,
// tagged or not.
func hasPort(f []byte, port uint16) bool {
	head := 12
	for len(f) >= head+6 && binary.BigEndian.Uint16(f[head:]) == etherVLAN {
		head += 4
	}
	if len(f) < head+2+20 || binary.BigEndian.Uint16(f[head:]) != etherIPv4 {
		return false
	}
	ip := f[head+2:]
	size := int(ip[0]&0x0f) * 4 // RFC 791, section 3.1
	if ip[0]>>4 != 4 || size < 20 || len(ip) < size+4 || ip[9] != protoTCP && ip[9] != protoUDP {
		return false
	}
	if binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 { // a later fragment
		return false
	}
	return binary.BigEndian.Uint16(ip[size:]) == port || binary.BigEndian.Uint16(ip[size+2:]) == port
}
