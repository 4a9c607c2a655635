package goipmi

import (
	"errors"
	"net/netip"

	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"
)

// Poll is a Get Chassis Status on a session that stands, by somebody who does
// not wait: a sweep over many controllers. Whoever has it has its Conn, and no
// call of that is under way meanwhile.
type Poll struct {
	c    *Conn
	sent []uint8 // numbers of the requests: an answer to any of them will do
}

// Poll begins one. What comes from the controller is given to deliver, which must
// not block, until Done.
func (c *Conn) Poll(deliver func([]byte)) (*Poll, error) {
	if c.session == nil {
		return nil, ErrClosed
	}
	c.port.give(deliver)
	return &Poll{c: c}, nil
}

// Send asks, or asks again.
func (p *Poll) Send() error {
	packet, seq, err := p.c.session.request(types.CommandGetChassisStatus, nil)
	if err != nil {
		return err
	}
	p.sent = append(p.sent, seq)
	return p.c.port.send(packet)
}

// Read returns the power that a packet tells, "on" or "off"; "" when it is no
// answer to this poll.
func (p *Poll) Read(packet []byte) (state string, err error) {
	data, ok, err := p.c.session.answer(packet, types.CommandGetChassisStatus, p.sent...)
	if !ok {
		return "", nil
	}
	status := &chassis.GetChassisStatusResponse{}
	if err == nil {
		err = status.Unpack(data)
	}
	if err != nil {
		return "", classify(err)
	}
	return powerOf(status), nil
}

// Done ends it.
func (p *Poll) Done() { p.c.port.give(nil) }

func powerOf(s *chassis.GetChassisStatusResponse) string {
	if s.PowerIsOn {
		return "on"
	}
	return "off"
}

// probe is Get Channel Authentication Capabilities for IPMI 2.0's own channel (section
// 22.13), in the format of IPMI 1.5 without a session: every controller answers it
// to anybody, and keeps nothing.
var probe = []byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0x20, 6 << 2, 0xc8, 0x81, 0, 0x38, 0x8e, 4, 0xb5}

// Of an answer to it.
const (
	probeCommandAt = 19
	probeNetFnAt   = 15
)

// Prober asks whether a controller is there at all, without a session.
type Prober struct {
	hub     *Hub
	addr    netip.AddrPort
	deliver func([]byte)
}

var errProbed = errors.New("this controller is being probed already")

// Probe begins one. What comes is given to deliver, which must not block.
func (h *Hub) Probe(addr netip.AddrPort, deliver func([]byte)) (*Prober, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.open(); err != nil {
		return nil, err
	}
	if h.probes[addr] != nil {
		return nil, errProbed
	}
	p := &Prober{hub: h, addr: addr, deliver: deliver}
	h.probes[addr] = p
	return p, nil
}

// Send asks, or asks again.
func (p *Prober) Send() error { return p.hub.send(probe, p.addr) }

// Answers says whether a packet is an answer.
func (p *Prober) Answers(packet []byte) bool {
	return len(packet) > probeCommandAt && packet[probeNetFnAt]>>2 == uint8(types.NetFnAppRequest)|1 && packet[probeCommandAt] == probe[probeCommandAt]
}

// Done ends it.
func (p *Prober) Done() {
	p.hub.mu.Lock()
	defer p.hub.mu.Unlock()
	delete(p.hub.probes, p.addr)
	p.hub.release()
}
