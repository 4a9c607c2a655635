// Package vswitch is a rack's network in user space: an Ethernet switch whose
// ports are whatever moves whole frames. It needs no kernel bridge, so a fault
// that a test wants is a change in this code and not a kernel module.
package vswitch

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// MaxFrame bounds one Ethernet frame without its FCS: a 9,000-byte MTU, the
	// header and two VLAN tags.
	MaxFrame = 9000 + 14 + 8
	minFrame = 14

	// queueLen is how many frames wait for a slow port before the switch drops.
	queueLen = 512
	// maxAddresses and maxAge bound what the switch remembers. 300 s is the
	// ageing time of IEEE 802.1Q.
	maxAddresses = 8192
	maxAge       = 300 * time.Second
)

// ErrClosed is returned by Attach after Close.
var ErrClosed = errors.New("switch is closed")

// Link is one cable: each Read yields one frame, each Write sends one. Close
// must end a Read or Write that blocks. The switch calls Read from one goroutine
// and Write from another.
type Link io.ReadWriteCloser

// MAC is an Ethernet address as a map key.
type MAC [6]byte

func (m MAC) group() bool { return m[0]&1 != 0 }

// Switch forwards frames between its ports. Its zero value is not ready: New.
type Switch struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.RWMutex
	ports  []*Port // in the order in which they were plugged in
	table  map[MAC]entry
	closed bool
	rules  atomic.Pointer[[]*Applied] // replaced as a whole, under mu
	name   string                     // that it announces; "": it has no LLDP
	mac    MAC
	quiet  func() // ends the announcements; nil: there are none

	wg sync.WaitGroup
}

type entry struct {
	port *Port
	seen time.Time
}

// New makes a switch without ports. Close it.
func New(log *slog.Logger) *Switch {
	return &Switch{log: log, now: time.Now, table: map[MAC]entry{}}
}

// Attach plugs link into a new port. The switch owns link from now on, also when
// Attach fails. The port goes away when link's Read fails, or by Port.Close.
func (s *Switch) Attach(name string, link Link) (*Port, error) {
	p := &Port{name: name, sw: s, link: link, since: s.now(), out: make(chan *frame, queueLen), done: make(chan struct{})}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errors.Join(ErrClosed, link.Close())
	}
	s.ports = append(s.ports, p)
	s.wg.Add(2)
	s.mu.Unlock()
	go p.read()
	go p.write()
	return p, nil
}

// Close unplugs every port and waits for their goroutines.
func (s *Switch) Close() error {
	s.mu.Lock()
	if s.quiet != nil && !s.closed {
		s.quiet()
	}
	s.closed = true
	ports := slices.Clone(s.ports)
	s.mu.Unlock()
	for _, p := range ports {
		p.stop(nil)
	}
	s.wg.Wait()
	return nil
}

// forward learns the sender and hands f to the port that knows its receiver, or
// to all others. It takes f over.
func (s *Switch) forward(from *Port, f *frame) {
	if s.heardLLDP(from, f) {
		return
	}
	var dst, src MAC
	copy(dst[:], f.data()[0:6])
	copy(src[:], f.data()[6:12])
	if !src.group() {
		s.learn(src, from)
	}

	s.mu.RLock()
	defer s.mu.RUnlock()
	if !dst.group() {
		if e, ok := s.table[dst]; ok && s.now().Sub(e.seen) < maxAge {
			if e.port == from {
				f.release()
				return
			}
			s.deliver(from, e.port, f)
			return
		}
	}
	for _, p := range s.ports {
		if p != from {
			s.deliver(from, p, f.clone())
		}
	}
	f.release()
}

func (s *Switch) learn(mac MAC, p *Port) {
	now := s.now()
	s.mu.RLock()
	e, ok := s.table[mac]
	s.mu.RUnlock()
	// A frame that follows another within a second changes nothing worth a lock.
	if ok && e.port == p && now.Sub(e.seen) < time.Second {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.gone {
		return
	}
	if !ok && len(s.table) >= maxAddresses && !s.evict(now) {
		return
	}
	s.table[mac] = entry{p, now}
}

// evict forgets what is too old and says whether there is room now.
func (s *Switch) evict(now time.Time) bool {
	for mac, e := range s.table {
		if now.Sub(e.seen) >= maxAge {
			delete(s.table, mac)
		}
	}
	return len(s.table) < maxAddresses
}

func (s *Switch) detach(p *Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.gone = true
	s.ports = slices.DeleteFunc(s.ports, func(q *Port) bool { return q == p })
	for mac, e := range s.table {
		if e.port == p {
			delete(s.table, mac)
		}
	}
}

// Port is one plugged-in link.
type Port struct {
	name  string
	sw    *Switch
	link  Link
	since time.Time // plugged in
	gone  bool      // unplugged; under sw.mu
	out   chan *frame
	held  heldFrames
	done  chan struct{}
	once  sync.Once

	rx, tx, dropped atomic.Uint64
}

// Stats counts frames: received from the link, sent to it, dropped because its
// queue was full or the link refused them.
type Stats struct{ RX, TX, Dropped uint64 }

// Stats may be called at any time.
func (p *Port) Stats() Stats {
	return Stats{RX: p.rx.Load(), TX: p.tx.Load(), Dropped: p.dropped.Load()}
}

// Done is closed when the port has left the switch.
func (p *Port) Done() <-chan struct{} { return p.done }

// Close unplugs the port. Frames still queued for it are lost.
func (p *Port) Close() error {
	p.stop(nil)
	return nil
}

func (p *Port) stop(cause error) {
	p.once.Do(func() {
		p.sw.detach(p)
		close(p.done)
		p.held.drop()
		if err := p.link.Close(); err != nil && cause == nil {
			cause = fmt.Errorf("close link: %w", err)
		}
		if cause != nil && !errors.Is(cause, io.EOF) {
			p.sw.log.Debug("switch port lost its link", "port", p.name, "err", cause)
		}
	})
}

func (p *Port) enqueue(f *frame) {
	select {
	case p.out <- f:
	default:
		p.dropped.Add(1)
		f.release()
	}
}

func (p *Port) read() {
	defer p.sw.wg.Done()
	for {
		f := newFrame()
		n, err := p.link.Read(f.buf[:])
		if err != nil {
			f.release()
			p.stop(err)
			return
		}
		if n < minFrame {
			f.release()
			continue
		}
		f.n = n
		p.rx.Add(1)
		p.sw.forward(p, f)
	}
}

func (p *Port) write() {
	defer p.sw.wg.Done()
	for {
		select {
		case <-p.done:
			return
		case f := <-p.out:
			// A refused frame is a lost frame, as on a wire: the reader notices
			// when the link is really gone.
			if _, err := p.link.Write(f.data()); err != nil {
				p.dropped.Add(1)
			} else {
				p.tx.Add(1)
			}
			f.release()
		}
	}
}
