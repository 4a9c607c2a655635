package operation

import (
	"context"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// callSoon is what a ramdisk that waits needs for its call; before that, nobody
// asks its controller anything.
const callSoon = 1500 * time.Millisecond

// bootOrAdopt goes on with the ramdisk in which the server waits, where there is
// one. If that does not call, the machine is started as any other, off first.
func (r *run) bootOrAdopt(ctx context.Context, spec *agentv1.ServerSpec, step metal.Step) error {
	if !r.mayAdopt(step) {
		return r.bootRamdisk(ctx, spec, step)
	}
	err := r.guarded(ctx, func(ctx context.Context) error { return r.awaitWaiting(ctx, spec) })
	if err != nil {
		return err
	}
	if r.ramdisk.Called() {
		r.log.Info("the ramdisk that waited was adopted", "boot", r.ramdisk.BootID())
		return nil
	}
	if err := r.recovery(step, "the ramdisk that waited does not answer: off, boot it from the network"); err != nil {
		return err
	}
	return r.bootRamdisk(ctx, spec, step)
}

// mayAdopt says whether a boot from before the operation is what the step is
// about, still.
func (r *run) mayAdopt(step metal.Step) bool {
	if _, started := r.begun(step, onAct(0)); started || r.ramdisk.Called() || len(r.past.recovery[step]) > 0 {
		return false
	}
	// Alive and never called: it was adopted in this agent's former life.
	return r.ramdisk.Adoptable() || r.ramdisk.Alive() && r.ramdisk.BootID() == r.assigned.GetBootId()
}

// awaitWaiting returns when the ramdisk has called, when its machine reads off,
// or when it has had its time.
func (r *run) awaitWaiting(ctx context.Context, spec *agentv1.ServerSpec) error {
	within := r.deps.Timing.WarmAdopt
	soon := min(callSoon, within)
	if called, err := r.awaitCalled(ctx, soon); called || err != nil {
		return err
	}
	power, err := r.controller(spec).Power(ctx)
	if err == nil && power == metal.PowerOff || ctx.Err() != nil {
		return err
	}
	_, err = r.awaitCalled(ctx, within-soon)
	return err
}

func (r *run) awaitCalled(ctx context.Context, within time.Duration) (bool, error) {
	late := time.NewTimer(within)
	defer late.Stop()
	for {
		changed := r.ramdisk.Changed()
		if err := r.ramdisk.Failure(); err != nil {
			return false, err
		}
		if r.ramdisk.Called() {
			return true, nil
		}
		select {
		case <-changed:
		case <-late.C:
			return false, nil
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}
