package main

import (
	"slices"
	"time"
)

// silence finds the longest time without an acknowledgement: of all writers
// together, and of any one of them.
type silence struct {
	last    time.Time // acknowledgement of anybody, or arm
	longest time.Duration
	each    []time.Time // last of each writer
	worst   time.Duration
}

func newSilence(writers int) silence { return silence{each: make([]time.Time, writers)} }

// arm forgets what was measured. What was acknowledged last before counts: a
// silence may have begun already.
func (s *silence) arm(now time.Time) {
	s.longest, s.worst = 0, 0
	if s.last.IsZero() {
		s.last = now
	}
	for i, t := range s.each {
		if t.IsZero() {
			s.each[i] = now
		}
	}
}

func (s *silence) ack(writer int, now time.Time) {
	if !s.last.IsZero() {
		s.longest = max(s.longest, now.Sub(s.last))
	}
	if !s.each[writer].IsZero() {
		s.worst = max(s.worst, now.Sub(s.each[writer]))
	}
	s.last, s.each[writer] = now, now
}

// measured includes a silence that goes on.
func (s *silence) measured(now time.Time) (whole, worst time.Duration) {
	whole, worst = max(s.longest, now.Sub(s.last)), s.worst
	for _, t := range s.each {
		worst = max(worst, now.Sub(t))
	}
	return whole, worst
}

func (s *silence) allSince(t time.Time) bool {
	return !slices.ContainsFunc(s.each, func(at time.Time) bool { return !at.After(t) })
}
