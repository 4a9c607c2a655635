package netns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Frames is the far end of a network interface: each Read yields one Ethernet
// frame that the namespace sends, each Write is one that it receives.
type Frames = io.ReadWriteCloser

// OpenFrames makes an interface of that name, up, and returns its far end. It is
// a tap; where /dev/net/tun is not for this user, it is a veth pair with a packet
// socket on its second half, which needs no device.
func OpenFrames(name string, mac net.HardwareAddr) (Frames, error) {
	tap, err := OpenTap(name, mac)
	if err == nil {
		return tap, nil
	}
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENXIO) {
		return nil, err
	}
	return openPair(name, mac)
}

func openPair(name string, mac net.HardwareAddr) (_ Frames, err error) {
	far := name + "-far"
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: far}
	if err := netlink.LinkAdd(v); err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	// A packet socket would see the kernel's unfinished checksums and segments of
	// 64 KiB: on a wire to another machine, neither exists.
	for _, i := range []string{name, far} {
		if err := offloadOff(i); err != nil {
			return nil, fmt.Errorf("offloads of %s: %w", i, err)
		}
	}
	if err := errors.Join(setMAC(name, mac), SetUp(far)); err != nil {
		return nil, err
	}
	return packetSocket(far)
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
			return fmt.Errorf("ethtool command %#x: %w", cmd, errno)
		}
	}
	return nil
}
