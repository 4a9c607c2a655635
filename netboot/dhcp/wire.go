package dhcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// The packet's fixed part (RFC 2131, section 2).
const (
	hardwareAt = 28
	nameAt     = 44
	fileAt     = 108
	cookieAt   = 236
	optionsAt  = 240
	minWire    = 300 // relays of BOOTP's days drop less (RFC 951)

	optPad      = 0
	optOverload = 52
	optRelay    = 82
	optEnd      = 255
)

var (
	cookie = [4]byte{99, 130, 83, 99}

	errShort   = errors.New("a packet without a whole header")
	errCookie  = errors.New("no DHCP packet: the magic cookie is missing")
	errOptions = errors.New("an option goes beyond the packet's end")
	errNoEnd   = errors.New("the options' end mark is missing")
)

// decode is dhcpv4.FromBytes into a packet that is used again: m shares memory with
// raw. What it fills and refuses is the same, as a fuzz test compares, but for overloaded
// options.
func decode(m *dhcpv4.DHCPv4, raw []byte) error {
	if len(raw) < optionsAt {
		return errShort
	}
	if [4]byte(raw[cookieAt:]) != cookie {
		return errCookie
	}
	options := m.Options
	if options == nil {
		options = dhcpv4.Options{}
	}
	clear(options)
	*m = dhcpv4.DHCPv4{
		OpCode:         dhcpv4.OpcodeType(raw[0]),
		HWType:         iana.HWType(raw[1]),
		HopCount:       raw[3],
		TransactionID:  dhcpv4.TransactionID(raw[4:8]),
		NumSeconds:     binary.BigEndian.Uint16(raw[8:]),
		Flags:          binary.BigEndian.Uint16(raw[10:]),
		ClientIPAddr:   net.IP(raw[12:16:16]),
		YourIPAddr:     net.IP(raw[16:20:20]),
		ServerIPAddr:   net.IP(raw[20:24:24]),
		GatewayIPAddr:  net.IP(raw[24:28:28]),
		ClientHWAddr:   net.HardwareAddr(raw[hardwareAt : hardwareAt+min(int(raw[2]), 16)]),
		ServerHostName: text(raw[nameAt:fileAt]),
		BootFileName:   text(raw[fileAt:cookieAt]),
		Options:        options,
	}
	rest := raw[optionsAt:]
	if len(rest) == 0 {
		return nil
	}
	if err := parse(options, rest); err != nil {
		return err
	}
	return overloaded(m, raw)
}

// parse takes options up to their end mark.
func parse(options dhcpv4.Options, rest []byte) error {
	for len(rest) > 0 {
		switch code := rest[0]; {
		case code == optPad:
			rest = rest[1:]
		case code == optEnd:
			return nil
		case len(rest) < 2 || len(rest) < 2+int(rest[1]):
			return errOptions
		default:
			end := 2 + int(rest[1])
			if old, again := options[code]; again { // RFC 3396: the parts are one
				options[code] = append(old[:len(old):len(old)], rest[2:end]...)
			} else {
				options[code] = rest[2:end:end]
			}
			rest = rest[end:]
		}
	}
	return errNoEnd
}

// overloaded takes the options that a client has put into the fields for a file's and a
// server's name, in that order (RFC 2132, section 9.3; RFC 2131, section 4.1). The library
// leaves them. Some clients end them with the field, without a mark.
func overloaded(m *dhcpv4.DHCPv4, raw []byte) error {
	how := m.Options[optOverload]
	if len(how) != 1 || how[0] == 0 || how[0] > 3 {
		return nil
	}
	if how[0]&1 != 0 {
		m.BootFileName = ""
		if err := parse(m.Options, raw[fileAt:cookieAt]); err != nil && !errors.Is(err, errNoEnd) {
			return err
		}
	}
	if how[0]&2 != 0 {
		m.ServerHostName = ""
		if err := parse(m.Options, raw[nameAt:fileAt]); err != nil && !errors.Is(err, errNoEnd) {
			return err
		}
	}
	return nil
}

func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// encode appends what dhcpv4.DHCPv4.ToBytes returns.
func encode(b []byte, m *dhcpv4.DHCPv4) []byte {
	start := len(b)
	b = append(b, make([]byte, optionsAt)...)
	head := b[start:]
	head[0], head[1], head[2], head[3] = byte(m.OpCode), byte(m.HWType), byte(len(m.ClientHWAddr)), m.HopCount
	copy(head[4:8], m.TransactionID[:])
	binary.BigEndian.PutUint16(head[8:], m.NumSeconds)
	binary.BigEndian.PutUint16(head[10:], m.Flags)
	for i, ip := range [...]net.IP{m.ClientIPAddr, m.YourIPAddr, m.ServerIPAddr, m.GatewayIPAddr} {
		copy(head[12+4*i:16+4*i], ip.To4())
	}
	copy(head[hardwareAt:nameAt], m.ClientHWAddr)
	copy(head[nameAt:fileAt-1], m.ServerHostName)
	copy(head[fileAt:cookieAt-1], m.BootFileName)
	copy(head[cookieAt:], cookie[:])

	// In ascending order, the relay's last (RFC 3046, section 2.1): there are a dozen.
	var space [24]option
	list := space[:0]
	for code, data := range m.Options {
		if code == optPad || code == optEnd {
			continue
		}
		i := len(list)
		list = append(list, option{})
		for ; i > 0 && list[i-1].after(code); i-- {
			list[i] = list[i-1]
		}
		list[i] = option{code, data}
	}
	for _, o := range list {
		b = o.append(b)
	}
	b = append(b, optEnd)
	if short := minWire - (len(b) - start); short > 0 {
		b = append(b, make([]byte, short)...)
	}
	return b
}

type option struct {
	code byte
	data []byte
}

func (o option) after(code byte) bool {
	return code != optRelay && (o.code > code || o.code == optRelay)
}

// append writes long data as several options of the same code (RFC 3396).
func (o option) append(b []byte) []byte {
	for {
		n := min(len(o.data), 255)
		b = append(append(b, o.code, byte(n)), o.data[:n]...)
		if o.data = o.data[n:]; len(o.data) == 0 {
			return b
		}
	}
}
