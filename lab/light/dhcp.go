package light

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"
)

// DHCP (RFC 2131): ports, message types and the options that are used here.
const (
	serverPort = 67
	clientPort = 68

	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpAck      = 5
	dhcpNak      = 6

	optRouter    = 3
	optRequested = 50
	optLease     = 51
	optOverload  = 52
	optType      = 53
	optServer    = 54
	optWanted    = 55
	optMaxSize   = 57
	optClass     = 60
	optBootFile  = 67
	optUserClass = 77
	optArch      = 93
	optNIC       = 94
	optUUID      = 97
	optIPXE      = 175
	optPad       = 0
	optEnd       = 255

	fixedLen   = 236 // BOOTP's part
	snameAt    = 44
	fileAt     = 108
	broadcast4 = 0x8000 // the flag
)

var cookie = []byte{99, 130, 83, 99}

// message is a DHCP message: what a client sends, and what it reads of an answer.
type message struct {
	reply   bool
	xid     uint32
	secs    uint16
	flags   uint16
	ciaddr  netip.Addr
	yiaddr  netip.Addr
	siaddr  netip.Addr
	chaddr  mac
	file    string
	options map[byte][]byte
}

// marshal writes the options in the order of their codes, the type first, and
// long ones in parts (RFC 3396).
func (m *message) marshal() []byte {
	b := make([]byte, fixedLen, 600)
	b[0], b[1], b[2] = 1, 1, 6
	if m.reply {
		b[0] = 2
	}
	binary.BigEndian.PutUint32(b[4:], m.xid)
	binary.BigEndian.PutUint16(b[8:], m.secs)
	binary.BigEndian.PutUint16(b[10:], m.flags)
	for i, a := range []netip.Addr{m.ciaddr, m.yiaddr, m.siaddr} {
		if a.Is4() {
			copy(b[12+4*i:], a.AsSlice())
		}
	}
	copy(b[28:], m.chaddr[:])
	copy(b[fileAt:fixedLen-1], m.file)
	b = append(b, cookie...)
	codes := make([]byte, 0, len(m.options))
	for c := range m.options {
		codes = append(codes, c)
	}
	slices.SortFunc(codes, func(a, b byte) int { return rank(a) - rank(b) })
	for _, c := range codes {
		for data := m.options[c]; ; {
			part := data[:min(len(data), 255)]
			b = append(append(b, c, byte(len(part))), part...)
			if data = data[len(part):]; len(data) == 0 {
				break
			}
		}
	}
	b = append(b, optEnd)
	if pad := 300 - len(b); pad > 0 { // BOOTP's least (RFC 1542, section 2.1)
		b = append(b, make([]byte, pad)...)
	}
	return b
}

func rank(code byte) int {
	if code == optType {
		return -1
	}
	return int(code)
}

var (
	errShort   = errors.New("dhcp: message is cut off")
	errNotDHCP = errors.New("dhcp: no magic cookie")
)

func parseMessage(b []byte) (*message, error) {
	if len(b) < fixedLen+len(cookie) {
		return nil, errShort
	}
	if !bytes.Equal(b[fixedLen:fixedLen+4], cookie) || b[1] != 1 || b[2] != 6 {
		return nil, errNotDHCP
	}
	addr := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(b[at:])) }
	m := &message{
		reply: b[0] == 2, xid: binary.BigEndian.Uint32(b[4:]), secs: binary.BigEndian.Uint16(b[8:]), flags: binary.BigEndian.Uint16(b[10:]),
		ciaddr: addr(12), yiaddr: addr(16), siaddr: addr(20), chaddr: mac(b[28:]),
		options: map[byte][]byte{},
	}
	if err := m.read(b[fixedLen+4:]); err != nil {
		return nil, err
	}
	// Section 4.1: the fields may hold more options, the file first.
	over := byte(0)
	if o := m.options[optOverload]; len(o) == 1 {
		over = o[0]
	}
	if over&1 == 0 {
		m.file, _, _ = cutNUL(b[fileAt:fixedLen])
	} else if err := m.read(b[fileAt:fixedLen]); err != nil {
		return nil, err
	}
	if over&2 != 0 {
		if err := m.read(b[snameAt:fileAt]); err != nil {
			return nil, err
		}
	}
	if f := m.options[optBootFile]; len(f) > 0 {
		m.file, _, _ = cutNUL(f)
	}
	return m, nil
}

func cutNUL(b []byte) (string, []byte, bool) {
	before, after, found := bytes.Cut(b, []byte{0})
	return string(before), after, found
}

func (m *message) read(b []byte) error {
	for len(b) > 0 {
		switch code := b[0]; code {
		case optEnd:
			return nil
		case optPad:
			b = b[1:]
		default:
			if len(b) < 2 || len(b) < 2+int(b[1]) {
				return errShort
			}
			n := 2 + int(b[1])
			m.options[code] = append(m.options[code], b[2:n]...)
			b = b[n:]
		}
	}
	return nil
}

func (m *message) kind() byte {
	if t := m.options[optType]; len(t) == 1 {
		return t[0]
	}
	return 0
}

func (m *message) server() netip.Addr {
	if a, ok := netip.AddrFromSlice(m.options[optServer]); ok && a.Is4() {
		return a
	}
	return netip.Addr{}
}

// lease is how long the address is the client's; one without a time is for ever.
func (m *message) lease() time.Duration {
	if b := m.options[optLease]; len(b) == 4 {
		return time.Duration(binary.BigEndian.Uint32(b)) * time.Second
	}
	return 1<<63 - 1
}

func kindName(k byte) string {
	switch k {
	case dhcpOffer:
		return "offer"
	case dhcpAck:
		return "ack"
	case dhcpNak:
		return "nak"
	}
	return "other"
}
