package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/chaos/run"
	"bmc/internal/pause"
	"bmc/lab"
)

// faults breaks one node and one agent at a time: first those who have most to
// lose, the leader and an agent that holds a lease, by SIGKILL and for longer than
// a lease; then a standby is cut off for so long that servers are released, of which
// it still thinks that they are rented. What is broken then, how and for how long follows from the seed; when,
// from how long the lab takes to obey.
type faults struct {
	world *run.World
	opts  *options
	start time.Time

	mu   sync.Mutex
	errs []error
}

func newFaults(w *run.World, o *options) *faults {
	return &faults{world: w, opts: o, start: time.Now()}
}

func (f *faults) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.errs...)
}

func (f *faults) note(err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs = append(f.errs, err)
}

// harm is a fault that lasts.
type harm struct {
	name string
	do   func(ctx context.Context, f *faults, victim string, others []string, seed uint64) (undo func(context.Context) error, err error)
}

var harms = []harm{
	{"killed", func(ctx context.Context, f *faults, victim string, _ []string, seed uint64) (func(context.Context) error, error) {
		_, err := f.world.Lab.Fault(ctx, lab.FaultSpec{Kind: lab.FaultKill, Targets: []string{victim}, Seed: seed})
		return func(ctx context.Context) error { return f.world.Lab.StartDaemon(ctx, victim) }, err
	}},
	{"paused", func(ctx context.Context, f *faults, victim string, _ []string, seed uint64) (func(context.Context) error, error) {
		a, err := f.world.Lab.Fault(ctx, lab.FaultSpec{Kind: lab.FaultStop, Targets: []string{victim}, Seed: seed})
		return func(ctx context.Context) error { return f.world.Lab.Heal(ctx, a.ID) }, err
	}},
	{"cut off", func(ctx context.Context, f *faults, victim string, others []string, seed uint64) (func(context.Context) error, error) {
		a, err := f.world.Lab.Fault(ctx, lab.FaultSpec{Kind: lab.FaultPartition, Targets: append([]string{victim}, others...), Seed: seed, Network: "mgmt"})
		return func(ctx context.Context) error { return f.world.Lab.Heal(ctx, a.ID) }, err
	}},
}

// Of faults' lengths: an agent's last for more than a lease, so that another
// takes over.
const (
	harmMin  = 5 * time.Second
	harmMore = 25 * time.Second
	harmHold = 45 * time.Second // a new leader and then a successor have acted before the victim is back
	leaseFor = 15 * time.Second
	calmMin  = 5 * time.Second
	calmMore = 10 * time.Second
	undoWait = 20 * time.Second
	askFor   = 2 * time.Second
)

func (f *faults) nodes(ctx context.Context) {
	all, err := f.world.Nodes(ctx)
	f.note(err)
	f.loop(ctx, 1, harmMin, all, all, opening{"killed", f.world.Leader})
}

func (f *faults) agents(ctx context.Context) {
	nodes, err := f.world.Nodes(ctx)
	f.note(err)
	var all []string
	for r := range f.opts.racks {
		a, err := f.world.Agents(ctx, fmt.Sprintf("r%d", r+1))
		f.note(err)
		all = append(all, a...)
	}
	holder := func(ctx context.Context) (string, error) {
		name, _, err := f.world.Holder(ctx, "r1") // it holds the whole rack's operations
		return name, err
	}
	standby := func(ctx context.Context) (string, error) {
		name, err := holder(ctx)
		of, errOf := f.world.Agents(ctx, "r1")
		i := slices.IndexFunc(of, func(a string) bool { return a != name })
		if err = errors.Join(err, errOf); err != nil || name == "" || i < 0 {
			return "", err
		}
		return of[i], nil
	}
	first := []opening{{"killed", holder}}
	if f.opts.agents > 1 {
		first = append(first, opening{"cut off", standby})
	}
	f.loop(ctx, 2, leaseFor, all, nodes, first...)
}

// opening is a harm whose victim is found when its time has come.
type opening struct {
	harm   string
	victim func(context.Context) (string, error)
}

// underWay says how much is going on at the moment.
func (f *faults) underWay(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	s, err := f.world.API.Cluster.Status(ctx, &bmcv1.StatusRequest{})
	if err != nil {
		return ""
	}
	return fmt.Sprintf(", amid %d operations", s.GetRunningOperations())
}

// loop harms one of the victims after the other until ctx ends; a partition cuts
// one off from the nodes. It begins with the openings.
func (f *faults) loop(ctx context.Context, stream uint64, least time.Duration, victims, nodes []string, first ...opening) {
	rng := rand.New(rand.NewPCG(f.opts.seed, stream<<32))
	for pause.For(ctx, calmMin+time.Duration(rng.Int64N(int64(calmMore)))) == nil && len(victims) > 0 {
		h := harms[rng.IntN(len(harms))]
		victim := victims[rng.IntN(len(victims))]
		length := least + time.Duration(rng.Int64N(int64(harmMore)))
		seed := rng.Uint64()
		if len(first) > 0 {
			name, err := first[0].victim(ctx)
			if err != nil || name == "" {
				f.note(err)
				continue
			}
			h = harms[slices.IndexFunc(harms, func(h harm) bool { return h.name == first[0].harm })]
			victim, length, first = name, harmHold, first[1:]
		}
		var others []string
		for _, n := range nodes {
			if n != victim {
				others = append(others, n)
			}
		}
		fmt.Printf("   %6.1f s  %-6s %s for %.0f s%s\n", time.Since(f.start).Seconds(), victim, h.name, length.Seconds(), f.underWay(ctx))
		undo, err := h.do(ctx, f, victim, others, seed)
		if err != nil {
			if ctx.Err() == nil {
				f.note(fmt.Errorf("%s %s: %w", victim, h.name, err))
			}
			return
		}
		_ = pause.For(ctx, length) // the end of the storm ends the fault as well
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWait)
		f.note(undo(end))
		cancel()
	}
}
