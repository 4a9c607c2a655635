package vswitch

import (
	"encoding/binary"
	"time"
)

// A switch's own LLDP (IEEE 802.1AB-2016): one frame to each port when somebody
// speaks LLDP there or begins to speak at all, and then every lldpEvery.
const (
	lldpEvery = 5 * time.Second
	etherLLDP = 0x88cc
)

// lldpMAC is whom frames to the next switch are for; no switch passes them on.
var lldpMAC = MAC{0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e}

// Announce has the switch say who it is on every port, until it is closed. Call it
// once, before ports are attached.
func (s *Switch) Announce(name string, mac MAC) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name, s.mac = name, mac
	done := make(chan struct{})
	s.quiet = func() { close(done) }
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		t := time.NewTicker(lldpEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				s.announceAll()
			case <-done:
				return
			}
		}
	}()
}

func (s *Switch) announceAll() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, p := range s.ports {
		p.announce()
	}
}

// heardLLDP answers a neighbour's announcement with the switch's own; it says
// whether the frame was one.
func (s *Switch) heardLLDP(from *Port, f *frame) bool {
	d := f.data()
	if MAC(d[0:6]) != lldpMAC || binary.BigEndian.Uint16(d[12:14]) != etherLLDP {
		return false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.name == "" {
		return false // a switch without LLDP floods it, as some do
	}
	from.announce()
	f.release()
	return true
}

// announce sends one announcement; the switch's lock is held.
func (p *Port) announce() {
	if p.sw.name == "" || p.gone {
		return
	}
	f := newFrame()
	f.n = copy(f.buf[:], announcement(p.sw.mac, p.sw.name, p.name))
	p.enqueue(f)
}

// announcement is a frame with an LLDPDU: chassis (MAC), port (interface name),
// TTL, system name, end.
func announcement(mac MAC, system, port string) []byte {
	b := append([]byte(nil), lldpMAC[:]...)
	b = append(b, mac[:]...)
	b = binary.BigEndian.AppendUint16(b, etherLLDP)
	tlv := func(kind int, value []byte) {
		b = binary.BigEndian.AppendUint16(b, uint16(kind<<9|len(value)))
		b = append(b, value...)
	}
	tlv(1, append([]byte{4}, mac[:]...))
	tlv(2, append([]byte{5}, port[:min(len(port), 200)]...))
	tlv(3, []byte{0, 3 * byte(lldpEvery/time.Second)})
	tlv(5, []byte(system[:min(len(system), 200)]))
	tlv(0, nil)
	for len(b) < 60 { // the shortest frame that Ethernet has
		b = append(b, 0)
	}
	return b
}
