package dhcp

import (
	"bytes"
	"net"
	"reflect"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// FuzzWire compares our decoder and encoder with the library's. The decoder's packet
// is used again and again, as the server does.
func FuzzWire(f *testing.F) {
	for _, name := range []string{
		"ipxe-rom-bios-discover", "ipxe-rom-bios-request", "edk2-pxe-discover", "edk2-pxe-request",
		"edk2-http-discover", "edk2-http-request", "ipxedust-efi-discover", "ipxedust-efi-request",
	} {
		f.Add(captured(f, name))
	}
	bare := request{kind: discover}.packet(f).ToBytes()[:optionsAt]
	f.Add(bare)
	f.Add(append(bytes.Clone(bare), 255))
	f.Add(append(bytes.Clone(bare), 53, 1, 1, 0, 0, 61, 2, 1, 2, 61, 1, 3, 61, 0, 255, 9)) // parts of an option
	f.Add(append(bytes.Clone(bare), 53, 1))
	f.Add(append(bytes.Clone(bare), 53, 1, 1, 52, 1, 3, 255))
	f.Add(append(bytes.Clone(bare), 82, 4, 1, 2, 3, 4, 12, 0, 255))
	var used dhcpv4.DHCPv4
	f.Fuzz(func(t *testing.T, raw []byte) {
		want, refused := dhcpv4.FromBytes(bytes.Clone(raw))
		if err := decode(&used, raw); refused == nil && len(want.Options[optOverload]) > 0 {
			return // the library leaves the rest of the options where it is
		} else if (err != nil) != (refused != nil) {
			t.Fatalf("decoding says %v, the library %v", err, refused)
		} else if err != nil {
			return
		}
		if diff := difference(&used, want); diff != "" {
			t.Fatal(diff)
		}
		before := []byte("before")
		if got := encode(before, &used); !bytes.HasPrefix(got, before) || !bytes.Equal(got[len(before):], want.ToBytes()) {
			t.Fatalf("encoded\n%x, the library\n%x", got, want.ToBytes())
		}
	})
}

// difference names the first field that differs; nil and empty values are the same.
func difference(a, b *dhcpv4.DHCPv4) string {
	x, y := reflect.ValueOf(*a), reflect.ValueOf(*b)
	for i := range x.NumField() {
		name := x.Type().Field(i).Name
		if name == "Options" {
			continue
		}
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			return name
		}
	}
	if len(a.Options) != len(b.Options) {
		return "number of options"
	}
	for code, data := range b.Options {
		if got, ok := a.Options[code]; !ok || !bytes.Equal(got, data) {
			return "option"
		}
	}
	return ""
}

// What the server itself sends is encoded as the library does, too: long options,
// missing addresses, long names.
func TestEncode(t *testing.T) {
	for _, m := range []*dhcpv4.DHCPv4{
		{},
		{OpCode: dhcpv4.OpcodeBootReply, ClientHWAddr: net.HardwareAddr{1, 2, 3, 4, 5, 6}, YourIPAddr: net.IPv4(10, 0, 0, 1), Flags: 0x8000},
		{BootFileName: strings.Repeat("f", 200), ServerHostName: strings.Repeat("h", 100)},
		{Options: dhcpv4.Options{1: nil, 53: {2}, 82: bytes.Repeat([]byte{7}, 300), 255: {1}, 0: {1}, 254: bytes.Repeat([]byte{8}, 255), 43: bytes.Repeat([]byte{9}, 256)}},
	} {
		if got := encode(nil, m); !bytes.Equal(got, m.ToBytes()) {
			t.Errorf("encoded\n%x, the library\n%x", got, m.ToBytes())
		}
	}
}

// Options may stand in the fields for names (RFC 2132, section 9.3).
func TestOverload(t *testing.T) {
	raw := func(how byte, options, file, name string) []byte {
		p := request{}.packet(t).ToBytes()[:optionsAt]
		copy(p[fileAt:cookieAt], file)
		copy(p[nameAt:fileAt], name)
		return append(append(p, 52, 1, how), options+"\xff"...)
	}
	var m dhcpv4.DHCPv4
	for _, tc := range []struct {
		what string
		raw  []byte
		kind string // option 53
		id   string // option 61
		file string
		bad  bool
	}{
		{"not at all", raw(0, "\x35\x01\x01", "loader", ""), "\x01", "", "loader", false},
		{"the file", raw(1, "\x3d\x01a", "\x35\x01\x03\x3d\x01b\xff", "name"), "\x03", "ab", "", false},
		{"the name", raw(2, "\x3d\x01a", "loader", "\x00\x35\x01\x03\xff"), "\x03", "a", "loader", false},
		{"both, the file first", raw(3, "", "\x3d\x01b\xff", "\x35\x01\x03\x3d\x01c\xff"), "\x03", "bc", "", false},
		{"no end mark", raw(1, "\x3d\x01a", "\x35\x01\x03", ""), "\x03", "a", "", false},
		{"no end marks", raw(3, "", "\x35\x01\x03", "\x3d\x01c"), "\x03", "c", "", false},
		{"beyond the field", raw(1, "", "\x3d\xff", ""), "", "", "", true},
		{"nonsense", raw(7, "\x35\x01\x01", "loader", ""), "\x01", "", "loader", false},
	} {
		if err := decode(&m, tc.raw); (err != nil) != tc.bad {
			t.Errorf("%s: %v", tc.what, err)
		} else if err == nil && (string(m.Options[53]) != tc.kind || string(m.Options[61]) != tc.id || m.BootFileName != tc.file) {
			t.Errorf("%s: %q %q %q", tc.what, m.Options[53], m.Options[61], m.BootFileName)
		}
	}
}
