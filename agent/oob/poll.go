package oob

import (
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"bmc/agent/oob/goipmi"
	"bmc/metal"
)

const (
	pollTries   = 3 // of a session that stands, before it counts as lost
	probeWaits  = 2 // first waits for the answer to a probe
	turnAgain   = 50 * time.Millisecond
	openLimit   = 30 * time.Second // of a goroutine for one controller
	backoffMin  = 10 * time.Second // after a session that could not be opened,
	backoffMax  = 2 * time.Minute  // and at most,
	backoffAuth = 10 * time.Minute // or where a controller might lock the user out
)

// failed is what came of the sweeps' last attempts to open a session.
type failed struct {
	times int
	err   error
	until time.Time // not tried again before,
	gone  bool      // but when it answers: it was not even there since
}

// rests says whether no session is to be tried now.
func (f *failed) rests() bool { return time.Now().Before(f.until) }

// answers notes that a controller is there at all, and says whether it still rests:
// one that was away has probably restarted. That makes no password right.
func (f *failed) answers() bool {
	if f.gone && metal.CodeOf(f.err) != metal.CodeOOBAuth {
		f.until = time.Time{}
	}
	f.gone = false
	return f.rests()
}

// again notes another failure, and when to try next. Operations try at once all the
// same: this is for who asks every few seconds.
func (f *failed) again(err error, now time.Time) {
	most := backoffMax
	if code := metal.CodeOf(err); code == metal.CodeOOBAuth {
		most = backoffAuth
	}
	wait := min(backoffMin<<min(f.times, 10), most)
	f.times, f.err, f.until, f.gone = f.times+1, err, now.Add(wait*3/4+rand.N(wait/2)), false
}

// Stages of a controller in a sweep.
type stage int

const (
	waiting stage = iota // for its turn
	polling              // its session was asked
	probing              // it was asked whether it is there
	queued               // for a slot, to open a session
	opening              // in a slot: a goroutine has the turn
	done
)

type poll struct {
	index   int
	cfg     Config
	c       *controller
	stage   stage
	asked   *goipmi.Poll
	probe   *goipmi.Prober
	tries   int
	wait    time.Duration
	timer   int // counts up: former timers are void
	counted bool
	lastErr error
}

// begin asks a controller for the first time.
func (s *sweep) begin(p *poll) {
	p.c = s.pool.get(p.cfg)
	p.wait = p.c.timing.Wait
	p.counted = true
	s.burst++
	heap.Push(&s.timers, due{at: time.Now().Add(sweepSlow), poll: p})
	s.turn(p)
}

// turn takes the controller's turn, or waits for it.
func (s *sweep) turn(p *poll) {
	select {
	case p.c.turn <- struct{}{}:
	default:
		p.stage = waiting
		s.after(p, turnAgain)
		return
	}
	c := p.c
	if c.cfg.Lease != nil {
		if _, held := c.cfg.Lease.Held(); !held {
			s.release(p, Reading{Err: c.fail("tell the power state", ErrLease)})
			return
		}
	}
	if c.conn() != nil && c.allowed() == nil && time.Since(c.used) < idleLimit {
		s.poll(p)
		return
	}
	s.find(p)
}

// conn is the session that stands, when it is of our own driver.
func (c *controller) conn() *goipmi.Conn {
	if c.client == nil {
		return nil
	}
	conn, _ := c.client.Registry.Drivers[0].DriverInterface.(*goipmi.Conn)
	return conn
}

// deliver hands packets of a poll to the sweep's goroutine.
func (s *sweep) deliver(p *poll) func([]byte) {
	return func(packet []byte) {
		select {
		case s.events <- event{index: p.index, packet: packet}:
		default: // lost, as any packet may be
		}
	}
}

func (s *sweep) poll(p *poll) {
	asked, err := p.c.conn().Poll(s.deliver(p))
	if err != nil {
		s.release(p, Reading{Err: p.c.fail("tell the power state", err)})
		return
	}
	p.asked, p.stage, p.tries, p.lastErr = asked, polling, 0, context.DeadlineExceeded
	s.ask(p)
}

// ask sends the request of a session that stands, or gives the session up.
func (s *sweep) ask(p *poll) {
	if err := p.c.allowed(); err != nil {
		s.release(p, Reading{Err: p.c.fail("tell the power state", err)})
		return
	}
	if p.tries == pollTries {
		p.asked.Done()
		p.asked = nil
		if errors.Is(p.lastErr, goipmi.ErrBusy) { // it is there, and knows the session
			s.release(p, Reading{Err: p.c.fail("tell the power state", p.lastErr)})
			return
		}
		s.find(p)
		return
	}
	p.tries++
	if err := p.asked.Send(); err != nil {
		p.lastErr = err
	}
	s.after(p, p.wait+rand.N(p.wait/4+1))
	p.wait = p.wait * 3 / 2
}

// find asks whether the controller is there before a goroutine waits for it, and
// while none does.
func (s *sweep) find(p *poll) {
	host, port, err := split(p.cfg.Address, p.c.cfg.Protocol)
	addr, literal := goipmi.Literal(host, port)
	if p.c.cfg.Protocol != ProtocolIPMI || err != nil || !literal {
		s.queueOrRest(p, p.c.failed.rests())
		return
	}
	if p.probe, err = s.pool.hub.Probe(addr, s.deliver(p)); err != nil {
		s.release(p, Reading{Err: p.c.fail("tell the power state", err)})
		return
	}
	p.stage, p.tries, p.wait = probing, 0, p.c.timing.Wait
	s.probe(p)
}

func (s *sweep) probe(p *poll) {
	if p.tries == probeWaits {
		p.c.failed.gone = true
		s.release(p, Reading{Err: p.c.fail("tell the power state", context.DeadlineExceeded)})
		return
	}
	p.tries++
	if err := p.probe.Send(); err != nil {
		s.release(p, Reading{Err: p.c.fail("tell the power state", err)})
		return
	}
	s.after(p, p.wait+rand.N(p.wait/4+1))
}

// queueOrRest waits for a slot, unless the last attempt was too short ago.
func (s *sweep) queueOrRest(p *poll, rests bool) {
	if rests {
		s.release(p, Reading{Err: p.c.failed.err, Remembered: true})
		return
	}
	p.stage = queued
	p.timer++
	s.slots = append(s.slots, p)
}

// packet takes what came from a controller.
func (s *sweep) packet(p *poll, packet []byte) {
	switch p.stage {
	case probing:
		if p.probe.Answers(packet) {
			p.probe.Done()
			p.probe = nil
			s.queueOrRest(p, p.c.failed.answers())
		}
	case polling:
		text, err := p.asked.Read(packet)
		switch {
		case err == nil && text == "":
		case errors.Is(err, goipmi.ErrBusy):
			p.lastErr = err // asked again when the wait is over
		case err != nil:
			s.release(p, Reading{Err: p.c.fail("tell the power state", err)})
		default:
			p.c.used = time.Now()
			power, err := parsePower(text)
			s.release(p, Reading{Power: power, Err: p.c.fail("tell the power state", err)})
		}
	}
}

// open has a goroutine open a session and read; the slot is taken.
func (s *sweep) open(p *poll) {
	p.stage = opening
	s.pool.openWG.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, openLimit)
		defer cancel()
		r := p.c.reopen(ctx)
		p.c.unlock()
		<-s.pool.slots
		s.ended <- event{index: p.index, Reading: r} // has room for all
	})
}

// reopen reads on a new session, with the turn held. A session of another driver than our
// IPMI's, which the sweep cannot ask by itself, is new only when it does not serve any more.
func (c *controller) reopen(ctx context.Context) Reading {
	err := c.begin(ctx)
	var power metal.Power
	if err == nil {
		kept := c.client != nil && c.conn() == nil
		if !kept {
			c.drop(ctx)
		}
		power, err = c.readPower(ctx)
		if kept && err != nil && !final(err) && ctx.Err() == nil {
			c.drop(ctx)
			power, err = c.readPower(ctx)
		}
	}
	if err == nil {
		return Reading{Power: power}
	}
	c.drop(ctx)
	err = c.fail("tell the power state", err)
	if ctx.Err() == nil && !errors.Is(err, ErrLease) {
		c.failed.again(err, time.Now())
	}
	return Reading{Err: err}
}

// release gives the turn back, with a result.
func (s *sweep) release(p *poll, r Reading) {
	p.letGo()
	p.c.unlock()
	s.finish(p, r)
}

func (p *poll) letGo() {
	if p.asked != nil {
		p.asked.Done()
	}
	if p.probe != nil {
		p.probe.Done()
	}
	p.asked, p.probe = nil, nil
}
