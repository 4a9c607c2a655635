package oob

import (
	"container/heap"
	"context"
	"errors"
	"time"

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

	flushAfter = 100 * time.Millisecond
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
