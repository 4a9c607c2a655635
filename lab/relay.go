package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"bmc/lab/netns"
)

// BOOTP's fixed part (RFC 951) and what a relay touches of it (RFC 1542, section 4,
// and RFC 3046).
const (
	bootpServer, bootpClient = 67, 68

	bootpRequest, bootpReply = 1, 2

	bootpHops    = 3
	bootpFlags   = 10
	bootpCiaddr  = 12
	bootpYiaddr  = 16
	bootpGiaddr  = 24
	bootpChaddr  = 28
	bootpOptions = 240 // behind the cookie

	optionPad   = 0
	optionRelay = 82
	optionEnd   = 255

	maxHops = 16
)

var dhcpCookie = []byte{99, 130, 83, 99}

// dhcpRelay is the relay agent of a rack without agents of its own, beside the
// kernel's routing in the same namespace.
type dhcpRelay struct {
	ns      *netns.Namespace
	conn    *ipv4.PacketConn
	down    int // the rack's interface
	gateway netip.Addr
	servers []netip.Addr
	log     *slog.Logger
	done    chan struct{}
}

// startRelays serves every rack behind a relay.
func (l *Lab) startRelays(context.Context) error {
	for _, r := range l.plan.relayed() {
		relay, err := newRelay(l.net.spaces[relayName(r.name)], r.gateway, r.relay.servers, l.log)
		if err != nil {
			return &Failure{Part: relayName(r.name), Err: err}
		}
		l.relays = append(l.relays, relay)
	}
	return nil
}

func newRelay(ns *netns.Namespace, gateway netip.Addr, servers []netip.Addr, log *slog.Logger) (*dhcpRelay, error) {
	r := &dhcpRelay{ns: ns, gateway: gateway, servers: servers, log: log, done: make(chan struct{})}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var opt error
		err := c.Control(func(fd uintptr) { opt = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1) })
		return errors.Join(err, opt)
	}}
	var pc net.PacketConn
	if err := ns.Do(func() error {
		ifi, err := net.InterfaceByName(rackInterface)
		if err != nil {
			return err
		}
		r.down = ifi.Index
		pc, err = lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", bootpServer))
		return err
	}); err != nil {
		return nil, fmt.Errorf("DHCP relay: %w", err)
	}
	r.conn = ipv4.NewPacketConn(pc)
	if err := r.conn.SetControlMessage(ipv4.FlagInterface, true); err != nil {
		return nil, errors.Join(fmt.Errorf("DHCP relay: %w", err), pc.Close())
	}
	go r.run()
	return r, nil
}

func (r *dhcpRelay) close() error {
	err := r.conn.Close()
	<-r.done
	return err
}

// run relays until the socket is closed. What cannot be sent is lost, as on a wire:
// clients ask again.
func (r *dhcpRelay) run() {
	defer close(r.done)
	buf := make([]byte, 1<<16)
	for {
		n, cm, _, err := r.conn.ReadFrom(buf)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				r.log.Error("DHCP relay stopped", "relay", r.ns.Name(), "err", err)
			}
			return
		}
		if cm == nil {
			continue
		}
		if err := r.packet(buf[:n], cm.IfIndex == r.down); err != nil {
			r.log.Debug("DHCP packet was not relayed", "relay", r.ns.Name(), "err", err)
		}
	}
}

// packet relays requests of the rack to all agents, and their replies, which come
// from above, to the client.
func (r *dhcpRelay) packet(raw []byte, fromRack bool) error {
	if fromRack {
		out, ok := relayUp(raw, r.gateway)
		if !ok {
			return nil
		}
		var errs []error
		for _, s := range r.servers {
			_, err := r.conn.WriteTo(out, nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(s, bootpServer)))
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	out, to, mac, ok := relayDown(raw, r.gateway)
	if !ok {
		return nil
	}
	if mac != nil {
		if err := r.ns.Do(func() error { return netns.SetNeighbour(rackInterface, to, mac) }); err != nil {
			return err
		}
	}
	cm := ipv4.ControlMessage{Src: r.gateway.AsSlice(), IfIndex: r.down}
	_, err := r.conn.WriteTo(out, &cm, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, bootpClient)))
	return err
}

// relayUp makes of a client's request what a server gets: one hop more, the network
// that it came from, and which port of the relay.
func relayUp(raw []byte, gateway netip.Addr) ([]byte, bool) {
	if !isDHCP(raw, bootpRequest) || raw[bootpHops] >= maxHops {
		return nil, false
	}
	out := bytes.Clone(raw)
	out[bootpHops]++
	if giaddr := out[bootpGiaddr : bootpGiaddr+4]; bytes.Equal(giaddr, make([]byte, 4)) {
		copy(giaddr, gateway.AsSlice())
		out = without82(out)
		out = append(out, optionRelay, byte(2+len(rackInterface)), 1, byte(len(rackInterface))) // the circuit's name
		out = append(out, rackInterface...)
		out = append(out, optionEnd)
	}
	return out, true
}

// relayDown makes of a server's reply what the client gets, and says where it is: at
// an address that mac has, or with everybody (mac is nil).
func relayDown(raw []byte, gateway netip.Addr) (out []byte, to netip.Addr, mac net.HardwareAddr, ok bool) {
	if !isDHCP(raw, bootpReply) || !bytes.Equal(raw[bootpGiaddr:bootpGiaddr+4], gateway.AsSlice()) {
		return nil, to, nil, false
	}
	out = append(without82(raw), optionEnd)
	for len(out) < 300 { // BOOTP's least, for old clients
		out = append(out, optionPad)
	}
	to = netip.AddrFrom4([4]byte(raw[bootpYiaddr:]))
	if to.IsUnspecified() {
		to = netip.AddrFrom4([4]byte(raw[bootpCiaddr:]))
	}
	if raw[bootpFlags]&0x80 != 0 || to.IsUnspecified() {
		return out, netip.AddrFrom4([4]byte{255, 255, 255, 255}), nil, true
	}
	return out, to, bytes.Clone(raw[bootpChaddr : bootpChaddr+6]), true
}

// isDHCP says whether raw is a packet of that kind, from or to an Ethernet client.
func isDHCP(raw []byte, op byte) bool {
	return len(raw) >= bootpOptions && raw[0] == op && raw[1] == 1 && raw[2] == 6 && bytes.Equal(raw[bootpOptions-4:bootpOptions], dhcpCookie)
}

// without82 copies a packet up to the end of its options, leaving option 82 and the
// end's mark out. It stops at what is malformed.
func without82(raw []byte) []byte {
	out := bytes.Clone(raw[:bootpOptions])
	for at := bootpOptions; at < len(raw) && raw[at] != optionEnd; {
		if raw[at] == optionPad {
			at++
			continue
		}
		if at+1 >= len(raw) || at+2+int(raw[at+1]) > len(raw) {
			break
		}
		next := at + 2 + int(raw[at+1])
		if raw[at] != optionRelay {
			out = append(out, raw[at:next]...)
		}
		at = next
	}
	return out
}
