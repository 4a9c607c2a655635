package vswitch

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// reorderHold is how long a reordered frame lets others overtake it.
const reorderHold = 10*time.Millisecond + 500*time.Microsecond

// Impairment is what bad cabling does to a frame. Probabilities are 0 to 1.
type Impairment struct {
	Loss      float64
	Duplicate float64
	Reorder   float64       // is held back for 10 ms more
	Delay     time.Duration // of every frame
	Jitter    time.Duration // more delay, evenly spread up to it
	// BlockFor drops everything of a port that was plugged in less than this
	// long ago, as spanning tree does without PortFast.
	BlockFor time.Duration
}

// Rule applies an impairment to frames from one port to another, by the ports'
// names; an empty name is every port. Ports that come and go, like a machine's
// at each power-on, stay under it.
type Rule struct {
	From, To string
	// Port picks IPv4 packets from or to that TCP or UDP port; 0 is every frame.
	// Of a fragmented packet only the first fragment has one.
	Port uint16
	Impairment
	// Seed decides which frames are hit: the same sequence of matching frames
	// has the same fate.
	Seed uint64
}

// Applied is a rule at work. Remove it.
type Applied struct {
	Rule
	sw   *Switch
	hits atomic.Uint64

	mu  sync.Mutex
	rng *rand.Rand
}

// Apply puts a rule to work. Where several match, each has its turn.
func (s *Switch) Apply(r Rule) *Applied {
	a := &Applied{Rule: r, sw: s, rng: rand.New(rand.NewPCG(r.Seed, 0))}
	s.mu.Lock()
	defer s.mu.Unlock()
	rules := append(slices.Clone(s.active()), a)
	s.rules.Store(&rules)
	return a
}

// Hits is how many frames the rule has dropped, held back or doubled.
func (a *Applied) Hits() uint64 { return a.hits.Load() }

// Remove ends the rule. Frames that it holds back still arrive.
func (a *Applied) Remove() {
	s := a.sw
	s.mu.Lock()
	defer s.mu.Unlock()
	rules := slices.DeleteFunc(slices.Clone(s.active()), func(b *Applied) bool { return a == b })
	s.rules.Store(&rules)
}

func (s *Switch) active() []*Applied {
	if p := s.rules.Load(); p != nil {
		return *p
	}
	return nil
}

// deliver hands f to a port, or does to it what the rules say. It takes f over.
func (s *Switch) deliver(from, to *Port, f *frame) {
	var wait time.Duration
	copies := 1
	for _, a := range s.active() {
		if a.From != "" && a.From != from.name || a.To != "" && a.To != to.name || a.Port != 0 && !hasPort(f.data(), a.Port) {
			continue
		}
		v := a.decide(s.now(), from, to)
		if v.drop {
			f.release()
			return
		}
		wait += v.wait
		copies += v.more
	}
	for ; copies > 1; copies-- {
		to.enqueueAfter(wait, f.clone())
	}
	to.enqueueAfter(wait, f)
}

type verdict struct {
	drop bool
	wait time.Duration
	more int
}

// decide draws the same number of random values for every frame, so that one
// frame's fate does not depend on what the others' was.
func (a *Applied) decide(now time.Time, from, to *Port) verdict {
	a.mu.Lock()
	loss, dup, reorder, jitter := a.rng.Float64(), a.rng.Float64(), a.rng.Float64(), a.rng.Float64()
	a.mu.Unlock()
	v := verdict{drop: loss < a.Loss, wait: a.Delay + time.Duration(jitter*float64(a.Jitter))}
	if a.BlockFor > 0 {
		v.drop = v.drop || a.From != "" && now.Sub(from.since) < a.BlockFor || a.To != "" && now.Sub(to.since) < a.BlockFor
	}
	if dup < a.Duplicate {
		v.more = 1
	}
	if reorder < a.Reorder {
		v.wait += reorderHold
	}
	if v != (verdict{}) {
		a.hits.Add(1)
	}
	return v
}

func (p *Port) enqueueAfter(d time.Duration, f *frame) {
	if d <= 0 {
		p.enqueue(f)
		return
	}
	if !p.held.add(p, p.sw.now().Add(d), f) {
		p.dropped.Add(1)
		f.release()
	}
}
