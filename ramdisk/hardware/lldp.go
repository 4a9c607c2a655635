package hardware

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"

	agentv1 "bmc/api/agent/v1"
)

// Ethernet's type of LLDP, and where its frames go (IEEE 802.1AB-2016, 7.1, 7.4).
const etherLLDP = 0x88cc

var nearestBridge = [6]byte{0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e}

// TLVs of IEEE 802.1AB-2016, 8.4 on, and of 802.1Q's organization (annex D).
const (
	tlvEnd, tlvChassis, tlvPort, tlvTTL        = 0, 1, 2, 3
	tlvPortDescription, tlvSystem, tlvSpecific = 4, 5, 127
	maxTLVs                                    = 128
)

// Subtypes of chassis and port IDs that are not text.
const (
	chassisMAC, chassisAddress = 4, 5
	portMAC, portAddress       = 3, 4
)

// parseLLDP reads an LLDPDU, the frame's payload. Chassis, port and TTL are
// mandatory, in this order; a TTL of 0 says goodbye and is no neighbour.
func parseLLDP(pdu []byte) (*agentv1.Neighbour, bool) {
	n := &agentv1.Neighbour{}
	for i := 0; i < maxTLVs; i++ {
		if len(pdu) < 2 {
			return n, i > 2 // without an end: some switches save those two bytes
		}
		head := binary.BigEndian.Uint16(pdu)
		kind, length := int(head>>9), int(head&0x1ff)
		if len(pdu) < 2+length {
			return nil, false
		}
		value := pdu[2 : 2+length]
		pdu = pdu[2+length:]
		if i < 3 && kind != tlvChassis+i {
			return nil, false
		}
		switch kind {
		case tlvEnd:
			return n, true
		case tlvChassis:
			n.Chassis = lldpID(value, chassisMAC, chassisAddress)
		case tlvPort:
			n.Port = lldpID(value, portMAC, portAddress)
		case tlvTTL:
			if length < 2 || binary.BigEndian.Uint16(value) == 0 {
				return nil, false
			}
		case tlvPortDescription:
			n.PortDescription = printable(value)
		case tlvSystem:
			n.System = printable(value)
		case tlvSpecific:
			if len(value) == 6 && bytes.HasPrefix(value, []byte{0x00, 0x80, 0xc2, 1}) { // port VLAN ID
				n.Vlan = uint32(binary.BigEndian.Uint16(value[4:]))
			}
		}
	}
	return nil, false
}

// lldpID is an ID with its subtype in front.
func lldpID(v []byte, mac, address byte) string {
	if len(v) < 2 {
		return ""
	}
	switch kind, id := v[0], v[1:]; {
	case kind == mac && len(id) == 6:
		return net.HardwareAddr(id).String()
	case kind == mac:
		return hex.EncodeToString(id[:min(len(id), 32)])
	case kind == address:
		if a, ok := netip.AddrFromSlice(id[1:]); ok { // the address family comes first
			return a.String()
		}
		return ""
	}
	return strings.TrimSpace(printable(v[1:]))
}

// announcement is an LLDPDU of ours, frame and all: a switch that hears a new
// neighbour announces itself at once (IEEE 802.1AB-2016, 9.2.5.5).
func announcement(mac net.HardwareAddr, name string) []byte {
	tlv := func(kind int, value ...byte) []byte {
		return append(binary.BigEndian.AppendUint16(nil, uint16(kind<<9|len(value))), value...)
	}
	return bytes.Join([][]byte{
		nearestBridge[:], mac, binary.BigEndian.AppendUint16(nil, etherLLDP),
		tlv(tlvChassis, append([]byte{chassisMAC}, mac...)...),
		tlv(tlvPort, append([]byte{portMAC}, mac...)...),
		tlv(tlvTTL, 0, 120),
		tlv(tlvSystem, []byte(name)...),
		tlv(tlvEnd),
	}, nil)
}
