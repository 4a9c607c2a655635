package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The functions below act on the namespace of the calling thread: call them
// inside Do.

// SetUp brings an interface up.
func SetUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("interface %s up: %w", name, err)
	}
	return nil
}

// AddAddress gives an interface an IPv4 address.
func AddAddress(name string, p netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if err := netlink.AddrAdd(l, a); err != nil {
		return fmt.Errorf("address %s of %s: %w", p, name, err)
	}
	return nil
}

// SetMTU changes how large an interface's packets may be, in bytes.
func SetMTU(name string, bytes int) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetMTU(l, bytes)
	}
	if err != nil {
		return fmt.Errorf("mtu of %s: %w", name, err)
	}
	return nil
}

// AddBridge makes a bridge without spanning tree, up.
func AddBridge(name string) error {
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	return SetUp(name)
}

// AddVeth makes a pair of interfaces: name here, on bridge, and peer as the first
// thing that namespace to sees of this cable. Both are up.
func AddVeth(name, bridge string, to *Namespace, peer string) error {
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	v := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name, MasterIndex: br.Attrs().Index},
		PeerName:      peer,
		PeerNamespace: netlink.NsFd(int(to.File().Fd())),
	}
	if err := netlink.LinkAdd(v); err != nil {
		return fmt.Errorf("cable %s to %s: %w", name, to.Name(), err)
	}
	if err := SetUp(name); err != nil {
		return err
	}
	return to.Do(func() error { return SetUp(peer) })
}

// tunDevice is where a tap comes from.
const tunDevice = "/dev/net/tun"

// OpenTap makes a tap interface, up; each Read and Write of the file is one
// Ethernet frame. The interface lives as long as the file.
func OpenTap(name string, mac net.HardwareAddr) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", tunDevice, err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, errors.Join(fmt.Errorf("tap %s: %w", name, err), unix.Close(fd))
	}
	// Only now: the runtime's poller wants a descriptor that can be polled.
	f := os.NewFile(uintptr(fd), name)
	if err := setMAC(name, mac); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func setMAC(name string, mac net.HardwareAddr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if err := netlink.LinkSetHardwareAddr(l, mac); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return SetUp(name)
}

// DelAddress takes an address away.
func DelAddress(name string, p netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if err := netlink.AddrDel(l, a); err != nil {
		return fmt.Errorf("address %s of %s: %w", p, name, err)
	}
	return nil
}

// AddRouteVia says that a network is behind a router on an interface's wire.
func AddRouteVia(name string, p netip.Prefix, router netip.Addr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	r := &netlink.Route{
		LinkIndex: l.Attrs().Index, Gw: router.AsSlice(),
		Dst: &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
	}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("route to %s via %s: %w", p, router, err)
	}
	return nil
}

// Forward makes the namespace a router between its interfaces.
func Forward() error {
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

// SetNeighbour says which MAC an address has, without asking: a station that is
// being told its address does not answer ARP yet.
func SetNeighbour(name string, addr netip.Addr, mac net.HardwareAddr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	n := &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_REACHABLE, IP: addr.AsSlice(), HardwareAddr: mac}
	if err := netlink.NeighSet(n); err != nil {
		return fmt.Errorf("neighbour %s on %s: %w", addr, name, err)
	}
	return nil
}

// AddRoute says that a network is on an interface's wire.
func AddRoute(name string, p netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	r := &netlink.Route{
		LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
	}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("route to %s on %s: %w", p, name, err)
	}
	return nil
}
