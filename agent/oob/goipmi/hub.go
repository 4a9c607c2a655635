package goipmi

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Hub is one UDP socket for the sessions of many controllers, with one goroutine
// that reads it. It is open while anybody uses it. The zero Hub is ready.
type Hub struct {
	mu     sync.Mutex
	conn   *net.UDPConn               // nil: nobody uses it
	ports  map[uint32]*port           // by our ID of the session
	opened map[netip.AddrPort]*port   // the last one to each controller
	probes map[netip.AddrPort]*Prober // what comes without a session
}

// backlog is how many packets may wait for a session's reader. One that does not
// come for them loses the rest, as UDP does.
const backlog = 8

// readBuffer has room for the answers of a thousand controllers at once, where
// the kernel allows it.
const readBuffer = 1 << 20

// After an error of the socket that is not its end: the first pause, and the longest.
const (
	readPause     = time.Millisecond
	readPauseMost = time.Second
)

// port is one session's end of a hub.
type port struct {
	hub  *Hub
	id   uint32 // of the session, here
	addr netip.AddrPort
	in   chan []byte

	mu      sync.Mutex
	deliver func([]byte) // instead of in, while it is set
}

// dial opens a port to a controller, with an ID that no other one here has:
// late packets of a former session are nobody's.
func (h *Hub) dial(addr netip.AddrPort) (*port, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.open(); err != nil {
		return nil, err
	}
	p := &port{hub: h, addr: addr, in: make(chan []byte, backlog)}
	for p.id == 0 || h.ports[p.id] != nil {
		p.id = rand.Uint32()
	}
	h.ports[p.id], h.opened[addr] = p, p
	return p, nil
}

// open opens the socket, if need be; the lock is held.
func (h *Hub) open() error {
	if h.conn != nil {
		return nil
	}
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	_ = conn.SetReadBuffer(readBuffer) // the default is smaller, and works
	h.conn = conn
	if h.ports == nil {
		h.ports, h.opened, h.probes = make(map[uint32]*port), make(map[netip.AddrPort]*port), make(map[netip.AddrPort]*Prober)
	}
	go h.read(conn) // until it is closed
	return nil
}

// release closes the socket when nobody uses it; the lock is held.
func (h *Hub) release() {
	if h.conn != nil && len(h.ports)+len(h.probes) == 0 {
		_ = h.conn.Close() // nothing was buffered
		h.conn = nil
	}
}

func (h *Hub) read(conn *net.UDPConn) {
	h.receive(conn.ReadFromUDPAddrPort, func() bool { return h.closed(conn) })
}

// receive reads until the socket is closed. An error that lasts (the kernel has no
// memory, a deadline) is met at growing intervals, not as fast as the processor can.
func (h *Hub) receive(read func([]byte) (int, netip.AddrPort, error), closed func() bool) {
	buf := make([]byte, 4096)
	pause := readPause
	for {
		n, from, err := read(buf)
		if n > 0 {
			h.took(append([]byte(nil), buf[:n]...), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		}
		if err == nil {
			pause = readPause
			continue
		}
		if closed() {
			return
		}
		time.Sleep(pause)
		pause = min(2*pause, readPauseMost)
	}
}

// closed says whether an error of the socket was its end.
func (h *Hub) closed(conn *net.UDPConn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.conn != conn
}

// took hands a packet to the port or probe that it is for.
func (h *Hub) took(p []byte, from netip.AddrPort) {
	if len(p) <= payloadAt {
		return
	}
	if p[authTypeAt] != rmcpPlus {
		h.mu.Lock()
		probe := h.probes[from]
		h.mu.Unlock()
		if probe != nil {
			probe.deliver(p)
		}
		return
	}
	id := binary.LittleEndian.Uint32(p[sessionAt:])
	anybodys := false
	if id == 0 {
		if id, anybodys = handshakes(p); id == 0 && !anybodys {
			return
		}
	}
	h.mu.Lock()
	o := h.ports[id]
	if anybodys {
		o = h.opened[from]
	}
	h.mu.Unlock()
	if o == nil || o.addr != from {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.deliver != nil {
		o.deliver(p)
		return
	}
	select {
	case o.in <- p:
	default:
	}
}

// handshakes is the session that an answer outside of one is for: our ID of it, in an answer
// of the handshake (tables 13-10, 13-12, 13-14). A refusal may tell none, and
// be cut (ipmi_sim's of an Open Session is so): then it is anybody's to whom its
// sender owes an answer. Everything else is nobody's.
func handshakes(p []byte) (id uint32, anybodys bool) {
	switch p[payloadTypeAt] {
	case openSession + 1, rakp1 + 1, rakp3 + 1:
	default:
		return 0, false
	}
	if len(p) >= payloadAt+8 {
		id = binary.LittleEndian.Uint32(p[payloadAt+4:])
	}
	return id, id == 0 && len(p) > payloadAt+1 && p[payloadAt+1] != 0
}

func (h *Hub) send(b []byte, to netip.AddrPort) error {
	h.mu.Lock()
	conn := h.conn
	h.mu.Unlock()
	if conn == nil {
		return net.ErrClosed
	}
	_, err := conn.WriteToUDPAddrPort(b, to)
	return err
}

func (o *port) send(b []byte) error { return o.hub.send(b, o.addr) }

// give has what comes given to f, which must not block; nil: to in again.
func (o *port) give(f func([]byte)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deliver = f
}

func (o *port) close() {
	o.hub.mu.Lock()
	defer o.hub.mu.Unlock()
	delete(o.hub.ports, o.id)
	if o.hub.opened[o.addr] == o {
		delete(o.hub.opened, o.addr)
	}
	o.hub.release()
}
