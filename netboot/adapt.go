package netboot

import (
	"context"
	"fmt"
	"net/netip"

	"bmc/netboot/dhcp"
	"bmc/netboot/httpboot"
	"bmc/netboot/ipxe"
)

// lease is the directory as DHCP sees it.
func (s *Server) lease(mac string) (dhcp.Lease, bool) {
	m, ok := s.cfg.Directory.Lookup(mac)
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
		Local:         !m.Boot.Ramdisk && !m.Boot.Elsewhere.IsValid(),
		Silent:        m.Boot.Silent,
		Authoritative: m.Authoritative,
	}, true
}

func (s *Server) seenDHCP(seen dhcp.Seen) {
	e := Event{MAC: seen.MAC, Addr: seen.Addr, Detail: seen.Reason}
	switch {
	case !seen.Known:
		e.Kind = EventUnknown
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
	s.emit(e)
}

func (s *Server) loaderSent(client netip.Addr, name string) {
	e := Event{Kind: EventLoader, Addr: client, Detail: name}
	if m, ok := s.cfg.Directory.LookupAddr(client); ok {
		e.MAC = m.MAC
	}
	s.emit(e)
}

func (s *Server) served(v httpboot.Served) {
	switch v.Kind {
	case httpboot.Loader:
		s.loaderSent(v.Addr, v.Name)
	case httpboot.Script:
		s.emit(Event{Kind: EventScript, MAC: v.MAC, Addr: v.Addr, Detail: v.Name})
	case httpboot.Seed:
		s.emit(Event{Kind: EventSeed, MAC: v.MAC, Addr: v.Addr})
	case httpboot.Refused:
		s.emit(Event{Kind: EventRefused, MAC: v.MAC, Addr: v.Addr})
	}
}

// emit adds the server's ID where the MAC is enrolled.
func (s *Server) emit(e Event) {
	if e.MAC != "" && e.Kind != EventUnknown {
		if m, ok := s.cfg.Directory.Lookup(e.MAC); ok {
			e.ServerID = m.ServerID
		}
	}
	s.cfg.Events(e)
}

// source is the directory and the seeder as HTTP sees them.
type source struct{ s *Server }

func (src source) Assigned(mac string) (netip.Addr, bool) {
	m, ok := src.s.cfg.Directory.Lookup(mac)
	return m.Addr.Addr(), ok
}

// Script decides what a machine boots; the directory is asked at this moment, not
// when its DHCP was answered.
func (src source) Script(_ context.Context, mac string) (string, []byte, error) {
	m, ok := src.s.cfg.Directory.Lookup(mac)
	if !ok {
		return "", nil, httpboot.ErrNone
	}
	switch {
	case m.Boot.Ramdisk:
	case m.Boot.Elsewhere.IsValid():
		script, err := ipxe.Elsewhere(m.Boot.Elsewhere, mac)
		return "elsewhere", script, err
	case m.Boot.Silent:
		return "again", []byte(ipxe.Again), nil
	default:
		return "local", []byte(ipxe.Local), nil
	}
	script, err := ipxe.Ramdisk{Server: src.s.httpAddr(), MAC: mac, Args: kernelArgs(m.Boot)}.Script()
	return "ramdisk", script, err
}

// Seed is only for open boot intents.
func (src source) Seed(ctx context.Context, mac string) ([]byte, error) {
	if m, ok := src.s.cfg.Directory.Lookup(mac); !ok || !m.Boot.Ramdisk {
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
