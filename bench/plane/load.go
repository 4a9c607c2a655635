package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"bmc/bench/measure"
	"bmc/bench/process"
	"bmc/bench/table"
)

// caller makes one call; it is used by one goroutine.
type caller interface {
	call(ctx context.Context, n int) error
	close() error
}

// subject is a system under one kind of load.
type subject struct {
	name  string
	open  func(i int) (caller, error) // the client of that number
	rates []float64                   // calls a second, one a run
	p50   []float64                   // ms
	p99   []float64                   // ms
	load  []float64                   // us of processor a call, in the load's process
	serve []float64                   // the same, in the system's own processes
	pids  func() []int                // of the system's processes
	group []caller
}

// inTurns has every subject loaded by n clients, run after run in turn: every other
// turn in reverse order, so that none always follows the same one. The clients
// are connected before the first.
func inTurns(ctx context.Context, subjects []*subject, n, turns int, length time.Duration) (err error) {
	defer func() {
		for _, s := range subjects {
			for _, c := range s.group {
				err = errors.Join(err, c.close())
			}
			s.group = nil
		}
	}()
	for _, s := range subjects {
		for i := range n {
			c, err := s.open(i)
			if err != nil {
				return err
			}
			s.group = append(s.group, c)
		}
		if _, err := s.run(ctx, length/4); err != nil { // connects, warms up
			return err
		}
	}
	for turn := range turns {
		for _, s := range ordered(subjects, turn) {
			load, serve := process.Processor(os.Getpid()), s.processor()
			took, err := s.run(ctx, length)
			if err != nil {
				return err
			}
			each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(max(len(took), 1)) }
			s.load = append(s.load, each(process.Processor(os.Getpid())-load))
			s.serve = append(s.serve, each(s.processor()-serve))
			slices.Sort(took)
			s.rates = append(s.rates, float64(len(took))/length.Seconds())
			s.p50 = append(s.p50, ms(measure.Percentile(took, 50)))
			s.p99 = append(s.p99, ms(measure.Percentile(took, 99)))
		}
	}
	for _, s := range subjects {
		fmt.Printf("  %-12s %4d clients: %s a second, p50 %s ms, p99 %s ms; us of processor a call: %s load, %s servers\n", s.name, n,
			table.Of(s.rates), table.Of(s.p50), table.Of(s.p99), table.Of(s.load), table.Of(s.serve))
	}
	return nil
}

// processor is what the system's processes have used so far.
func (s *subject) processor() (sum time.Duration) {
	if s.pids == nil {
		return 0
	}
	for _, pid := range s.pids() {
		sum += process.Processor(pid)
	}
	return sum
}

// ordered is all of a turn, in reverse in every other one.
func ordered[T any](all []T, turn int) []T {
	out := slices.Clone(all)
	if turn%2 == 1 {
		slices.Reverse(out)
	}
	return out
}

// run has all clients call for the time given and returns how long each call took.
func (s *subject) run(ctx context.Context, length time.Duration) ([]time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	var errs []error
	var wg sync.WaitGroup
	end := time.Now().Add(length)
	for _, c := range s.group {
		wg.Go(func() {
			var took []time.Duration
			var err error
			for n := 0; err == nil && time.Now().Before(end); n++ {
				began := time.Now()
				if err = c.call(ctx, n); err == nil {
					took = append(took, time.Since(began))
				}
			}
			mu.Lock()
			all, errs = append(all, took...), append(errs, err)
			mu.Unlock()
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	return all, nil
}

func ms(d time.Duration) float64 { return float64(d) / 1e6 }

// rowsOf compares ours with the peer, nil for none, and with what the limit allows.
func rowsOf(what, unit, aim string, ours, peer, limit *subject) []table.Row {
	rate := table.Row{What: what, Unit: unit, Ours: table.Of(ours.rates), Aim: aim, Limit: table.Of(limit.rates)}
	p99 := table.Row{What: what + ", p99", Unit: "ms", Ours: table.Of(ours.p99), Limit: table.Of(limit.p99)}
	cost := table.Row{What: what + ", processor each", Unit: "us", Ours: table.Of(sums(ours)), Limit: table.Of(sums(limit)), Note: "load and servers"}
	if peer != nil {
		cost.Peer, cost.Them, cost.Ratio = peerName, table.Of(sums(peer)), table.InTurns(sums(ours), sums(peer))
		rate.Peer, rate.Them, rate.Ratio = peerName, table.Of(peer.rates), table.InTurns(ours.rates, peer.rates)
		p99.Peer, p99.Them, p99.Ratio = peerName, table.Of(peer.p99), table.InTurns(ours.p99, peer.p99)
	}
	return []table.Row{rate, p99, cost}
}

// sums are what a call costs of processor in all, us.
func sums(s *subject) (all []float64) {
	for i := range s.load {
		all = append(all, s.load[i]+s.serve[i])
	}
	return all
}
