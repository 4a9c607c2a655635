package hardware

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "bmc/api/agent/v1"
)

const (
	// lldpFor is how long a port is listened to: switches announce themselves every
	// 30 s, and sooner when they hear somebody new.
	lldpFor       = 31 * time.Second
	lldpAnnounces = 3 // of our own, a second apart
	lldpLook      = 250 * time.Millisecond
	systemName    = "bmc-ramdisk"
)

// Listener hears the switches at the other ends of the cables. Listen, then Heard.
type Listener struct {
	began  time.Time
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	heard map[string]*agentv1.Neighbour // by MAC
	ports int                           // that are listened to
}

// Listen begins to listen on ports that are up, for at most lldpFor. What cannot
// be listened to is left out.
func Listen(ctx context.Context, nics []*agentv1.NIC) *Listener {
	ctx, cancel := context.WithTimeout(ctx, lldpFor)
	l := &Listener{began: time.Now(), cancel: cancel, heard: make(map[string]*agentv1.Neighbour)}
	for _, n := range nics {
		port, err := net.InterfaceByName(n.GetName())
		if err != nil || !n.GetLink() {
			continue
		}
		fd, err := openLLDP(port)
		if err != nil {
			continue
		}
		l.ports++
		l.wg.Go(func() {
			defer unix.Close(fd) //nolint:errcheck // nothing was written that could be lost
			if p := hear(ctx, fd, port); p != nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.heard[n.GetMac()] = p
			}
		})
	}
	return l
}

// Heard waits until every port has heard a neighbour or the time is over, and
// ends the listening.
func (l *Listener) Heard(ctx context.Context) map[string]*agentv1.Neighbour {
	stop := context.AfterFunc(ctx, l.cancel)
	defer stop()
	l.wg.Wait()
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard
}

func openLLDP(port *net.Interface) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(swap16(etherLLDP)))
	if err != nil {
		return -1, err
	}
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap16(etherLLDP), Ifindex: port.Index})
	if err == nil {
		err = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(port.Index), Type: unix.PACKET_MR_MULTICAST, Alen: 6, Address: [8]byte{0x01, 0x80, 0xc2, 0, 0, 0x0e}})
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// swap16 is a number in network byte order, where the kernel wants that.
func swap16(n uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return binary.NativeEndian.Uint16(b[:])
}

func hear(ctx context.Context, fd int, port *net.Interface) *agentv1.Neighbour {
	frame := make([]byte, 2048)
	announced, next := 0, time.Now()
	for ctx.Err() == nil {
		if announced < lldpAnnounces && !time.Now().Before(next) {
			// What is not sent is waited for all the same.
			_, _ = unix.Write(fd, announcement(port.HardwareAddr, systemName))
			announced, next = announced+1, time.Now().Add(time.Second)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, int(lldpLook.Milliseconds())); err != nil && err != unix.EINTR {
			return nil
		} else if n <= 0 {
			continue
		}
		n, from, err := unix.Recvfrom(fd, frame, 0)
		if err != nil || n < 14 {
			continue
		}
		if own, ok := from.(*unix.SockaddrLinklayer); ok && own.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if p, ok := parseLLDP(frame[14:n]); ok && p.GetSystem() != systemName {
			return p
		}
	}
	return nil
}
