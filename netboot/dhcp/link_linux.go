package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/mdlayher/packet"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// batchSize is how many packets one system call receives or sends at most; receiveSpace
// is for a boot storm: a thousand machines ask at once while we do something else
// (the default drops the 200th). maxPacket is the largest datagram that is read; ours
// and those of clients are one Ethernet frame.
const (
	batchSize    = 64
	receiveSpace = 4 << 20
	maxPacket    = 4096
)

// socketLink is a UDP socket, for receiving and for clients that have an
// address, and a packet socket for those who have none yet.
type socketLink struct {
	udp    *net.UDPConn
	ip     *ipv4.PacketConn
	raw    *packet.Conn
	mac    net.HardwareAddr
	source netip.Addr

	in      *batch
	packets [][]byte
	out     *batch // frames for raw
	waiting int    // of them
}

func openLink(name string, source netip.Addr) (*socketLink, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	// Bound to the device before it is bound to the port, so that one process
	// may serve several racks, each on its interface.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var opt error
		err := c.Control(func(fd uintptr) {
			opt = errors.Join(
				unix.BindToDevice(int(fd), name),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
			)
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveSpace) != nil {
				opt = errors.Join(opt, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveSpace)) // up to the system's limit
			}
		})
		return errors.Join(err, opt)
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", serverPort))
	if err != nil {
		return nil, fmt.Errorf("port %d on %s: %w", serverPort, name, err)
	}
	// Protocol 0 receives nothing: the kernel need not copy the rack's traffic here.
	raw, err := packet.Listen(ifi, packet.Raw, 0, nil)
	if err != nil {
		_ = pc.Close()
		return nil, fmt.Errorf("packet socket on %s: %w", name, err)
	}
	udp := pc.(*net.UDPConn)
	in, err := udp.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, pc.Close(), raw.Close())
	}
	out, err := raw.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, pc.Close(), raw.Close())
	}
	return &socketLink{
		udp: udp, ip: ipv4.NewPacketConn(udp), raw: raw, mac: ifi.HardwareAddr, source: source,
		in: newBatch(in, batchSize, maxPacket), packets: make([][]byte, 0, batchSize), out: newBatch(out, batchSize, maxPacket),
	}, nil
}

func (l *socketLink) Read() ([][]byte, error) {
	n, err := l.in.receive()
	l.packets = l.packets[:0]
	for i := range n {
		l.packets = append(l.packets, l.in.datagram(i))
	}
	return l.packets, err
}

func (l *socketLink) Close() error { return errors.Join(l.udp.Close(), l.raw.Close()) }

// Send sends to clients that have an address. Frames wait for Flush.
func (l *socketLink) Send(payload []byte, to Destination) error {
	switch to.Way {
	case ToRelay, ToAddress:
		cm := ipv4.ControlMessage{Src: l.source.AsSlice()} // the address in option 54, where the interface has several
		_, err := l.ip.WriteTo(payload, &cm, net.UDPAddrFromAddrPort(to.Addr))
		return err
	default:
		l.out.data[l.waiting] = frame(l.out.data[l.waiting][:0], l.mac, l.source, to, payload)
		if l.waiting++; l.waiting == batchSize {
			return l.Flush()
		}
		return nil
	}
}

func (l *socketLink) Flush() error {
	n := l.waiting
	l.waiting = 0
	return l.out.sendAll(n)
}

// frame appends an Ethernet frame with a datagram from the server's port, all
// checksums included: clients without an address read raw frames and check them.
func frame(b []byte, mac net.HardwareAddr, source netip.Addr, to Destination, payload []byte) []byte {
	const etherLen, ipLen, udpLen = 14, 20, 8
	f := slices.Grow(b, etherLen+ipLen+udpLen+len(payload))[len(b) : len(b)+etherLen+ipLen+udpLen+len(payload)]
	clear(f)
	src, dst := source.As4(), to.Addr.Addr().As4()
	copy(f, to.MAC[:])
	copy(f[6:], mac)
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)

	ip := f[etherLen : etherLen+ipLen]
	ip[0], ip[1] = 0x45, 0x10 // no options; low delay
	binary.BigEndian.PutUint16(ip[2:], uint16(len(f)-etherLen))
	ip[8], ip[9] = 64, unix.IPPROTO_UDP
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], ^checksum(0, ip))

	udp := f[etherLen+ipLen:]
	binary.BigEndian.PutUint16(udp, serverPort)
	binary.BigEndian.PutUint16(udp[2:], to.Addr.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[udpLen:], payload)
	pseudo := uint32(unix.IPPROTO_UDP) + uint32(len(udp))
	sum := ^checksum(uint32(checksum(pseudo, ip[12:])), udp)
	if sum == 0 { // zero would mean none (RFC 768)
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	return f
}

// checksum is the Internet's one's complement sum (RFC 1071), not yet inverted.
func checksum(sum uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
