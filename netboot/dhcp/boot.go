package dhcp

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// boot is what a client is told to load. The zero value is for clients that do
// not boot from the network: an operating system's own DHCP client.
type boot struct {
	file     string
	class    string // option 60
	vendor   []byte // option 43
	option67 bool   // the file also as an option, for those who ask
	ipxe     []byte // option 175
}

// noProxyDHCP is iPXE's option 176 (no-pxedhcp) = 1: do not wait two seconds
// for a ProxyDHCP offer.
var noProxyDHCP = []byte{176, 1, 1}

// bootDirect is PXE's discovery control, bit 3: load the file of this offer, look
// for no boot server.
var bootDirect = []byte{6, 1, 8, 255}

// boot classifies a client. iPXE, whoever built it, gets the script, else the
// loader would load itself for ever; firmware gets the loader of its architecture.
func (id Identity) boot(req *dhcpv4.DHCPv4, local bool) boot {
	var b boot
	if isIPXE(req) {
		b.ipxe = noProxyDHCP
		if speaksHTTP(req) {
			b.file = id.Base + ScriptPath + "?mac=" + req.ClientHWAddr.String()
			return b
		}
	}
	arch, ok := clientArch(req)
	if !ok {
		return b
	}
	class := req.Options[60]
	if bytes.HasPrefix(class, []byte("HTTPClient")) {
		if name := httpLoader(arch); name != "" {
			if local {
				name = LoaderNone
			}
			b.file, b.class, b.option67 = id.Base+LoaderPath+name, "HTTPClient", true
		}
		return b
	}
	if b.file = tftpLoader(arch); b.file == "" {
		return b
	}
	if local && arch != iana.INTEL_X86PC { // a BIOS gets its loader, whose script starts the disk
		b.file = LoaderNone
	}
	b.option67 = bytes.IndexByte(req.Options[55], 67) >= 0
	if bytes.HasPrefix(class, []byte("PXEClient")) && b.ipxe == nil {
		b.class, b.vendor = "PXEClient", bootDirect
	}
	return b
}

// bootsFromNetwork tells firmware and boot loaders from a system that runs.
func bootsFromNetwork(req *dhcpv4.DHCPv4) bool {
	class := req.Options[60]
	return isIPXE(req) || len(req.Options[93]) > 0 || bytes.HasPrefix(class, []byte("PXEClient")) || bytes.HasPrefix(class, []byte("HTTPClient"))
}

// tftpLoader and httpLoader know the architectures of RFC 4578 and RFC 5970.
// Clients of others get an address and no file.
func tftpLoader(arch iana.Arch) string {
	switch arch {
	case iana.INTEL_X86PC:
		return LoaderBIOS
	case iana.EFI_X86_64, iana.EFI_BC: // x64 firmware says either
		return LoaderX64
	case iana.EFI_ARM64:
		return LoaderARM64
	}
	return ""
}

func httpLoader(arch iana.Arch) string {
	switch arch {
	case iana.EFI_X86_64_HTTP:
		return LoaderX64
	case iana.EFI_ARM64_HTTP:
		return LoaderARM64
	}
	return ""
}

// clientArch is option 93's first entry.
func clientArch(req *dhcpv4.DHCPv4) (iana.Arch, bool) {
	b := req.Options[93]
	if len(b) < 2 {
		return 0, false
	}
	return iana.Arch(binary.BigEndian.Uint16(b)), true
}

var ipxeClasses = [][]byte{[]byte("iPXE"), []byte("Tinkerbell")}

// isIPXE looks for iPXE's user classes in option 77, which iPXE sends as a plain
// string and RFC 3004 wants as strings with a length before each.
func isIPXE(req *dhcpv4.DHCPv4) bool {
	data := req.Options[77]
	is := func(s []byte) bool {
		return slices.ContainsFunc(ipxeClasses, func(c []byte) bool { return bytes.Equal(c, s) })
	}
	if is(bytes.TrimRight(data, "\x00")) {
		return true
	}
	for len(data) > 0 {
		n := int(data[0])
		if len(data) < 1+n {
			return false
		}
		if is(data[1 : 1+n]) {
			return true
		}
		data = data[1+n:]
	}
	return false
}

// speaksHTTP reads iPXE's list of features (option 175, sub-option 19). A client
// that sends no list is believed.
func speaksHTTP(req *dhcpv4.DHCPv4) bool {
	features := req.Options[175]
	if len(features) == 0 {
		return true
	}
	_, ok := subOption(features, 19)
	return ok
}
