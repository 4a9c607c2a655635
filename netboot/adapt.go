package netboot

import (
	"context"
	"fmt"
	"net/netip"

	"bmc/netboot/dhcp"
	"bmc/netboot/httpboot"
	"bmc/netboot/ipxe"
)

// sender is the rack that a DHCP packet belongs to: the one that its relay's
// network is of; without a relay the interface's own, or, for a system that renews
// by a datagram, the one that its address is of. nil: none of ours.
func (s *Server) sender(mac string, from dhcp.Origin) *Rack {
	if r := s.relayed(from.Addr); r != nil {
		if from.Relayed {
			return r
		}
		if _, ok := r.Directory.Lookup(mac); ok {
			return r
		}
	}
	if from.Relayed && s.own != nil {
		// A relay on the interface's own network, perhaps: Decide compares.
		if _, ok := s.own.Directory.Lookup(mac); !ok {
			return nil
		}
	}
	return s.own
}

// relayed is the rack behind a relay that an address is of, or nil.
func (s *Server) relayed(addr netip.Addr) *Rack {
	for i := range s.cfg.Relayed {
		if r := &s.cfg.Relayed[i]; addr.IsValid() && r.Subnet().Contains(addr) {
			return r
		}
	}
	return nil
}

// client is the rack that the client of a TFTP or HTTP request is of, or nil. The
// interface's own gets the rest: which of its machines has the address, and whether
// any, its directory knows.
func (s *Server) client(addr netip.Addr) *Rack {
	if r := s.relayed(addr); r != nil {
		return r
	}
	return s.own
}

// lookup asks the directory of one rack, if there is one.
func (r *Rack) lookup(mac string) (Machine, bool) {
	if r == nil {
		return Machine{}, false
	}
	return r.Directory.Lookup(mac)
}

// lease is a directory as DHCP sees it.
func (s *Server) lease(mac string, from dhcp.Origin) (dhcp.Lease, bool) {
	r := s.sender(mac, from)
	m, ok := r.lookup(mac)
	if !ok {
		return dhcp.Lease{}, false
	}
	return dhcp.Lease{
		Addr:          m.Addr,
		Gateway:       m.Gateway,
		DNS:           m.DNS,
		Domain:        m.Domain,
		Hostname:      m.Hostname,
		Time:          m.LeaseTime,
		Local:         !m.Boot.Ramdisk && (!m.Boot.Elsewhere.IsValid() || m.Boot.Spare && m.Boot.Disk),
		Silent:        m.Boot.Silent,
		Spare:         m.Boot.Spare,
		Late:          m.Boot.Late,
		Authoritative: m.Authoritative,
		Relayed:       r != s.own,
	}, true
}

func (s *Server) seenDHCP(seen dhcp.Seen) {
	r := s.sender(seen.MAC, seen.From)
	if r == nil {
		e := Event{Kind: EventStray, MAC: seen.MAC}
		if seen.From.Relayed {
			e.Addr = seen.From.Addr
		}
		s.cfg.Events(e)
		return
	}
	e := Event{MAC: seen.MAC, Addr: seen.Addr, Detail: seen.Reason}
	switch {
	case !seen.Known:
		e.Kind = EventUnknown
		if seen.Boots {
			e.Detail = DetailBoots
		}
	case seen.Outcome == dhcp.Acked:
		e.Kind = EventLease
	case seen.Outcome == dhcp.Declined:
		e.Kind = EventDecline
	case seen.Outcome == dhcp.Released:
		e.Kind = EventRelease
	case seen.Outcome == dhcp.Ignored:
		e.Kind = EventUnserved
	default:
		e.Kind, e.Detail = EventDHCP, seen.Outcome.String()
	}
	r.emit(e)
}

func (s *Server) loaderSent(client netip.Addr, name string) {
	r := s.client(client)
	if r == nil {
		return
	}
	e := Event{Kind: EventLoader, Addr: client, Detail: name}
	if m, ok := r.Directory.LookupAddr(client); ok {
		e.MAC = m.MAC
	}
	r.emit(e)
}

func (s *Server) served(v httpboot.Served) {
	r := s.client(v.Addr)
	if r == nil {
		return
	}
	switch v.Kind {
	case httpboot.Loader:
		s.loaderSent(v.Addr, v.Name)
	case httpboot.Script:
		r.emit(Event{Kind: EventScript, MAC: v.MAC, Addr: v.Addr, Detail: v.Name})
	case httpboot.Seed:
		r.emit(Event{Kind: EventSeed, MAC: v.MAC, Addr: v.Addr})
	case httpboot.Refused:
		r.emit(Event{Kind: EventRefused, MAC: v.MAC, Addr: v.Addr})
	}
}

// emit adds the server's ID where the MAC is enrolled.
func (r *Rack) emit(e Event) {
	if e.MAC != "" && e.Kind != EventUnknown {
		if m, ok := r.Directory.Lookup(e.MAC); ok {
			e.ServerID = m.ServerID
		}
	}
	r.Events(e)
}

// source is the directories and the seeder as HTTP sees them.
type source struct{ s *Server }

func (src source) Assigned(mac string, client netip.Addr) (netip.Addr, bool) {
	m, ok := src.s.client(client).lookup(mac)
	return m.Addr.Addr(), ok
}

// Script decides what a machine boots; the directory is asked at this moment, not
// when its DHCP was answered.
func (src source) Script(_ context.Context, mac string, client netip.Addr) (string, []byte, error) {
	m, ok := src.s.client(client).lookup(mac)
	if !ok {
		return "", nil, httpboot.ErrNone
	}
	switch {
	case m.Boot.Ramdisk:
	case m.Boot.Spare && m.Boot.Disk && src.s.tries.Waited(mac, true):
		return "local", []byte(ipxe.Local), nil
	case m.Boot.Elsewhere.IsValid():
		script, err := ipxe.Elsewhere(m.Boot.Elsewhere, mac)
		return "elsewhere", script, err
	case m.Boot.Silent, m.Boot.Late && !src.s.tries.Waited(mac, false):
		return "again", []byte(ipxe.Again), nil
	default:
		return "local", []byte(ipxe.Local), nil
	}
	script, err := ipxe.Ramdisk{Server: src.s.httpAddr(), MAC: mac, Args: kernelArgs(m.Boot)}.Script()
	return "ramdisk", script, err
}

// Seed is only for open boot intents.
func (src source) Seed(ctx context.Context, mac string, client netip.Addr) ([]byte, error) {
	if m, ok := src.s.client(client).lookup(mac); !ok || !m.Boot.Ramdisk {
		return nil, httpboot.ErrNone
	}
	data, err := src.s.cfg.Seeder.Seed(ctx, mac)
	if err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	return data, nil
}

func kernelArgs(b BootSpec) []string {
	tty := b.ConsoleTTY
	if tty == "" {
		tty = DefaultConsole
	}
	args := append([]string{"console=" + tty}, baseArgs...)
	return append(args, b.KernelArgs...)
}
