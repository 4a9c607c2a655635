package virtualbmc

import (
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/transport/udp"
	"github.com/bougou/go-ipmi/pkg/types"
)

// Kinds of a controller's faults.
const (
	Hang     = "hang"     // answers nothing
	Lie      = "lie"      // says that the power is on, and OK to power commands it ignores
	Refuse   = "refuse"   // answers chassis commands with "node busy"
	Drop     = "drop"     // loses a fraction of packets, in both ways
	Slow     = "slow"     // answers late
	Sessions = "sessions" // has no session left for a new one
)

// Fault is a controller's misbehaviour. The same seed and packets have the same
// fate.
type Fault struct {
	Kind     string
	Fraction float64       // of Drop, 0 to 1
	Latency  time.Duration // of Slow
	Seed     uint64
}

// Injected is a fault at work. Remove it.
type Injected struct {
	Fault
	faults *faults
	hits   atomic.Uint64
	rng    *rand.Rand // under faults.mu
}

// Hits is how many packets or commands the fault has spoilt.
func (i *Injected) Hits() uint64 { return i.hits.Load() }

// Remove ends the fault.
func (i *Injected) Remove() {
	i.faults.mu.Lock()
	defer i.faults.mu.Unlock()
	i.faults.active = slices.DeleteFunc(i.faults.active, func(j *Injected) bool { return i == j })
}

// Inject makes the controller misbehave until the fault is removed.
func (b *BMC) Inject(f Fault) *Injected {
	i := &Injected{Fault: f, faults: &b.faults, rng: rand.New(rand.NewPCG(f.Seed, 0))}
	b.faults.mu.Lock()
	defer b.faults.mu.Unlock()
	b.faults.active = append(b.faults.active, i)
	return i
}

type faults struct {
	mu     sync.Mutex
	active []*Injected // oldest first
}

// of returns the oldest fault of that kind, or nil, and counts it.
func (f *faults) of(kind string) *Injected {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range f.active {
		if i.Kind == kind {
			i.hits.Add(1)
			return i
		}
	}
	return nil
}

// lost says whether one of the faults loses the next packet.
func (f *faults) lost() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	lost := false
	for _, i := range f.active {
		// Each draws for each packet, so that one's choice is not another's.
		if i.Kind == Drop && i.rng.Float64() < i.Fraction {
			i.hits.Add(1)
			lost = true
		}
	}
	return lost
}

// faultyConn loses and delays a controller's packets.
type faultyConn struct {
	*udp.Conn
	faults *faults
}

// openSession is the payload type of RMCP+'s Open Session Request (IPMI 2.0,
// table 13-16), at byte 5 of a packet of authentication type 6.
const openSession = 0x10

func (c *faultyConn) ReadFrom(buf []byte) (int, net.Addr, error) {
	for {
		n, addr, err := c.Conn.ReadFrom(buf)
		if err != nil {
			return n, addr, err
		}
		if c.faults.of(Hang) != nil || c.faults.lost() {
			continue
		}
		if n > 5 && buf[4] == 6 && buf[5]&0x3f == openSession {
			if c.faults.of(Sessions) != nil {
				if n >= 24 {
					_, _ = c.Conn.WriteTo(noSession(buf[:n]), addr) // lost, as any packet may be
				}
				continue
			}
		}
		return n, addr, nil
	}
}

// noSession answers an Open Session Request with "insufficient resources to
// create a session" (status 1; IPMI 2.0, tables 13-10 and 13-15).
func noSession(req []byte) []byte {
	return append([]byte{6, 0, 0xff, 7, 6, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, req[16], 1, 0, 0}, req[20:24]...)
}

func (c *faultyConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	if c.faults.of(Hang) != nil || c.faults.lost() {
		return len(b), nil
	}
	if s := c.faults.of(Slow); s != nil {
		late := append([]byte(nil), b...)
		time.AfterFunc(s.Latency, func() { _, _ = c.Conn.WriteTo(late, addr) }) // a closed socket loses it
		return len(b), nil
	}
	return c.Conn.WriteTo(b, addr)
}

// Commands of the chassis that faults are about.
const (
	getChassisStatus = 0x01
	chassisControl   = 0x02
)

// misbehave answers a command in the handler's place; false: it does not.
func (f *faults) misbehave(h *handlers.HandlerContext) (resp []byte, cc types.CompletionCode, is bool) {
	if h.Command.NetFn != types.NetFnChassisRequest {
		return nil, 0, false
	}
	if f.of(Refuse) != nil {
		return nil, types.CompletionCode(0xc0), true // node busy
	}
	switch h.Command.ID {
	case getChassisStatus:
		if f.of(Lie) != nil {
			return []byte{0x01, 0, 0}, types.CodeOK, true // power is on
		}
	case chassisControl:
		if f.of(Lie) != nil {
			return nil, types.CodeOK, true
		}
	}
	return nil, 0, false
}
