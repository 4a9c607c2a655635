package dhcp

import (
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	minMessage  = 576  // what every client takes (RFC 2131, section 2), IP header included
	maxMessage  = 1500 // never fragment
	fixedLength = 20 + 8 + 236 + 4 + 1
)

// budget is the room for options in a reply: what the client says that it takes
// (option 57), less everything else in the datagram.
func budget(req *dhcpv4.DHCPv4) int {
	size := minMessage
	if b := req.Options[57]; len(b) == 2 {
		size = min(max(int(binary.BigEndian.Uint16(b)), minMessage), maxMessage)
	}
	return size - fixedLength
}

// options takes what fits, so that the order of calls is the order of importance.
type options struct {
	m    dhcpv4.Options
	left int
}

// add leaves out empty options and those that do not fit.
func (o *options) add(code uint8, data []byte) {
	cost := len(data) + 2*((len(data)+254)/255) // RFC 3396: each part has a header
	if len(data) == 0 || cost > o.left {
		return
	}
	o.left -= cost
	o.m[code] = data
}

// fill sets the boot fields and options of an offer or acknowledgement. The
// relay's option 82 is echoed as it came (RFC 3046, section 2.2), the client's
// identifier too (RFC 6842).
func (id Identity) fill(r, req *dhcpv4.DHCPv4, l Lease, t dhcpv4.MessageType, leased bool) {
	b := id.boot(req, l.Local)
	r.BootFileName = b.file

	o := options{m: r.Options, left: budget(req)}
	o.add(53, []byte{byte(t)})
	o.add(54, id.Addr.AsSlice())
	if leased {
		o.add(51, seconds(l.Time))
	}
	o.add(82, req.Options[82])
	o.add(1, net.CIDRMask(l.Addr.Bits(), 32))
	o.add(61, req.Options[61])
	if b.file != "" {
		o.add(60, []byte(b.class))
		o.add(43, b.vendor)
		if b.option67 {
			o.add(67, []byte(b.file))
		}
		if uuid := req.Options[97]; b.class != "" && len(uuid) == 17 {
			o.add(97, uuid) // PXE 2.1: the client's machine identifier comes back
		}
	}
	o.add(175, b.ipxe)
	if l.Gateway.Is4() {
		o.add(3, l.Gateway.AsSlice())
	}
	o.add(6, addresses(l.DNS))
	o.add(12, []byte(l.Hostname))
	o.add(15, []byte(l.Domain))
}

func seconds(d time.Duration) []byte {
	if d <= 0 {
		d = DefaultLeaseTime
	}
	// All ones would mean for ever.
	return binary.BigEndian.AppendUint32(nil, uint32(min(d/time.Second, math.MaxUint32-1)))
}

func addresses(list []netip.Addr) []byte {
	var b []byte
	for _, a := range list {
		if a.Is4() && len(b) < 4*4 {
			b = append(b, a.AsSlice()...)
		}
	}
	return b
}
