package light

import (
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// StrangerConfig is of a machine that nobody has enrolled.
type StrangerConfig struct {
	Name   string
	Rack   *Rack
	MAC    [6]byte
	Claims netip.Addr    // somebody else's address, for which it asks by name
	Every  time.Duration // between two questions
	Seed   uint64
	Record *Record
}

// Stranger asks a rack for an address again and again, as firmware, as a loader
// and as an operating system that remembers another's address. It never takes
// one: what it is for is the record of the silence, or of the answers. Close it.
type Stranger struct {
	cfg  StrangerConfig
	nic  *nic
	stop chan struct{}
	wg   sync.WaitGroup
}

// NewStranger plugs a stranger in.
func NewStranger(cfg StrangerConfig) (*Stranger, error) {
	n, err := cfg.Rack.plug(cfg.Name, cfg.MAC, func(m *message) { cfg.Record.answered(cfg.Name, 0, m) })
	if err != nil {
		return nil, fmt.Errorf("stranger %s: %w", cfg.Name, err)
	}
	s := &Stranger{cfg: cfg, nic: n, stop: make(chan struct{})}
	s.wg.Go(s.ask)
	return s, nil
}

// Close unplugs it.
func (s *Stranger) Close() error {
	close(s.stop)
	s.wg.Wait()
	return s.nic.unplug()
}

func (s *Stranger) ask() {
	rng := mathrand.New(mathrand.NewPCG(s.cfg.Seed, uint64(s.cfg.MAC[3])<<8|uint64(s.cfg.MAC[5])))
	firmware := map[byte][]byte{
		optType: {dhcpDiscover}, optClass: []byte("PXEClient:Arch:00000:UNDI:003016"), optArch: {0, archBIOS}, optNIC: {1, 3, 16},
		optWanted: {1, optRouter, 6, 54, optClass, optBootFile},
	}
	loader := maps.Clone(firmware)
	loader[optUserClass] = []byte("iPXE")
	questions := []struct {
		name    string
		options map[byte][]byte
	}{
		{"discover as firmware", firmware}, {"discover as a loader", loader},
		{"request of " + s.cfg.Claims.String(), map[byte][]byte{optType: {dhcpRequest}, optRequested: s.cfg.Claims.AsSlice()}},
	}
	t := time.NewTicker(s.cfg.Every)
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case <-t.C:
		case <-s.stop:
			return
		}
		q := questions[n%len(questions)]
		m := &message{xid: rng.Uint32(), chaddr: s.cfg.MAC, options: q.options}
		s.cfg.Record.Add(Event{Server: s.cfg.Name, Event: Asked, MAC: macText(s.cfg.MAC), Detail: q.name})
		s.nic.send(udpFrame(broadcast, s.cfg.MAC, netip.AddrPortFrom(anyAddr, clientPort), netip.AddrPortFrom(everybody, serverPort), m.marshal()))
	}
}
