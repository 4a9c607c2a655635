package operation

import (
	"context"
	"slices"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// former is what the control plane knows of the step that another agent was at.
type former struct {
	step  metal.Step
	begun time.Time // zero: not begun
	rungs []string
}

// generation is an epoch's upper half, which a restored backup raises.
func generation(epoch uint64) uint64 { return epoch >> 32 }

// takeOver voids what this agent's journal says if another agent has reported
// since: nobody acts in a step before a report of it was recorded. An agent
// that has no journal, new to the operation or with an empty disk, is no other.
// A journal from before a restored backup is void as well: its attempt may be one
// that the backup does not know, and the number was given away again.
func (r *run) takeOver() error {
	a := r.assigned
	for _, step := range metal.Plan(metal.OperationKind(a.GetKind())) {
		if !slices.Contains(a.GetDoneSteps(), string(step)) {
			r.at(step)
			break
		}
	}
	restored := r.past.epoch > 0 && generation(a.GetEpoch()) > generation(r.past.epoch)
	if r.past.ended && !restored {
		return nil
	}
	if a.GetReportedEpoch() <= r.past.epoch && !restored {
		return nil
	}
	rec := Record{Kind: RecordTaken, Epoch: a.GetReportedEpoch(), Step: metal.Step(a.GetBegunStep()), Rungs: a.GetRecovery()}
	if a.GetBegunStep() != "" {
		rec.Begun = a.GetBegunAt().AsTime()
	}
	r.log.Info("operation taken over", "step", rec.Step, "boot", a.GetBootId())
	return r.append(rec)
}

// begunElsewhere says whether, and when, another agent began a step. Its clock is
// not ours: what lies in the future is now.
func (r *run) begunElsewhere(step metal.Step) (time.Time, bool) {
	f := r.past.former
	if f.step != step || f.begun.IsZero() {
		return time.Time{}, false
	}
	if now := r.deps.Now(); f.begun.After(now) {
		return now, true
	}
	return f.begun, true
}

// rungs is the ladder as it was climbed in a step, by whomever.
func (r *run) rungs(step metal.Step) []string {
	own := r.past.recovery[step]
	if r.past.former.step != step {
		return own
	}
	return slices.Concat(r.past.former.rungs, own)
}

// attend answers the ramdisk while the rack's lease is held for this operation,
// and sends it on while it is not: another agent may hold it, out of our sight.
// The function that it returns ends that.
func (r *run) attend(ctx context.Context) (end func()) {
	r.ramdisk.Attend(false)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			held, release, err := r.deps.Lease.Hold(ctx, r.server, r.currentEpoch)
			if err != nil {
				return // the run ends, or the server is gone
			}
			r.ramdisk.Attend(true)
			<-held.Done()
			release()
			r.ramdisk.Attend(false)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// adopt waits for the ramdisk that another agent has met. One that reads off
// will not come; one whose controller does not answer may.
func (r *run) adopt(ctx context.Context, spec *agentv1.ServerSpec) (adopted bool, err error) {
	if !r.ramdisk.Adoptable() {
		return r.ramdisk.Alive(), nil
	}
	err = r.guarded(ctx, func(ctx context.Context) error {
		power, readErr := r.controller(spec).Power(ctx)
		if readErr == nil && power == metal.PowerOff {
			return nil
		}
		if err := r.awaitCall(ctx); err != nil || r.ramdisk.Alive() {
			return err
		}
		return readErr
	})
	if err == nil && r.ramdisk.Alive() {
		r.log.Info("ramdisk adopted", "boot", r.ramdisk.BootID())
	}
	return r.ramdisk.Alive(), err
}

// awaitCall returns when the ramdisk has called, or has had its time to.
func (r *run) awaitCall(ctx context.Context) error {
	late := time.NewTimer(r.deps.Timing.Adopt)
	defer late.Stop()
	for {
		changed := r.ramdisk.Changed()
		if err := r.ramdisk.Failure(); err != nil {
			return err
		}
		if r.ramdisk.Alive() {
			return nil
		}
		select {
		case <-changed:
		case <-late.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tellBoot has the control plane know which boot of the ramdisk the step works
// with before that is given a task.
func (r *run) tellBoot(ctx context.Context, step metal.Step) error {
	if id := r.ramdisk.BootID(); id != r.toldBoot {
		return r.report(ctx, &agentv1.ReportStepRequest{
			Step: string(step), Phase: "booted", BootId: id, Recovery: r.rungs(step),
			Message: "the ramdisk was booted again",
		})
	}
	return nil
}
