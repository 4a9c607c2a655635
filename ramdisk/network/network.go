// Package network brings up a ramdisk's one NIC by DHCP.
package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
)

const (
	pollEvery = 20 * time.Millisecond
	tryFor    = 4 * time.Second // one DISCOVER
	linkFor   = 10 * time.Second
)

// LinksUp brings up loopback and every port, so that inspection sees links.
// Ports that will not come up are somebody else's trouble.
func LinksUp() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if err := netlink.LinkSetUp(l); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// LinksDown takes every port down, so that no packet reaches memory that is about
// to be another kernel's.
func LinksDown() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if err := netlink.LinkSetDown(l); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// Up waits for the NIC with this MAC, asks for its address by DHCP until ctx
// ends, and configures address and default route. The lease is not renewed:
// racks assign addresses to MACs for good.
func Up(ctx context.Context, log *slog.Logger, mac net.HardwareAddr) (net.IPNet, error) {
	link, err := waitNIC(ctx, mac)
	if err != nil {
		return net.IPNet{}, err
	}
	name := link.Attrs().Name
	if err := netlink.LinkSetUp(link); err != nil {
		return net.IPNet{}, fmt.Errorf("bring up %s: %w", name, err)
	}
	waitCarrier(ctx, name)
	var last error
	for attempt := 1; ; attempt++ {
		ack, err := exchange(ctx, name)
		if err == nil {
			return configure(link, ack)
		}
		last = err
		log.Info("no DHCP answer yet", "nic", name, "attempt", attempt)
		select {
		case <-ctx.Done():
			return net.IPNet{}, fmt.Errorf("no DHCP answer on %s (%s) after %d attempts: %w", name, mac, attempt, last)
		case <-time.After(min(time.Duration(attempt)*500*time.Millisecond, 4*time.Second)):
		}
	}
}

func waitNIC(ctx context.Context, mac net.HardwareAddr) (netlink.Link, error) {
	for {
		links, err := netlink.LinkList()
		if err != nil {
			return nil, fmt.Errorf("list links: %w", err)
		}
		for _, l := range links {
			if bytes.Equal(l.Attrs().HardwareAddr, mac) {
				return l, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no NIC has the address %s", mac)
		case <-time.After(pollEvery):
		}
	}
}

// waitCarrier saves the first DISCOVER from a port that is still negotiating.
// It gives up silently: some drivers never tell.
func waitCarrier(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, linkFor)
	defer cancel()
	for {
		b, err := os.ReadFile("/sys/class/net/" + name + "/carrier")
		if err == nil && bytes.HasPrefix(b, []byte("1")) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pollEvery):
		}
	}
}

func exchange(ctx context.Context, name string) (*dhcpv4.DHCPv4, error) {
	c, err := nclient4.New(name, nclient4.WithTimeout(tryFor), nclient4.WithRetry(1))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	defer c.Close() //nolint:errcheck // the exchange is over
	lease, err := c.Request(ctx, dhcpv4.WithOption(dhcpv4.OptClassIdentifier("bmc-ramdisk")))
	if err != nil {
		return nil, err
	}
	return lease.ACK, nil
}

func configure(link netlink.Link, ack *dhcpv4.DHCPv4) (net.IPNet, error) {
	addr := net.IPNet{IP: ack.YourIPAddr.To4(), Mask: ack.SubnetMask()}
	if addr.IP == nil || addr.IP.IsUnspecified() {
		return net.IPNet{}, errors.New("the DHCP answer holds no address")
	}
	if ones, bits := addr.Mask.Size(); bits != 32 || ones == 0 {
		return net.IPNet{}, errors.New("the DHCP answer holds no subnet mask")
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: &addr}); err != nil {
		return net.IPNet{}, fmt.Errorf("set address %s: %w", addr.String(), err)
	}
	if gws := ack.Router(); len(gws) > 0 { // the first is the preferred one
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gws[0]}
		if err := netlink.RouteReplace(route); err != nil {
			return net.IPNet{}, fmt.Errorf("set gateway %s: %w", gws[0], err)
		}
	}
	return addr, nil
}
