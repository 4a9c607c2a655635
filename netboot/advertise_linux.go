package netboot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Timing of router advertisements. RFC 4861 wants three seconds between those
// to everybody (section 6.2.6); a soliciting iPXE has no time for that and gets
// its own by unicast, which has no such rule but here its own limit.
const (
	advertiseEvery   = 10 * time.Second
	advertiseMin     = 3 * time.Second
	solicitedPerTick = 64
	solicitedTick    = 100 * time.Millisecond
)

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

// advertiser tells IPv6 clients that there is nothing for them here: router
// lifetime 0, no prefix, no DHCPv6. iPXE would else wait for it for 14 seconds.
type advertiser struct {
	ifi     *net.Interface
	conn    *ipv6.PacketConn
	message []byte
	log     *slog.Logger
}

func listenAdvertiser(name string, log *slog.Logger) (*advertiser, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var opt error
		err := c.Control(func(fd uintptr) { opt = unix.BindToDevice(int(fd), name) })
		return errors.Join(err, opt)
	}}
	pc, err := lc.ListenPacket(context.Background(), "ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, err
	}
	conn := ipv6.NewPacketConn(pc)
	var only ipv6.ICMPFilter
	only.SetAll(true)
	only.Accept(ipv6.ICMPTypeRouterSolicitation)
	message, merr := advertisement(ifi.HardwareAddr)
	err = errors.Join(merr,
		conn.SetICMPFilter(&only),
		conn.SetControlMessage(ipv6.FlagHopLimit, true),
		conn.SetMulticastInterface(ifi),
		conn.SetMulticastHopLimit(255),
		conn.SetHopLimit(255),
		conn.JoinGroup(ifi, &net.UDPAddr{IP: allRouters.AsSlice()}),
	)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &advertiser{ifi: ifi, conn: conn, message: message, log: log}, nil
}

// advertisement is section 4.2's message: current hop limit 64, no flags, all
// times zero, and the source link-layer address (section 4.6.1).
func advertisement(mac net.HardwareAddr) ([]byte, error) {
	body := make([]byte, 12)
	body[0] = 64
	if len(mac) == 6 {
		body = append(append(body, 1, 1), mac...)
	}
	m := icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: body}}
	return m.Marshal(nil) // the kernel fills in the checksum
}

// serve advertises until ctx ends.
func (a *advertiser) serve(ctx context.Context) {
	solicitors := make(chan netip.Addr, solicitedPerTick)
	read := make(chan struct{})
	go func() {
		defer close(read)
		a.listen(solicitors)
	}()
	defer func() {
		_ = a.conn.Close()
		<-read
	}()

	// The first ones go out quickly: the link-local address may not be usable yet.
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-read: // the socket is gone
			return
		case to := <-solicitors:
			if to.IsUnspecified() {
				timer.Reset(max(0, advertiseMin-time.Since(last)))
				continue
			}
			if err := a.send(to); err != nil {
				a.log.Debug("router advertisement could not be sent", "addr", to, "err", err)
			}
		case <-timer.C:
			last = time.Now()
			timer.Reset(advertiseEvery)
			if err := a.send(allNodes); err != nil {
				timer.Reset(advertiseMin)
				a.log.Debug("router advertisement could not be sent", "err", err)
			}
		}
	}
}

// listen passes valid solicitations on (section 6.1.1), as many as solicitors
// holds a tick.
func (a *advertiser) listen(solicitors chan<- netip.Addr) {
	buf := make([]byte, 1500)
	var tick time.Time
	passed := 0
	for {
		n, cm, src, err := a.conn.ReadFrom(buf)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				a.log.Warn("router solicitations can no longer be received", "err", err)
			}
			return
		}
		from, ok := src.(*net.IPAddr)
		if n < 8 || !ok || cm == nil || cm.HopLimit != 255 {
			continue
		}
		addr, ok := netip.AddrFromSlice(from.IP)
		if !ok || !(addr.IsUnspecified() || addr.IsLinkLocalUnicast()) {
			continue
		}
		if now := time.Now(); now.Sub(tick) > solicitedTick {
			tick, passed = now, 0
		}
		if passed++; passed > solicitedPerTick {
			continue
		}
		select {
		case solicitors <- addr:
		default:
		}
	}
}

func (a *advertiser) send(to netip.Addr) error {
	cm := ipv6.ControlMessage{HopLimit: 255, IfIndex: a.ifi.Index}
	dst := net.IPAddr{IP: to.AsSlice(), Zone: a.ifi.Name}
	_, err := a.conn.WriteTo(a.message, &cm, &dst)
	return err
}
