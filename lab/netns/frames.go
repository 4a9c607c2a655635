package netns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Frames is the far end of a network interface: each Read yields one Ethernet
// frame that the namespace sends, each Write is one that it receives.
type Frames = io.ReadWriteCloser

// OpenFrames makes an interface of that name, up, and returns its far end. It is
// a tap; where /dev/net/tun is not for this user, it is a veth pair with a packet
// socket on its second half, which needs no device.
// mtu is in bytes, 0 for 1,500.
func OpenFrames(name string, mac net.HardwareAddr, mtu int) (Frames, error) {
	tap, err := OpenTap(name, mac)
	if err == nil && mtu != 0 {
		if err := SetMTU(name, mtu); err != nil {
			return nil, errors.Join(err, tap.Close())
		}
	}
	if err == nil {
		return tap, nil
	}
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENXIO) {
		return nil, err
	}
	return openPair(name, mac, mtu)
}

// openPair keeps the pair's second half in a namespace of its own, where nobody
// answers and nothing speaks by itself. It lives as long as the packet socket,
// and takes the interface along.
func openPair(name string, mac net.HardwareAddr, mtu int) (_ Frames, err error) {
	far, err := New(name + "'s far end")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, far.Close()) }()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu}, PeerMTU: uint32(mtu), PeerName: name, PeerNamespace: netlink.NsFd(int(far.File().Fd()))}
	if err := netlink.LinkAdd(v); err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	var frames Frames
	if err := far.Do(func() (err error) {
		if err := errors.Join(offloadOff(name), silence(name), SetUp(name)); err != nil {
			return err
		}
		frames, err = packetSocket(name)
		return err
	}); err != nil {
		return nil, err
	}
	// A packet socket would see the kernel's unfinished checksums and segments of
	// 64 KiB: on a wire to another machine, neither exists.
	if err := errors.Join(offloadOff(name), setMAC(name, mac)); err != nil {
		return nil, errors.Join(err, frames.Close())
	}
	return frames, nil
}

// silence keeps an interface from having an IPv6 address, and so from
// announcing one.
func silence(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return netlink.LinkSetIP6AddrGenMode(l, nl.IN6_ADDR_GEN_MODE_NONE)
}

// packetSocket returns a raw socket on an interface. Frames that the socket
// itself sends are not read back: PACKET_IGNORE_OUTGOING.
func packetSocket(name string) (Frames, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	i, err := net.InterfaceByName(name)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	}
	if err == nil {
		all := uint16(unix.ETH_P_ALL)
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: i.Index})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket on %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct{ cmd, data uint32 }

// offloadOff makes an interface send frames as a wire would carry them.
func offloadOff(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	for _, cmd := range []uint32{unix.ETHTOOL_STXCSUM, unix.ETHTOOL_SGSO, unix.ETHTOOL_STSO, unix.ETHTOOL_SGRO} {
		var ifreq struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}
		copy(ifreq.name[:unix.IFNAMSIZ-1], name)
		v := ethtoolValue{cmd: cmd}
		ifreq.data = unsafe.Pointer(&v)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
		if errno != 0 && errno != unix.EOPNOTSUPP {
			return fmt.Errorf("offloads of %s: %w", name, errno)
		}
	}
	return nil
}
