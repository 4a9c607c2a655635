package operation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// limit is how long a task may take altogether, or without progress.
type limit struct {
	total time.Duration // 0: none
	quiet time.Duration // 0: none
}

func (r *run) inspect(ctx context.Context, rep *agentv1.ReportStepRequest) error {
	task := &agentv1.Task{Kind: &agentv1.Task_Inspect{Inspect: &agentv1.InspectTask{}}}
	result, err := r.task(ctx, metal.StepInspect, task, limit{total: r.deps.Timing.Inspect}, metal.CodeDeadline)
	rep.Hardware = result.GetHardware()
	return err
}

// wipe is asked mayBegin again: nothing but the operator's word may get here.
func (r *run) wipe(ctx context.Context, rep *agentv1.ReportStepRequest) error {
	if err := r.mayBegin(metal.StepWipe); err != nil {
		return err
	}
	task := &agentv1.Task{Kind: &agentv1.Task_Wipe{Wipe: &agentv1.WipeTask{Disks: r.assigned.GetWipe().GetDisks()}}}
	result, err := r.task(ctx, metal.StepWipe, task, limit{quiet: r.deps.Timing.WipeQuiet}, metal.CodeWipeFailed)
	rep.Wipes = result.GetWipes()
	return err
}

func (r *run) writeImage(ctx context.Context, rep *agentv1.ReportStepRequest) error {
	d := r.assigned.GetDeploy()
	url, release, err := r.deps.ChunkURL(r.server, r.operation, d.GetManifest())
	if err != nil {
		return err
	}
	defer release()
	task := &agentv1.Task{Kind: &agentv1.Task_WriteImage{WriteImage: &agentv1.WriteImageTask{
		Manifest: d.GetManifest(), Signature: d.GetSignature(), TrustedKeys: d.GetTrustedKeys(),
		ChunkUrl: url, RootDiskHint: d.GetRootDiskHint(),
	}}}
	result, err := r.task(ctx, metal.StepWriteImage, task, limit{quiet: r.deps.Timing.WriteQuiet}, metal.CodeWriteFailed)
	rep.Installed, rep.RootDisk = result.GetInstalled(), result.GetInstalled().GetRootDisk()
	return err
}

func (r *run) configure(ctx context.Context, spec *agentv1.ServerSpec, rep *agentv1.ReportStepRequest) error {
	written := r.past.done[metal.StepWriteImage].GetInstalled() // nil: another agent had it written
	disk := r.rootDisk()
	if disk == "" {
		return metal.Errorf(metal.CodeConfigureFailed, "the disk that the image was written to is not known any more")
	}
	d := r.assigned.GetDeploy()
	task := &agentv1.Task{Kind: &agentv1.Task_Configure{Configure: &agentv1.ConfigureTask{
		Manifest: d.GetManifest(), RootDisk: disk, Hostname: d.GetHostname(), SshKeys: d.GetSshKeys(),
		UserData: d.GetUserData(), Address: d.GetAddress(), Gateway: d.GetGateway(), Dns: d.GetDns(),
		Mac: firstMAC(spec), InstanceId: r.operation, ConsoleTty: spec.GetConsoleTty(),
	}}}
	result, err := r.task(ctx, metal.StepConfigure, task, limit{total: r.deps.Timing.Configure}, metal.CodeConfigureFailed)
	if in := result.GetInstalled(); in != nil {
		in.RootDisk = disk
		if written != nil {
			in.BytesWritten, in.BytesVerified = written.GetBytesWritten(), written.GetBytesVerified()
		}
		rep.Installed = in
	}
	return err
}

// rootDisk is the disk that the image was written to; "" when that is not known.
func (r *run) rootDisk() string {
	return cmp.Or(r.past.done[metal.StepWriteImage].GetInstalled().GetRootDisk(), r.assigned.GetRootDisk())
}

func (r *run) taskID(step metal.Step) string {
	return fmt.Sprintf("%s/%d/%s", r.operation, r.attempt, step)
}

// task grants a task once and waits for its result. late is the reason of a
// machine that falls silent.
func (r *run) task(ctx context.Context, step metal.Step, task *agentv1.Task, lim limit, late metal.Code) (*agentv1.CompleteTaskRequest, error) {
	task.Id = r.taskID(step)
	if err := r.ensureRamdisk(ctx, step); err != nil {
		return nil, err
	}
	if err := r.tellBoot(ctx, step); err != nil {
		return nil, err
	}
	if r.ramdisk.Result(task.Id) == nil {
		// The lease is needed to start; what has started runs to its end.
		err := r.guarded(ctx, func(context.Context) error { return r.ramdisk.Grant(task) })
		if err != nil {
			return nil, err
		}
	}
	result, err := r.awaitResult(ctx, step, task.Id, lim, late)
	if err != nil {
		return nil, err
	}
	if result.GetReason() != "" {
		return result, &metal.Error{Code: metal.Code(result.GetReason()), Message: result.GetMessage()}
	}
	return result, nil
}

// ensureRamdisk boots the ramdisk again where none is there: this agent has
// taken over, or lost its journal, and the one that was met does not call. Off
// comes first, so nothing of an earlier grant can still run.
func (r *run) ensureRamdisk(ctx context.Context, step metal.Step) error {
	if err := r.ramdisk.Failure(); err != nil {
		return err
	}
	if r.ramdisk.Alive() {
		return nil
	}
	spec, err := r.spec()
	if err != nil {
		return err
	}
	if adopted, err := r.adopt(ctx, spec); err != nil || adopted {
		return err
	}
	if len(r.past.recovery[step]) == 0 {
		if err := r.recovery(step, "the ramdisk is gone: boot it again"); err != nil {
			return err
		}
	}
	return r.bootRamdisk(ctx, spec, step)
}

// errSilent is internal: the limit has passed.
var errSilent = errors.New("silent")

func (r *run) awaitResult(ctx context.Context, step metal.Step, taskID string, lim limit, late metal.Code) (*agentv1.CompleteTaskRequest, error) {
	began := r.deps.Now()
	tick := time.NewTicker(r.deps.Timing.PowerPoll)
	defer tick.Stop()
	var lastRead time.Time
	for {
		changed := r.ramdisk.Changed()
		if result := r.ramdisk.Result(taskID); result != nil {
			return result, nil
		}
		if err := r.ramdisk.Failure(); err != nil {
			return nil, err
		}
		p, moved := r.ramdisk.LastProgress()
		if p.Task == taskID {
			r.deps.Progress(Progress{Operation: r.operation, Attempt: r.attempt, Step: step, Done: p.Done, Total: p.Total, Message: p.Message})
		}
		if err := r.overdue(began, moved, lim); err != nil {
			return nil, metal.Errorf(late, "step %s: no progress for %s", step, max(lim.quiet, lim.total))
		}
		if now := r.deps.Now(); r.silentSince(began, now) && now.Sub(lastRead) >= r.deps.Timing.Silence {
			lastRead = now
			if r.readsOff(ctx) {
				return nil, metal.Errorf(late, "step %s: the server lost its power", step)
			}
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (r *run) overdue(began, moved time.Time, lim limit) error {
	now := r.deps.Now()
	if moved.Before(began) {
		moved = began
	}
	if lim.total > 0 && now.Sub(began) >= lim.total || lim.quiet > 0 && now.Sub(moved) >= lim.quiet {
		return errSilent
	}
	return nil
}

func (r *run) silentSince(began, now time.Time) bool {
	seen := r.ramdisk.LastSeen()
	if seen.Before(began) {
		seen = began
	}
	return now.Sub(seen) >= r.deps.Timing.Silence
}

// readsOff is an observation: it needs no lease, and an error is no news.
func (r *run) readsOff(ctx context.Context) bool {
	spec, err := r.spec()
	if err != nil {
		return false
	}
	power, err := r.controller(spec).Power(ctx)
	return err == nil && power == metal.PowerOff
}
