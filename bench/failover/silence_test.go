package main

import (
	"testing"
	"time"
)

func TestSilence(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(100, 0).Add(time.Duration(ms) * time.Millisecond) }
	s := newSilence(2)
	s.ack(0, at(0))
	s.ack(1, at(5))
	s.arm(at(8))      // a kill; the last acknowledgement was at 5
	s.ack(0, at(905)) // 900 ms of nothing
	s.ack(0, at(910))
	if s.allSince(at(8)) {
		t.Error("writer 1 has had none since")
	}
	s.ack(1, at(1205))
	whole, worst := s.measured(at(1210))
	if whole != 900*time.Millisecond || worst != 1200*time.Millisecond || !s.allSince(at(8)) {
		t.Errorf("whole %v, worst %v", whole, worst)
	}
	s.arm(at(1210))
	if whole, worst = s.measured(at(3205)); whole != 2*time.Second || worst != 2295*time.Millisecond {
		t.Errorf("a silence that goes on: %v, %v", whole, worst)
	}
}

func TestPercentile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for p, want := range map[float64]time.Duration{50: 50, 90: 90, 99: 99, 100: 100, 0: 1} {
		if got := percentile(hundred, p); got != want {
			t.Errorf("p%v is %d, want %d", p, got, want)
		}
	}
	if percentile(nil, 50) != 0 || percentile(hundred[:1], 99) != 1 {
		t.Error("of none and one")
	}
}
