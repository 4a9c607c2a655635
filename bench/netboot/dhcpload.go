package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/net/ipv4"

	stats "bmc/bench/measure"
)

// DHCP message types.
const (
	discover = 1
	offer    = 2
	request  = 3
	ack      = 5
)

// handshake is a machine's way from DISCOVER to ACK.
type handshake struct {
	packet  []byte
	xid     uint32
	began   time.Time
	sent    time.Time
	waiting byte // for this message type; 0: idle
}

type dhcpResult struct {
	done    int
	resends int
	elapsed time.Duration
	latency []time.Duration
}

func (r dhcpResult) rate() float64      { return float64(r.done) / r.elapsed.Seconds() }
func (r dhcpResult) p99() time.Duration { return stats.Percentile(sorted(r.latency), 99) }

func sorted(d []time.Duration) []time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d
}

// dhcpPacket is what UEFI firmware sends, with the broadcast flag.
func dhcpPacket(kind byte, hw net.HardwareAddr, xid uint32, more ...byte) []byte {
	b := make([]byte, 240, 400)
	b[0], b[1], b[2] = 1, 1, 6
	binary.BigEndian.PutUint32(b[4:], xid)
	b[10] = 0x80
	copy(b[28:], hw)
	copy(b[236:], []byte{99, 130, 83, 99})
	b = append(b, 53, 1, kind)
	b = append(b, more...)
	b = append(b, 57, 2, 1472>>8, 1472&0xff)
	b = append(b, 55, 35, 1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97, 128, 129, 130, 131, 132, 133, 134, 135)
	b = append(b, 97, 17, 0)
	b = append(b, make([]byte, 10)...)
	b = append(b, hw...)
	b = append(b, 94, 3, 1, 3, 16, 93, 2, 0, 7, 60, 32)
	b = append(b, "PXEClient:Arch:00007:UNDI:003016"...)
	return append(b, 255)
}

// dhcpLoad keeps inFlight machines asking until length is over, or until total have
// their address.
func dhcpLoad(device string, inFlight, total int, length time.Duration) (dhcpResult, error) {
	c, err := open(device, 68, false)
	if err != nil {
		return dhcpResult{}, err
	}
	defer func() { _ = c.Close() }()
	l := &dhcpLoader{slots: make([]handshake, inFlight), to: &net.UDPAddr{IP: net.IPv4bcast, Port: 67}}
	began := time.Now()
	for i := range l.slots {
		l.begin(&l.slots[i], began)
	}
	in := buffers()
	sweep := began.Add(sweepTime)
	for open := inFlight; ; {
		if err := flush(c, l.out); err != nil {
			return l.dhcpResult, err
		}
		l.out = l.out[:0]
		n, err := receive(c, in, sweep)
		if err != nil {
			return l.dhcpResult, err
		}
		now := time.Now()
		l.elapsed = now.Sub(began)
		for i := range n {
			h := l.receive(in[i].Buffers[0][:in[i].N], now)
			switch {
			case h == nil:
			case total == 0 && l.elapsed < length:
				l.begin(h, now)
			default:
				if open--; open == 0 || total == 0 {
					return l.dhcpResult, nil
				}
			}
		}
		if l.elapsed > length {
			if total != 0 {
				return l.dhcpResult, fmt.Errorf("%d of %d machines have an address after %v", l.done, total, length)
			}
			if l.done == 0 {
				return l.dhcpResult, errors.New("no handshake was completed")
			}
			return l.dhcpResult, nil
		}
		if !now.Before(sweep) {
			sweep = now.Add(sweepTime)
			l.resend(now)
		}
	}
}

type dhcpLoader struct {
	dhcpResult
	slots []handshake
	next  int // the next machine
	to    *net.UDPAddr
	out   []ipv4.Message
}

func (l *dhcpLoader) send(h *handshake, now time.Time) {
	h.sent = now
	l.out = append(l.out, ipv4.Message{Buffers: [][]byte{h.packet}, Addr: l.to})
}

func (l *dhcpLoader) begin(h *handshake, now time.Time) {
	slot := (uintptr(l.next)) % machines
	l.next++
	h.xid += 1 << 16 // its answers to the former handshake count no more
	for i := range l.slots {
		if &l.slots[i] == h {
			h.xid = h.xid&^0xffff | uint32(i)
			break
		}
	}
	h.packet = dhcpPacket(discover, mac(int(slot)), h.xid)
	h.waiting, h.began = offer, now
	l.send(h, now)
}

// receive takes an answer, and returns the handshake that it completes.
func (l *dhcpLoader) receive(b []byte, now time.Time) *handshake {
	if len(b) < 243 || b[0] != 2 {
		return nil
	}
	xid := binary.BigEndian.Uint32(b[4:])
	if int(xid&0xffff) >= len(l.slots) {
		return nil
	}
	h := &l.slots[xid&0xffff]
	kind := dhcpOption(b[240:], 53)
	if h.xid != xid || len(kind) != 1 || kind[0] != h.waiting {
		return nil
	}
	if h.waiting == ack {
		h.waiting = 0
		l.done++
		l.latency = append(l.latency, now.Sub(h.began))
		return h
	}
	more := append([]byte{50, 4}, b[16:20]...)
	more = append(append(more, 54, 4), dhcpOption(b[240:], 54)...)
	h.packet = dhcpPacket(request, bytes.Clone(h.packet[28:34]), xid, more...)
	h.waiting = ack
	l.send(h, now)
	return nil
}

func (l *dhcpLoader) resend(now time.Time) {
	for i := range l.slots {
		if h := &l.slots[i]; h.waiting != 0 && now.Sub(h.sent) > patience {
			l.resends++
			l.send(h, now)
		}
	}
}

func dhcpOption(b []byte, code byte) []byte {
	for len(b) >= 2 && b[0] != 255 {
		if b[0] == 0 {
			b = b[1:]
			continue
		}
		n := int(b[1])
		if len(b) < 2+n {
			return nil
		}
		if b[0] == code {
			return b[2 : 2+n]
		}
		b = b[2+n:]
	}
	return nil
}
