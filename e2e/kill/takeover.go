package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"bmc/chaos/check"
	"bmc/chaos/run"
	"bmc/e2e/harness"
	"bmc/lab"
	"bmc/metal"
)

const (
	renewEvery  = 5 * time.Second // of an agent
	takeoverFor = 2 * time.Minute // one, with the dead agent's return
)

// taking kills the agent that holds a rack's lease, again and again, in racks side by
// side, and measures by the audit how long the rack had no holder.
func taking(ctx context.Context, o *options) (err error) {
	racks := min(o.takeovers, o.takeoverRacks)
	dir := filepath.Join(o.dir, "takeovers")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fmt.Printf("\n== lab up: 3 nodes, %d racks, 2 agents each, 1 light machine each\n", racks)
	w, err := run.Up(ctx, harness.Options{Bin: o.bin, Ramdisk: o.ramdisk, Dir: dir, Nodes: 3, Servers: 0, Firmware: "bios", Disk: "1GiB",
		Extra: []string{"--racks", fmt.Sprint(racks), "--agents", "2", "--light", "1"}}, o.seed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Down(context.WithoutCancel(ctx))) }()
	if err := w.Enrol(ctx); err != nil {
		return err
	}
	t := &takers{world: w}
	if err := sideBySide(racks, o.takeovers, func(i, n int) error {
		return t.rack(ctx, fmt.Sprintf(commandRack, i+1), n, rand.New(rand.NewPCG(o.seed, uint64(i))))
	}); err != nil {
		return err
	}
	if err := w.Heal(ctx); err != nil {
		return err
	}
	e, err := w.Evidence(ctx)
	if err != nil {
		return err
	}
	took, err := t.measure(e)
	if err != nil {
		return err
	}
	report := check.Judge(e, "I3", "I4", "I5", "I6", "I8", "I12", "I15", "twice")
	err = show(report, "I3", "I4", "I6")
	run.Percentiles("from the holder's SIGKILL until another agent had the lease", took)
	if n := len(report.Violations()); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d violations", n))
	}
	return err
}

// taken is a kill of a holder.
type taken struct {
	rack, dead string
	at         time.Time
}

type takers struct {
	world *run.World

	mu  sync.Mutex
	all []taken
}

// rack kills its holder n times; the dead one comes back once another holds.
func (t *takers) rack(ctx context.Context, rack string, n int, rng *rand.Rand) error {
	for k := range n {
		// At any moment between two renewals: right after a grant all would be alike.
		timer := time.NewTimer(time.Duration(rng.Int64N(int64(renewEvery))))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		if err := t.once(ctx, rack); err != nil {
			return fmt.Errorf("takeover %d in rack %s: %w", k+1, rack, err)
		}
	}
	return nil
}

func (t *takers) once(ctx context.Context, rack string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, takeoverFor, fmt.Errorf("not within %s", takeoverFor))
	defer cancel()
	holder, err := t.holder(ctx, rack, "")
	if err != nil {
		return err
	}
	at := time.Now()
	if _, err := t.world.Lab.Fault(ctx, lab.FaultSpec{Kind: lab.FaultKill, Targets: []string{holder}, Seed: 1}); err != nil {
		return err
	}
	t.mu.Lock()
	t.all = append(t.all, taken{rack, holder, at})
	t.mu.Unlock()
	if _, err := t.holder(ctx, rack, holder); err != nil {
		return err
	}
	return t.world.Lab.StartDaemon(ctx, holder)
}

// holder waits until another agent than one holds a rack's lease, and names it.
func (t *takers) holder(ctx context.Context, rack, than string) (name string, err error) {
	err = run.Until(ctx, "a holder of "+rack, func(ctx context.Context) (bool, error) {
		h, _, err := t.world.Holder(ctx, rack)
		name = h
		return h != "" && h != than, err
	})
	return name, err
}

// measure finds each kill's next grant of its rack to another agent.
func (t *takers) measure(e *check.Evidence) ([]time.Duration, error) {
	racks, agents := map[string]string{}, map[string]string{}
	for _, r := range e.Racks {
		racks[r.ID] = r.Name
	}
	for _, a := range e.Agents {
		agents[a.ID] = a.Name
	}
	var out []time.Duration
	for _, k := range t.all {
		n := slices.IndexFunc(e.Audit, func(a *metal.AuditEntry) bool {
			return a.Command == "grant_lease" && a.Outcome == "" && racks[a.ObjectID] == k.rack && agents[a.AgentID] != k.dead && a.Time.After(k.at)
		})
		if n < 0 {
			return nil, fmt.Errorf("the audit has no takeover of %s from %s", k.rack, k.dead)
		}
		out = append(out, e.Audit[n].Time.Sub(k.at))
	}
	return out, nil
}
