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
	// sweepSlots is how many goroutines of all sweeps wait for controllers at a
	// time: those that open a session, and those of other protocols than our IPMI.
	sweepSlots = 32
	// sweepBurst is how many controllers are asked at once; the next one follows
	// when one has answered, or has let sweepSlow go by. The answers of thousands at
	// once would overflow the socket's buffer.
	sweepBurst = 64
	sweepSlow  = 20 * time.Millisecond

	pollTries   = 3 // of a session that stands, before it counts as lost
	probeWaits  = 2 // first waits for the answer to a probe
	turnAgain   = 50 * time.Millisecond
	openLimit   = 30 * time.Second // of a goroutine for one controller
	flushAfter  = 100 * time.Millisecond
	backoffMin  = 10 * time.Second // after a session that could not be opened,
	backoffMax  = 2 * time.Minute  // and at most,
	backoffAuth = 10 * time.Minute // or where a controller might lock the user out
)

// ErrUnfinished says that a sweep ended before a controller was asked or had its
// time to answer, or found it in use: it says nothing about the controller.
var ErrUnfinished = errors.New("not read in this sweep")

// Reading is one controller's answer in a sweep.
type Reading struct {
	Power metal.Power
	Err   error // *metal.Error, or ErrUnfinished
	// Remembered: Err is of an earlier sweep, after which no session is tried for a
	// while. It is no other failure.
	Remembered bool
}

// Result is the reading of the configuration of that index.
type Result struct {
	Index int
	Reading
}

// Sweep reads the power of many controllers at once within about that time. Sessions that
// stand are asked by one goroutine for all of them; a controller that hangs or is
// slow delays no other one. Results come in batches as they are had, each one once; the
// channel is closed at the end, and nobody needs to read it. A session that is being
// opened at the end goes on, as long as ctx lasts, and is found by the next sweep.
func (p *Pool) Sweep(ctx context.Context, limit time.Duration, cfgs []Config) <-chan []Result {
	s := &sweep{
		pool: p, ctx: ctx, out: make(chan []Result, len(cfgs)), left: len(cfgs),
		events: make(chan event, 2*len(cfgs)), ended: make(chan event, len(cfgs)), polls: make([]*poll, len(cfgs)),
	}
	for i, cfg := range cfgs {
		s.polls[i] = &poll{index: i, cfg: cfg}
	}
	p.openWG.Go(func() { s.run(limit) })
	return s.out
}

// Status reads the power of many controllers, and returns when all have answered
// or had their time, or ctx has ended. The answers are in cfgs' order.
func (p *Pool) Status(ctx context.Context, cfgs []Config) []Reading {
	limit := openLimit
	if deadline, ok := ctx.Deadline(); ok {
		limit = time.Until(deadline)
	}
	out := make([]Reading, len(cfgs))
	for batch := range p.Sweep(ctx, limit, cfgs) {
		for _, r := range batch {
			out[r.Index] = r.Reading
		}
	}
	return out
}

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

// event is a packet, or what a slot's goroutine read.
type event struct {
	index  int
	packet []byte
	Reading
}

// due is a timer of a poll.
type due struct {
	at    time.Time
	poll  *poll
	timer int // 0: frees its place in the burst
}

type timers []due

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)        { *t = append(*t, x.(due)) }
func (t *timers) Pop() any {
	last := len(*t) - 1
	x := (*t)[last]
	*t = (*t)[:last]
	return x
}

// sweep is one sweep, all of it run by one goroutine.
type sweep struct {
	pool   *Pool
	ctx    context.Context
	polls  []*poll
	next   int     // the first that has not begun
	burst  int     // begun, and neither slow nor done
	slots  []*poll // that want one
	timers timers
	events chan event // packets: lost when it is full
	ended  chan event // of slots' goroutines
	batch  []Result
	flush  time.Time // of batch
	left   int       // without a result
	out    chan []Result
}

func (s *sweep) run(limit time.Duration) {
	defer close(s.out)
	end := time.NewTimer(limit)
	defer end.Stop()
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		for s.next < len(s.polls) && s.burst < sweepBurst {
			s.begin(s.polls[s.next])
			s.next++
		}
		if s.left == 0 {
			break
		}
		wake.Reset(s.pause())
		var slot chan struct{}
		if len(s.slots) > 0 {
			slot = s.pool.slots
		}
		select {
		case e := <-s.events:
			s.packet(s.polls[e.index], e.packet)
		case e := <-s.ended:
			s.finish(s.polls[e.index], e.Reading)
		case slot <- struct{}{}:
			s.open(s.slots[0])
			s.slots = s.slots[1:]
		case <-wake.C:
			s.arrived() // before it counts as late
			s.expired()
		case <-end.C:
			s.stop(ErrUnfinished)
		case <-s.ctx.Done():
			s.stop(s.ctx.Err())
		}
		if len(s.batch) > 0 && !time.Now().Before(s.flush) {
			s.tell()
		}
	}
	s.tell()
}

// pause is the time until something is due.
func (s *sweep) pause() time.Duration {
	d := time.Hour
	if len(s.timers) > 0 {
		d = time.Until(s.timers[0].at)
	}
	if len(s.batch) > 0 {
		d = min(d, time.Until(s.flush))
	}
	return max(0, d)
}

func (s *sweep) tell() {
	if len(s.batch) > 0 {
		s.out <- s.batch // has room for all
		s.batch = nil
	}
}

// after has a poll looked at then; its former timers are void.
func (s *sweep) after(p *poll, d time.Duration) {
	p.timer++
	heap.Push(&s.timers, due{at: time.Now().Add(d), poll: p, timer: p.timer})
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

// reopen reads on a new session, with the turn held.
func (c *controller) reopen(ctx context.Context) Reading {
	err := c.begin(ctx)
	var power metal.Power
	if err == nil {
		c.drop(ctx)
		power, err = c.readPower(ctx)
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

// arrived takes the packets that are here already.
func (s *sweep) arrived() {
	for {
		select {
		case e := <-s.events:
			s.packet(s.polls[e.index], e.packet)
		default:
			return
		}
	}
}

// expired does what is due.
func (s *sweep) expired() {
	now := time.Now()
	for len(s.timers) > 0 && !s.timers[0].at.After(now) {
		d := heap.Pop(&s.timers).(due)
		switch p := d.poll; {
		case d.timer == 0:
			s.uncount(p)
		case d.timer != p.timer:
		case p.stage == waiting:
			s.turn(p)
		case p.stage == polling:
			s.ask(p)
		case p.stage == probing:
			s.probe(p)
		}
	}
}

func (s *sweep) uncount(p *poll) {
	if p.counted {
		p.counted = false
		s.burst--
	}
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

func (s *sweep) finish(p *poll, r Reading) {
	if p.stage == done {
		return
	}
	if r.Power == "" {
		r.Power = metal.PowerUnknown
	}
	p.stage = done
	p.timer++
	s.uncount(p)
	if len(s.batch) == 0 {
		s.flush = time.Now().Add(flushAfter)
	}
	s.batch = append(s.batch, Result{Index: p.index, Reading: r})
	s.left--
}

// stop ends the sweep: what has no result gets err. Goroutines in slots go on.
func (s *sweep) stop(err error) {
	for _, p := range s.polls {
		switch p.stage {
		case polling, probing, queued:
			s.release(p, Reading{Err: err})
		case waiting, opening:
			s.finish(p, Reading{Err: err})
		case done:
		}
	}
	s.next, s.slots = len(s.polls), nil
}
