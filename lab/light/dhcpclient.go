package light

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"time"
)

var past = time.Unix(1, 0)

var errNoOffer = errors.New("DHCP: " + NoAnswer)

// acquire gets an address as a client that knows nothing (RFC 2131, section
// 4.4.1) and gives it to the machine. After each send it waits as long as waits
// says, then sends again, then gives up.
func (l *life) acquire(ctx context.Context, who string, options map[byte][]byte, waits []time.Duration) (*message, error) {
	began := time.Now()
	for {
		offer, err := l.exchange(ctx, l.request(dhcpDiscover, options, nil), waits, dhcpOffer)
		if err != nil {
			return nil, err
		}
		chosen := map[byte][]byte{optRequested: offer.yiaddr.AsSlice(), optServer: offer.options[optServer]}
		req := l.request(dhcpRequest, options, chosen)
		req.xid = offer.xid
		ack, err := l.exchange(ctx, req, waits, dhcpAck, dhcpNak)
		if err != nil {
			return nil, err
		}
		if ack.kind() == dhcpAck && ack.yiaddr == offer.yiaddr {
			return ack, l.take(who, ack)
		}
		// Refused: from the beginning, but not for ever.
		if time.Since(began) > total(waits) {
			return nil, fmt.Errorf("DHCP server %s offers what it refuses", offer.server())
		}
		if err := l.sleep(ctx, waits[0]); err != nil {
			return nil, err
		}
	}
}

func total(waits []time.Duration) (sum time.Duration) {
	for _, w := range waits {
		sum += w
	}
	return sum
}

// take makes an acknowledged address the machine's.
func (l *life) take(who string, ack *message) error {
	l.record(DHCP, "", fmt.Sprintf("%s for %s from %s", ack.yiaddr, who, ack.server()))
	router, _ := netip.AddrFromSlice(ack.options[optRouter]) // the first and only one; zero without
	l.nic.setRouter(router)
	return l.nic.setAddr(ack.yiaddr)
}

func (l *life) request(kind byte, options, more map[byte][]byte) *message {
	m := &message{xid: l.random(), chaddr: l.m.cfg.MAC, options: map[byte][]byte{optType: {kind}}}
	maps.Copy(m.options, options)
	maps.Copy(m.options, more)
	return m
}

// exchange broadcasts a message until an answer of one of the kinds comes.
func (l *life) exchange(ctx context.Context, m *message, waits []time.Duration, kinds ...byte) (*message, error) {
	l.drain()
	began := time.Now()
	for _, w := range waits {
		m.secs = uint16(time.Since(began) / time.Second)
		l.nic.send(udpFrame(broadcast, l.m.cfg.MAC, netip.AddrPortFrom(anyAddr, clientPort), netip.AddrPortFrom(everybody, serverPort), m.marshal()))
		reply, err := l.reply(ctx, m.xid, w, kinds)
		if err != nil || reply != nil {
			return reply, err
		}
	}
	return nil, errNoOffer
}

// reply returns nil when none has come in time.
func (l *life) reply(ctx context.Context, xid uint32, within time.Duration, kinds []byte) (*message, error) {
	t := time.NewTimer(within)
	defer t.Stop()
	for {
		select {
		case r := <-l.nic.dhcp:
			for _, k := range kinds {
				if r.xid == xid && r.kind() == k && r.server().IsValid() {
					return r, nil
				}
			}
		case <-t.C:
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// drain drops answers to what was asked before.
func (l *life) drain() {
	for {
		select {
		case <-l.nic.dhcp:
		default:
			return
		}
	}
}

// systemWaits are an operating system's, which asks for ever.
func systemWaits(unit time.Duration) []time.Duration {
	return []time.Duration{unit, 2 * unit, 4 * unit, 8 * unit, 16 * unit}
}

var systemOptions = map[byte][]byte{optClass: []byte("light-os"), optWanted: {1, optRouter, 6, 12, 15, optLease}}

// systemDHCP gets an operating system's address: the one that it had, if it
// remembers one (INIT-REBOOT), else any. It asks until the boot ends.
func (l *life) systemDHCP(ctx context.Context, who string, known netip.Addr) (*message, error) {
	waits := systemWaits(l.m.cfg.Timing.Retry)
	for {
		if known.IsValid() {
			req := l.request(dhcpRequest, systemOptions, map[byte][]byte{optRequested: known.AsSlice()})
			ack, err := l.exchange(ctx, req, waits[:3], dhcpAck, dhcpNak)
			if err == nil && ack.kind() == dhcpAck && ack.yiaddr == known {
				return ack, l.take(who, ack)
			}
			if err == nil {
				l.record(DHCP, "", fmt.Sprintf("%s for %s: %s from %s", known, who, kindName(ack.kind()), ack.server()))
			}
			known = noAddr
		}
		ack, err := l.acquire(ctx, who, systemOptions, waits)
		if err == nil {
			return ack, nil
		}
		if err := l.sleep(ctx, waits[0]); err != nil {
			return nil, err
		}
	}
}

// renew extends a lease (section 4.4.5): by a datagram to the server, then by a
// broadcast to all. It reports whether the address is still the machine's.
func (l *life) renew(ctx context.Context, lease *message) (*message, error) {
	req := l.request(dhcpRequest, systemOptions, nil)
	req.ciaddr = lease.yiaddr
	u, err := l.nic.udp(clientPort)
	if err != nil {
		return nil, err
	}
	defer func() { _ = u.Close() }()
	l.drain()
	if _, err := u.WriteToUDP(req.marshal(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(lease.server(), serverPort))); err != nil {
		return nil, err
	}
	waits := systemWaits(l.m.cfg.Timing.Retry)
	ack, err := l.reply(ctx, req.xid, waits[1], []byte{dhcpAck, dhcpNak})
	if err == nil && ack == nil {
		ack, err = l.exchange(ctx, req, waits, dhcpAck, dhcpNak)
	}
	if err == nil && ack.kind() == dhcpNak {
		err = fmt.Errorf("%s took the address %s away", ack.server(), lease.yiaddr)
	}
	return ack, err
}
