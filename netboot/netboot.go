// Package netboot answers a rack's machines while they boot from the network:
// DHCP, TFTP, iPXE scripts, HTTP and router advertisements. It keeps no state of
// its own: who a machine is and what it shall boot is asked of a Directory at
// every packet and request.
package netboot

import (
	"context"
	"net/netip"
	"time"

	"bmc/netboot/dhcp"
)

// Machine is what the directory knows of an enrolled MAC. Values are copied.
type Machine struct {
	ServerID  string
	MAC       string       // lower case, colons
	Hostname  string       // DNS label; "" sends none
	Addr      netip.Prefix // the assigned address with its rack's prefix length
	Gateway   netip.Addr   // zero: none
	DNS       []netip.Addr
	Domain    string
	LeaseTime time.Duration // 0: one hour
	Boot      BootSpec

	// Authoritative says that Addr is known to be current, not merely what was
	// last heard. Only then may a client that asks for another address be told
	// no (DHCPNAK); without it such a client gets no answer.
	Authoritative bool
}

// BootSpec says what a machine shall boot.
type BootSpec struct {
	Ramdisk bool // a boot intent is open: the ramdisk; else the local disk
	// Elsewhere is the HTTP server of an agent that knows what this one does not:
	// the machine is sent there. Zero: Ramdisk says it.
	Elsewhere netip.AddrPort
	// Silent: the ramdisk is wanted and somebody else has its seed, so no network
	// boot is answered from here.
	Silent bool
	// Spare: with Silent, and unless Ramdisk: that somebody else has said that this
	// server may answer what he would, for when his own answer does not arrive (which
	// dhcp.Tries finds): the local disk (Disk), or the way to him (Elsewhere).
	Spare, Disk bool
	// Late: somebody else may know better, so a network boot is answered from here
	// only when nobody has answered it for a moment (dhcp.Tries).
	Late       bool
	ConsoleTTY string   // "ttyS0,115200"; "" for that default
	KernelArgs []string // further words of the ramdisk's kernel line
}

// Directory knows the enrolled machines. It answers from memory: it is asked
// for every packet, from several goroutines.
type Directory interface {
	Lookup(mac string) (Machine, bool)          // mac in lower case, with colons
	LookupAddr(addr netip.Addr) (Machine, bool) // by assigned address
}

// Rack is one whose machines reach a server through a relay.
type Rack struct {
	Subnet    func() netip.Prefix // answers from memory; zero while it is not known
	Directory Directory
	Events    Events // may be nil
}

// Seeder makes the initrd that carries a machine's one-time token.
type Seeder interface {
	// Seed returns a newc archive with a fresh token, which replaces the
	// former one. It is called once per fetch, only for machines with an open
	// boot intent, and only for requests from the machine's own address.
	Seed(ctx context.Context, mac string) ([]byte, error)
}

// EventKind says what was seen.
type EventKind string

// The events.
const (
	EventDHCP     EventKind = "dhcp"     // an enrolled MAC asked for an address; Detail is the outcome
	EventLease    EventKind = "lease"    // it was told that the address is its own (DHCPACK)
	EventDecline  EventKind = "decline"  // it found its address in use by another
	EventRelease  EventKind = "release"  // it gave its address back
	EventUnknown  EventKind = "unknown"  // a MAC that is not enrolled asked; it got no answer; Detail is DetailBoots or ""
	EventLoader   EventKind = "loader"   // a boot loader was sent
	EventScript   EventKind = "script"   // a boot script was sent; Detail is "ramdisk", "local", "elsewhere" or "again"
	EventSeed     EventKind = "seed"     // the seed initrd was sent
	EventRefused  EventKind = "refused"  // a script or seed was asked for by an address that is not the MAC's
	EventUnserved EventKind = "unserved" // an enrolled MAC's packet got no answer; Detail says why
	EventStray    EventKind = "stray"    // it came from a network of no rack and got no answer; Addr is the relay's, if any
)

// DetailBoots is EventUnknown's of firmware or a boot loader, not of a system that runs.
const DetailBoots = "boots"

// DetailElsewhere is EventUnserved's of a network boot that was left to another server.
const DetailElsewhere = dhcp.Elsewhere

// Event is something that a machine did.
type Event struct {
	Kind     EventKind
	MAC      string     // "" when only the address is known
	ServerID string     // "" when the MAC is not enrolled
	Addr     netip.Addr // of the machine, where known
	Detail   string     // of this package's own words or names, never a client's string
}

// Events hears what machines do. It is called from the servers' goroutines and
// must not block; unknown MACs may call it at line rate.
type Events func(Event)
