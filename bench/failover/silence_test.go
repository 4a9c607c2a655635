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
