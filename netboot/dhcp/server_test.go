package dhcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// pipe is a link whose both ends are channels.
type pipe struct {
	in     chan []byte
	out    chan Destination
	closed chan struct{}
	once   sync.Once
}

func newPipe() *pipe {
	return &pipe{in: make(chan []byte), out: make(chan Destination, 10), closed: make(chan struct{})}
}

func (p *pipe) Read() ([][]byte, error) {
	select {
	case b := <-p.in:
		return [][]byte{b}, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipe) Send(payload []byte, to Destination) error {
	if _, err := dhcpv4.FromBytes(payload); err != nil {
		return err
	}
	p.out <- to
	return nil
}

func (p *pipe) Flush() error { return nil }

func (p *pipe) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

func TestServer(t *testing.T) {
	l := newPipe()
	seen := make(chan Seen, 10)
	s := newServer(Config{
		Identity: testID,
		Lookup: func(mac string, _ Origin) (Lease, bool) {
			return testLease, mac == testMAC.String()
		},
		Seen: func(s Seen) { seen <- s },
	}, l)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()

	stranger := request{kind: discover}.packet(t)
	stranger.ClientHWAddr = net.HardwareAddr{2, 2, 2, 2, 2, 2}
	bootp := request{}.packet(t)
	for _, raw := range [][]byte{nil, []byte("garbage"), bootp.ToBytes(), stranger.ToBytes(), request{kind: discover}.packet(t).ToBytes()} {
		l.in <- raw
	}
	// The loop answers in order: what is seen and sent first belongs to the stranger.
	if got := receive(t, seen); got.MAC != "02:02:02:02:02:02" || got.Known {
		t.Errorf("seen %+v", got)
	}
	if got := receive(t, seen); got.MAC != testMAC.String() || !got.Known || got.Outcome != Offered || got.Addr != testLease.Addr.Addr() {
		t.Errorf("seen %+v", got)
	}
	if to := receive(t, l.out); to != l2 {
		t.Errorf("sent to %+v, want %+v", to, l2)
	}
	cancel()
	if err := receive(t, done); err != nil {
		t.Error(err)
	}
	if len(l.out) != 0 || len(seen) != 0 {
		t.Errorf("%d more answers, %d more packets seen", len(l.out), len(seen))
	}
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestFrame(t *testing.T) {
	server := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	for _, payload := range [][]byte{nil, []byte("odd"), bytes.Repeat([]byte{0xff}, 300)} {
		f := frame(bytes.Repeat([]byte{9}, 400)[:0], server, netip.MustParseAddr("10.77.0.1"), l2, payload)
		if !bytes.Equal(f[:6], testMAC) || !bytes.Equal(f[6:12], server) || binary.BigEndian.Uint16(f[12:]) != 0x0800 {
			t.Errorf("Ethernet header %x", f[:14])
		}
		ip, udp := f[14:34], f[34:]
		if int(binary.BigEndian.Uint16(ip[2:])) != len(f)-14 || checksum(0, ip) != 0xffff {
			t.Errorf("IP header %x", ip)
		}
		pseudo := append([]byte{0, 17}, udp[4:6]...)
		pseudo = append(pseudo, ip[12:20]...)
		if sum := checksum(uint32(checksum(0, pseudo)), udp); sum != 0xffff {
			t.Errorf("UDP checksum: sum is %x", sum)
		}
		if binary.BigEndian.Uint16(udp) != 67 || binary.BigEndian.Uint16(udp[2:]) != 68 || !bytes.Equal(udp[8:], payload) {
			t.Errorf("UDP %x", udp)
		}
	}
}

func BenchmarkHandle(b *testing.B) {
	l := &discard{}
	s := newServer(Config{Identity: testID, Lookup: func(string, Origin) (Lease, bool) { return testLease, true }}, l)
	raw := captured(b, "edk2-pxe-discover")
	b.ReportAllocs()
	for b.Loop() {
		s.handle(raw)
	}
}

type discard struct{}

func (*discard) Read() ([][]byte, error)        { return nil, net.ErrClosed }
func (*discard) Flush() error                   { return nil }
func (*discard) Send([]byte, Destination) error { return nil }
func (*discard) Close() error                   { return nil }
