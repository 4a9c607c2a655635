package operation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bmc/agent/oob"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/mutant"
	"bmc/metal"
)

// do runs one step. Every step may run again after a crash at any point, so
// each observes before it acts.
func (r *run) do(ctx context.Context, step metal.Step, rep *agentv1.ReportStepRequest) error {
	spec, err := r.spec()
	if err != nil {
		return err
	}
	switch step {
	case metal.StepVerifyOOB:
		return r.verifyOOB(ctx, spec)
	case metal.StepPowerOff:
		if mutant.On("no-read-off") {
			return nil
		}
		return r.setPower(ctx, spec, metal.PowerOff)
	case metal.StepPowerOffEnd:
		return r.powerOffEnd(ctx, spec)
	case metal.StepBootRamdisk:
		err := r.bootOrAdopt(ctx, spec, step)
		rep.BootId, rep.Ramdisk = r.ramdisk.BootID(), r.ramdisk.Version()
		return err
	case metal.StepInspect:
		return r.inspect(ctx, rep)
	case metal.StepWipe:
		return r.wipe(ctx, rep)
	case metal.StepWriteImage:
		return r.writeImage(ctx, rep)
	case metal.StepConfigure:
		return r.configure(ctx, spec, rep)
	case metal.StepBootDisk:
		return r.bootDisk(ctx, spec, rep)
	case metal.StepReady:
		return r.ready(ctx, spec, rep)
	case metal.StepSetPower:
		if r.assigned.GetPower().GetWanted() == string(metal.PowerOn) {
			return r.setPower(ctx, spec, metal.PowerOn)
		}
		return r.powerDown(ctx, spec, step)
	case metal.StepStop:
		return r.powerDown(ctx, spec, step)
	case metal.StepStart:
		return r.setPower(ctx, spec, metal.PowerOn)
	}
	return metal.Errorf(metal.CodeInternal, "the rack's agent does not know step %s", step)
}

func (r *run) controller(spec *agentv1.ServerSpec) oob.Controller { return r.deps.OOB(spec) }

// verifyOOB proves address and credentials by a reading.
func (r *run) verifyOOB(ctx context.Context, spec *agentv1.ServerSpec) error {
	return r.guarded(ctx, func(ctx context.Context) error {
		_, err := r.controller(spec).Power(ctx)
		return err
	})
}

// setPower turns the server on or off and has it read back; a server that
// reads so already is left alone.
func (r *run) setPower(ctx context.Context, spec *agentv1.ServerSpec, wanted metal.Power) error {
	defer r.meanwhile(fmt.Sprintf("management controller %s has not read %s yet: it does not answer, or does not obey; it is asked again and again",
		spec.GetOob().GetAddress(), wanted))()
	return r.guarded(ctx, func(ctx context.Context) error {
		return r.controller(spec).SetPower(ctx, wanted)
	})
}

// meanwhile has people read a message every so often, until it is stopped: why a call
// takes long that says nothing itself.
func (r *run) meanwhile(message string) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(r.deps.Timing.Meanwhile)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				r.tell(message)
			}
		}
	}()
	return func() { close(done); <-ended }
}

// powerDown shuts the server down, and cuts its power if it has not obeyed
// after a while, or at once when that was asked for.
func (r *run) powerDown(ctx context.Context, spec *agentv1.ServerSpec, step metal.Step) error {
	if !r.assigned.GetPower().GetHard() {
		off, err := r.softOff(ctx, spec, step)
		if err != nil || off {
			return err
		}
	}
	return r.setPower(ctx, spec, metal.PowerOff)
}

// softOff asks the operating system once, and waits for it from that moment on.
// Another agent that has begun the step may have asked: then it is not asked
// again.
func (r *run) softOff(ctx context.Context, spec *agentv1.ServerSpec, step metal.Step) (off bool, err error) {
	const act = "soft"
	c := r.controller(spec)
	asked, before := r.begun(step, act)
	if !before {
		asked, before = r.begunElsewhere(step)
	}
	if !before {
		err := r.guarded(ctx, func(ctx context.Context) error {
			power, err := c.Power(ctx)
			if err != nil || power == metal.PowerOff {
				off = power == metal.PowerOff
				return err
			}
			if err := r.intent(step, act); err != nil {
				return err
			}
			err = c.SoftOff(ctx)
			if errors.Is(err, oob.ErrLease) {
				return err
			}
			if err != nil && ctx.Err() == nil {
				return r.recovery(step, "graceful shutdown refused: power cut")
			}
			return nil
		})
		if err != nil || off || len(r.past.recovery[step]) > 0 {
			return off, err
		}
		asked = r.deps.Now()
	}
	for r.deps.Now().Before(asked.Add(r.deps.Timing.SoftStop)) {
		if power, err := c.Power(ctx); err == nil && power == metal.PowerOff {
			break // SetPower reads it again
		}
		if err := sleep(ctx, r.deps.Timing.PowerPoll); err != nil {
			return false, err
		}
	}
	if power, err := c.Power(ctx); err != nil || power != metal.PowerOff {
		if len(r.past.recovery[step]) == 0 {
			return false, r.recovery(step, "no graceful shutdown within %s: power cut", r.deps.Timing.SoftStop)
		}
	}
	return false, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
