package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/chaos/check"
	"bmc/chaos/history"
	"bmc/chaos/run"
	"bmc/e2e/harness"
	"bmc/lab"
	"bmc/metal"
)

const (
	pauseFor    = 3 * time.Minute // one pause, with its takeover
	deployFor   = 5 * time.Minute
	staleRetry  = 5 * time.Second // a resumed agent's session and command are over by then
	commandRack = "r%d"
)

// pausing stops acting agents between their look at the lease and the command to
// a controller, lets others take over and finish, and lets them go on: what they
// then send, they send under an epoch that is over. Racks go side by side.
func pausing(ctx context.Context, o *options) (err error) {
	racks := min(o.pauses, o.pauseRacks)
	dir := filepath.Join(o.dir, "pauses")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fmt.Printf("\n== lab up: 3 nodes, %d racks, 2 agents each, 1 light machine each\n", racks)
	w, err := run.Up(ctx, harness.Options{Bin: o.bin, Ramdisk: o.ramdisk, Dir: dir, Nodes: 3, Servers: 0, Firmware: "bios", Disk: "1GiB",
		Extra: []string{"--racks", fmt.Sprint(racks), "--agents", "2", "--light", "1", "--bin", filepath.Join(o.bin, "failpoints")}}, o.seed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Down(context.WithoutCancel(ctx))) }()
	if _, err := w.Harness.BMCTo(ctx, os.Stderr, "image", "push", o.image); err != nil {
		return err
	}
	if err := w.Enrol(ctx); err != nil {
		return err
	}
	fmt.Printf("\n%-4s %-6s %-11s %-8s %-8s %9s %9s\n", "n", "rack", "stopped at", "agent", "then", "takeover", "ended")
	p := &pauses{world: w, image: imageName(o.image), seed: o.seed}
	if err := sideBySide(racks, o.pauses, func(i, n int) error { return p.rack(ctx, i, n) }); err != nil {
		return err
	}
	if err := w.Heal(ctx); err != nil {
		return err
	}
	e, err := w.Evidence(ctx)
	if err != nil {
		return err
	}
	report := check.Judge(e)
	fmt.Printf("-- %d pauses\n", p.done)
	err = show(report, "I1", "I2", "I3", "I4", "I5", "I6", "I8", "I12", "I14", "I15", "twice")
	run.Percentiles("from an agent's pause until another had the lease", p.took)
	if n := len(report.Violations()); n > 0 {
		return errors.Join(err, fmt.Errorf("%d violations", n))
	}
	return err
}

type pauses struct {
	world *run.World
	image string
	seed  uint64

	mu   sync.Mutex
	done int
	took []time.Duration
}

// rack pauses the agents of one rack n times.
func (p *pauses) rack(ctx context.Context, i, n int) error {
	rack, name := fmt.Sprintf(commandRack, i+1), fmt.Sprintf("pause-%d", i+1)
	c, err := p.world.Client(i)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // its calls are over
	call, err := c.Create(ctx, &bmcv1.CreateServerRequest{Name: name, Rack: rack, Image: p.image, SshKeys: []string{p.world.Key}})
	if err != nil {
		return err
	}
	if err := p.succeeds(ctx, call.Operation, deployFor); err != nil {
		return err
	}
	for k := range n {
		wanted := []metal.Power{metal.PowerOff, metal.PowerOn}[k%2]
		if err := p.once(ctx, c, rack, name, wanted); err != nil {
			return fmt.Errorf("pause %d in rack %s: %w", k+1, rack, err)
		}
	}
	return nil
}

func (p *pauses) succeeds(ctx context.Context, operation string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	op, err := p.world.Wait(ctx, operation)
	if err == nil && op.GetState() != string(metal.OperationSucceeded) {
		err = fmt.Errorf("operation %s: %s %s", op.GetKind(), op.GetState(), op.GetFailure().GetMessage())
	}
	return err
}

// once pauses the acting agent in one power command.
func (p *pauses) once(ctx context.Context, c *history.Client, rack, name string, wanted metal.Power) error {
	ctx, cancel := context.WithTimeout(ctx, pauseFor)
	defer cancel()
	at := "power-" + string(wanted)
	former, _, err := p.world.Holder(ctx, rack)
	if err != nil {
		return err
	}
	// At the holder alone: its successor passes the point, too. Not "times 1",
	// which a process counts over all pauses.
	armed, err := p.world.Lab.Fault(ctx, lab.FaultSpec{Kind: lab.FaultPoint, Targets: []string{former}, Point: "agent/oob/" + at + "/before", Action: "stop", Seed: p.seed})
	if err != nil {
		return err
	}
	call, err := c.Power(ctx, &bmcv1.SetPowerRequest{Ref: name, Wanted: string(wanted), Hard: true})
	if err != nil {
		return err
	}
	if err := run.Until(ctx, "the pause at "+at, func(ctx context.Context) (bool, error) {
		all, err := p.world.Lab.Faults(ctx)
		for _, f := range all {
			if f.ID == armed.ID && f.Fired > 0 {
				return true, err
			}
		}
		return false, err
	}); err != nil {
		return err
	}
	stopped := time.Now()
	holder := ""
	if err := run.Until(ctx, "a takeover from "+former, func(ctx context.Context) (bool, error) {
		h, _, err := p.world.Holder(ctx, rack)
		holder = h
		return h != "" && h != former, err
	}); err != nil {
		return err
	}
	took := time.Since(stopped)
	if err := p.succeeds(ctx, call.Operation, pauseFor); err != nil {
		return err
	}
	ended := time.Since(stopped)
	if err := p.resume(ctx, armed); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	p.took = append(p.took, took)
	fmt.Printf("%-4d %-6s %-11s %-8s %-8s %7.1f s %7.1f s\n", p.done, rack, at, former, holder, took.Seconds(), ended.Seconds())
	return nil
}

// resume lets an agent go on, which healing the fault does, and gives it the time
// to send what it held back.
func (p *pauses) resume(ctx context.Context, armed lab.Fault) error {
	if err := p.world.Lab.Heal(ctx, armed.ID); err != nil {
		return err
	}
	t := time.NewTimer(staleRetry)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sideBySide shares a number of things out among racks, and does each rack's beside
// the others'.
func sideBySide(racks, all int, do func(rack, n int) error) error {
	errs := make([]error, racks)
	var wg sync.WaitGroup
	for i := range racks {
		n := all / racks
		if i < all%racks {
			n++
		}
		wg.Go(func() { errs[i] = do(i, n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
