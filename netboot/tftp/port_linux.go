package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	batch       = 64                     // packets a system call takes, at most
	socketSpace = 4 << 20                // bytes: a rack's requests at once, while we do something else
	tick        = 100 * time.Millisecond // how exact timeouts are
)

// port is a socket that data is sent from. A transfer is known by it and by the
// client's address and port (the TIDs of RFC 1350), so one serves many clients, and
// under load one system call receives and one sends for many.
type port struct {
	server *Server
	conn   *net.UDPConn
	batch  *ipv4.PacketConn

	whole atomic.Bool // the kernel does not take UDP_SEGMENT

	// mu is not held while packets are sent: a new client must not wait for the windows
	// of sixty others.
	mu        sync.Mutex
	transfers map[netip.AddrPort]*transfer
}

func listenUDP(addr netip.AddrPort) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(space(conn, unix.SO_RCVBUFFORCE, conn.SetReadBuffer), space(conn, unix.SO_SNDBUFFORCE, conn.SetWriteBuffer)); err != nil {
		return nil, errors.Join(fmt.Errorf("socket's buffers: %w", err), conn.Close())
	}
	return conn, nil
}

// space asks for a buffer beyond the system's limit, and for less without the right to.
func space(conn *net.UDPConn, option int, modest func(int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	if err := raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, socketSpace)
	}); err != nil {
		return err
	}
	if refused != nil {
		return modest(socketSpace)
	}
	return nil
}

func newPort(s *Server, addr netip.Addr) (*port, error) {
	conn, err := listenUDP(netip.AddrPortFrom(addr, 0))
	if err != nil {
		return nil, err
	}
	return &port{server: s, conn: conn, batch: ipv4.NewPacketConn(conn), transfers: map[netip.AddrPort]*transfer{}}, nil
}

// buffers are messages to receive into.
func buffers(size int) []ipv4.Message {
	m := make([]ipv4.Message, batch)
	for i := range m {
		m[i].Buffers = [][]byte{make([]byte, size)}
	}
	return m
}

func sender(m *ipv4.Message) (netip.AddrPort, bool) {
	a, ok := m.Addr.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), true
}

// begin takes a transfer and sends its first packet.
func (p *port) begin(t *transfer, now time.Time) {
	p.mu.Lock()
	if len(p.transfers) == 0 {
		_ = p.conn.SetReadDeadline(now.Add(tick)) // fails only on a closed socket
	}
	p.transfers[t.client] = t
	out := p.follow(nil, t, send, now)
	p.mu.Unlock()
	p.flush(out)
}

// repeat sends the first packet again, if t has not got further.
func (p *port) repeat(t *transfer, now time.Time) bool {
	p.mu.Lock()
	if p.transfers[t.client] != t || t.acked > 0 {
		p.mu.Unlock()
		return false
	}
	t.heads = bytes.Clone(t.heads) // serve may be sending these
	out := p.follow(nil, t, send, now)
	p.mu.Unlock()
	p.flush(out)
	return true
}

// drop ends a transfer whose client began another one.
func (p *port) drop(t *transfer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.transfers[t.client] == t {
		p.end(t, "the client began anew")
	}
}

// serve answers acknowledgements until the socket is closed.
func (p *port) serve() error {
	in := buffers(maxRequest)
	var out []ipv4.Message
	var next time.Time // when timeouts are looked at again
	for {
		n, err := p.batch.ReadBatch(in, 0)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("tftp: receive: %w", err)
		}
		now := time.Now()
		p.mu.Lock()
		for i := range max(n, 0) {
			if client, ok := sender(&in[i]); ok {
				out = p.receive(out, client, in[i].Buffers[0][:in[i].N], now)
			}
		}
		if !now.Before(next) {
			next = now.Add(tick)
			out = p.expire(out, now)
			p.deadline(next)
		}
		p.mu.Unlock()
		p.flush(out)
		clear(out)
		out = out[:0]
	}
}

func (p *port) deadline(next time.Time) {
	if len(p.transfers) == 0 {
		next = time.Time{}
	}
	_ = p.conn.SetReadDeadline(next) // fails only on a closed socket
}

func (p *port) receive(out []ipv4.Message, client netip.AddrPort, raw []byte, now time.Time) []ipv4.Message {
	if len(raw) < 4 {
		return out
	}
	op, number := binary.BigEndian.Uint16(raw), binary.BigEndian.Uint16(raw[2:])
	t := p.transfers[client]
	switch {
	case t == nil: // silence: an error could end the transfer that the client has begun since
	case op == opAck:
		return p.follow(out, t, t.ack(number), now)
	case op == opError: // firmware asks for the size and breaks off
		p.end(t, "the client broke off")
	}
	return out
}

// expire looks at the timeouts.
func (p *port) expire(out []ipv4.Message, now time.Time) []ipv4.Message {
	for _, t := range p.transfers {
		switch {
		case now.After(t.until):
			out = p.fail(out, t, errTooLong)
		case !now.Before(t.due):
			out = p.follow(out, t, t.expire(), now)
		}
	}
	return out
}

// follow appends what a step has to send.
func (p *port) follow(out []ipv4.Message, t *transfer, s step, now time.Time) []ipv4.Message {
	switch s {
	case send:
		if now.After(t.until) { // it acknowledges every block at the last moment
			return p.fail(out, t, errTooLong)
		}
		t.due = now.Add(t.timeout)
		return t.flight(out, !p.whole.Load())
	case done:
		p.end(t, "")
	case gone:
		p.end(t, "the client is silent")
	case wait:
	}
	return out
}

// fail tells the client that its transfer is over.
func (p *port) fail(out []ipv4.Message, t *transfer, why *refusal) []ipv4.Message {
	p.end(t, why.text)
	return append(out, ipv4.Message{Buffers: [][]byte{why.packet()}, Addr: t.to})
}

// end forgets a transfer; early is why it is incomplete, or "".
func (p *port) end(t *transfer, early string) {
	delete(p.transfers, t.client)
	p.server.ended(t, early)
}

// close breaks off what is under way.
func (p *port) close() error {
	p.mu.Lock()
	var out []ipv4.Message
	for _, t := range p.transfers {
		out = p.fail(out, t, errClosing)
	}
	p.mu.Unlock()
	p.flush(out)
	return p.conn.Close()
}

// flush sends packets. What cannot be sent is lost, as on the wire: timeouts send it
// again.
func (p *port) flush(out []ipv4.Message) {
	for len(out) > 0 {
		n, err := p.batch.WriteBatch(out[:min(len(out), batch)], 0)
		switch {
		case err == nil:
			out = out[max(n, 0):]
		case errors.Is(err, net.ErrClosed):
			return
		case len(out[0].OOB) > 0 && unsegmented(err):
			p.whole.Store(true)
			p.server.cfg.Log.Debug("tftp windows are sent block by block", "err", err)
			out = cut(out)
		default:
			p.server.cfg.Log.Debug("tftp packet could not be sent", "err", err)
			out = out[1:]
		}
	}
}

// unsegmented says whether an error is how kernels and network cards refuse
// UDP_SEGMENT: not known, no checksums in hardware, a block beyond the MTU.
func unsegmented(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EMSGSIZE) || errors.Is(err, syscall.EOPNOTSUPP)
}

// cut makes a message of each segment.
func cut(messages []ipv4.Message) []ipv4.Message {
	var out []ipv4.Message
	for _, m := range messages {
		if len(m.OOB) == 0 {
			out = append(out, m)
			continue
		}
		for i := 0; i < len(m.Buffers); i += 2 {
			out = append(out, ipv4.Message{Buffers: m.Buffers[i : i+2 : i+2], Addr: m.Addr})
		}
	}
	return out
}

// segmentSize is the control message that makes the kernel cut a datagram (udp(7)).
func segmentSize(n int) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(2)))
	binary.NativeEndian.PutUint32(b[8:], unix.SOL_UDP)
	binary.NativeEndian.PutUint32(b[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], uint16(n))
	return b
}
