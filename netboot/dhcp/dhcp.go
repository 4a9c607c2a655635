// Package dhcp answers DHCPv4 (RFC 2131) for machines whose address is assigned
// elsewhere: there are no pools and no lease database, so any number of servers
// with the same directory give the same answers. Whether and how a packet is
// answered is Identity.Decide, a pure function; Server is the socket around it.
package dhcp

import (
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// The boot loaders that a client may be told to fetch.
const (
	LoaderBIOS  = "undionly.kpxe"
	LoaderX64   = "ipxe.efi" // ipxedust's snp.efi is arm64
	LoaderARM64 = "snp.efi"
)

// LoaderNone is told to UEFI firmware whose machine shall boot its own disk. No
// server has a file of this name, and the error sends the firmware on to its
// next boot option within a second. With no file name it would ask for another
// minute, and a loader that exits ends in the firmware's menu.
const LoaderNone = "boot-local-disk"

// ScriptPath and LoaderPath are where the HTTP server has what DHCP points to.
const (
	ScriptPath = "/boot/ipxe" // ?mac=
	LoaderPath = "/loader/"
)

// DefaultLeaseTime is used where a Lease names none.
const DefaultLeaseTime = time.Hour

// Elsewhere is the Reason for leaving a network boot to another server.
const Elsewhere = "boots from another server"

// Identity is what this server tells of itself.
type Identity struct {
	Addr netip.Addr // option 54 and siaddr
	Base string     // of HTTP URLs, "http://10.77.0.1", without a slash at the end
}

// Lease is what the directory knows of an enrolled MAC.
type Lease struct {
	Addr          netip.Prefix // the assigned address and its network's length
	Gateway       netip.Addr   // zero: none
	DNS           []netip.Addr
	Domain        string
	Hostname      string
	Time          time.Duration // 0: DefaultLeaseTime
	Local         bool          // boots its own disk: see boot
	Silent        bool          // boots from another server: only a system that runs is answered here
	Spare         bool          // with Silent: unless that server's answers do not arrive: see Tries
	Late          bool          // boots from another server, but when nobody else answers: see Tries
	Authoritative bool          // Addr is current, not merely last heard: DHCPNAK is allowed
	Relayed       bool          // its network is behind a relay, without which only its renewals come here
}

// Origin is where a client says that it stands.
type Origin struct {
	Relayed bool // a relay has passed its packet on
	// Addr is on the client's network: the relay's (giaddr, or RFC 3527's link),
	// else the client's own; zero when it has none yet.
	Addr netip.Addr
}

// Outcome is what became of a packet.
type Outcome int

// The outcomes.
const (
	Ignored  Outcome = iota // no answer; Reason says why
	Offered                 // DHCPOFFER
	Acked                   // DHCPACK to a DHCPREQUEST
	Informed                // DHCPACK to a DHCPINFORM
	Refused                 // DHCPNAK
	Declined                // the client found its address in use
	Released
)

func (o Outcome) String() string {
	return [...]string{"ignored", "offered", "acked", "informed", "refused", "declined", "released"}[o]
}

// Decision is the answer to one packet.
type Decision struct {
	Outcome Outcome
	Reason  string         // a fixed sentence, for Ignored and Refused
	Reply   *dhcpv4.DHCPv4 // nil: none
	To      Destination
}

// Way is how a reply travels (RFC 2131, section 4.1).
type Way int

// The ways.
const (
	ToRelay     Way = iota // UDP to giaddr, port 67
	ToAddress              // UDP to a client that has its address, port 68
	ToHardware             // to a client's MAC, which has no address yet and does not answer ARP
	ToBroadcast            // to everybody on the link
)

// Destination is where a reply goes.
type Destination struct {
	Way  Way
	Addr netip.AddrPort
	MAC  [6]byte // for ToHardware
}

var (
	broadcastIP  = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	broadcastMAC = [6]byte{255, 255, 255, 255, 255, 255}
)
