package operation

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"bmc/agent/oob"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/manifest"
	"bmc/metal"
)

// bootDisk makes the disk the boot device for good and lets the ramdisk start
// what is on it: the image's own kernel by kexec where that may be, else by a
// reboot. A controller that cannot keep the device is fine: the agent answers a
// network boot of this machine with its local disk.
func (r *run) bootDisk(ctx context.Context, spec *agentv1.ServerSpec, rep *agentv1.ReportStepRequest) error {
	const step = metal.StepBootDisk
	if _, restarting := r.begun(step, "restart-off"); !restarting && r.ramdisk.Adoptable() {
		adopted, err := r.adopt(ctx, spec)
		if err != nil {
			return err
		}
		if _, elsewhere := r.begunElsewhere(step); elsewhere && !adopted {
			return r.hasLeft(ctx, spec)
		}
	}
	if err := r.setDisk(ctx, spec); err != nil {
		return err
	}
	if !r.ramdisk.Alive() {
		rep.BootMethod = metal.BootFirmware
		return r.restartFromDisk(ctx, spec, step, "restart", "the ramdisk is gone: off, on, boot from disk")
	}
	started, err := r.kexec(ctx, spec, rep)
	if err != nil || started {
		return err
	}
	rep.BootMethod = metal.BootFirmware
	reboot := &agentv1.Task{Id: r.taskID(step), Kind: &agentv1.Task_Reboot{Reboot: &agentv1.RebootTask{}}}
	let, err := r.sendOff(ctx, reboot)
	if err != nil || let {
		return err
	}
	return r.restartFromDisk(ctx, spec, step, "restart", "the ramdisk did not reboot: off, on, boot from disk")
}

// kexec has the ramdisk start the image's kernel. Where that may not be, or the
// ramdisk refuses, the report says why and nothing has happened.
func (r *run) kexec(ctx context.Context, spec *agentv1.ServerSpec, rep *agentv1.ReportStepRequest) (started bool, err error) {
	const step = metal.StepBootDisk
	if _, restarting := r.begun(step, "restart-off"); restarting {
		return false, nil
	}
	disk := r.rootDisk()
	if why := r.noKexec(disk); why != "" {
		rep.Message = "started by firmware: " + why
		return false, nil
	}
	task := &agentv1.Task{Id: r.taskID(step) + "/kexec", Kind: &agentv1.Task_Kexec{Kexec: &agentv1.KexecTask{
		Manifest: r.assigned.GetDeploy().GetManifest(), RootDisk: disk,
	}}}
	started, err = r.sendOff(ctx, task)
	refused := r.ramdisk.Result(task.Id)
	switch {
	case err != nil:
		return false, err
	case started:
		rep.BootMethod, rep.Message = metal.BootKexec, "started by kexec"
		return true, nil
	case refused == nil: // it calls, and is still at it
		rep.BootMethod = metal.BootFirmware
		return true, r.restartFromDisk(ctx, spec, step, "restart", "the ramdisk did not start the image's kernel: off, on, boot from disk")
	}
	rep.Message = "started by firmware: " + refused.GetMessage()
	if len(r.past.recovery[step]) == 0 {
		return false, r.recovery(step, "no kexec (%s): reboot", refused.GetMessage())
	}
	return false, nil
}

// noKexec says why the image must be started by firmware; "" when it need not.
func (r *run) noKexec(rootDisk string) string {
	d := r.assigned.GetDeploy()
	if why := d.GetKexecOff(); why != "" {
		return why
	}
	m, err := manifest.Parse(d.GetManifest())
	switch {
	case err != nil:
		return "the image's manifest is not known any more"
	case m.Kernel == "":
		return "the image names no kernel"
	case rootDisk == "":
		return "the disk that the image was written to is not known any more"
	}
	return ""
}

// sendOff grants the ramdisk a task that ends it, and says whether it has left. A
// task whose result is there has failed, or has had its effect.
func (r *run) sendOff(ctx context.Context, task *agentv1.Task) (left bool, err error) {
	if r.ramdisk.Result(task.GetId()) == nil {
		if err := r.guarded(ctx, func(context.Context) error { return r.ramdisk.Grant(task) }); err != nil {
			return false, err
		}
	}
	return r.letGo(ctx, task.GetId())
}

// hasLeft takes the word of a ramdisk's silence: another agent has set the
// device and let it reboot. The next step finds out whether it did. A machine
// that reads off has not.
func (r *run) hasLeft(ctx context.Context, spec *agentv1.ServerSpec) error {
	off := false
	err := r.guarded(ctx, func(ctx context.Context) error {
		power, err := r.controller(spec).Power(ctx)
		off = power == metal.PowerOff
		return err
	})
	if err != nil || !off {
		return err
	}
	return r.restartFromDisk(ctx, spec, metal.StepBootDisk, "restart", "the server reads off: on, boot from disk")
}

// setDisk puts the disk first for good, and once where for good is refused.
func (r *run) setDisk(ctx context.Context, spec *agentv1.ServerSpec) error {
	efi := r.firmware(spec) == "uefi"
	return r.guarded(ctx, func(ctx context.Context) error {
		c := r.controller(spec)
		err := c.SetBootDevice(ctx, oob.DeviceDisk, true, efi)
		if metal.CodeOf(err) != metal.CodeOOBRefused {
			return err
		}
		if err := c.SetBootDevice(ctx, oob.DeviceDisk, false, efi); metal.CodeOf(err) != metal.CodeOOBRefused {
			return err
		}
		return nil
	})
}

// letGo waits until the ramdisk has completed a task that ends it. One that has
// called no more for half of that time has rebooted and its answer was lost;
// the next step finds out. One that still calls is stuck.
func (r *run) letGo(ctx context.Context, taskID string) (bool, error) {
	began := r.deps.Now()
	tick := time.NewTicker(r.deps.Timing.PowerPoll)
	defer tick.Stop()
	for {
		changed := r.ramdisk.Changed()
		if result := r.ramdisk.Result(taskID); result != nil {
			return result.GetReason() == "", nil
		}
		if err := r.ramdisk.Failure(); err != nil {
			return false, err
		}
		if r.deps.Now().Sub(began) >= r.deps.Timing.Reboot {
			return r.deps.Now().Sub(r.ramdisk.LastSeen()) >= r.deps.Timing.Reboot/2, nil
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// restartFromDisk is a rung of the ladder: off, on, boot from disk; at most
// once for each act of a step, also over takeovers: it is reported before it is
// climbed.
func (r *run) restartFromDisk(ctx context.Context, spec *agentv1.ServerSpec, step metal.Step, act, why string) error {
	offAct, onAct := act+"-off", act+"-on"
	elsewhere := r.past.former.step == step && slices.Contains(r.past.former.rungs, why)
	if _, before := r.begun(step, offAct); !before && !elsewhere {
		if err := r.recovery(step, "%s", why); err != nil {
			return err
		}
		if err := r.intent(step, offAct); err != nil {
			return err
		}
	}
	if _, before := r.begun(step, onAct); !before && !elsewhere {
		if err := r.report(ctx, &agentv1.ReportStepRequest{Step: string(step), Phase: "started", Recovery: r.rungs(step)}); err != nil {
			return err
		}
		if err := r.setPower(ctx, spec, metal.PowerOff); err != nil {
			return err
		}
		if err := r.setDisk(ctx, spec); err != nil {
			return err
		}
	}
	if _, before := r.begun(step, onAct); !before {
		if err := r.intent(step, onAct); err != nil {
			return err
		}
	}
	return r.setPower(ctx, spec, metal.PowerOn)
}

// ready waits for the operating system's proof: a handshake that shows an SSH
// host key recorded at its installation.
func (r *run) ready(ctx context.Context, spec *agentv1.ServerSpec, rep *agentv1.ReportStepRequest) error {
	const step = metal.StepReady
	keys := r.hostKeys(spec)
	if r.readyBy(spec) == manifest.ReadyNone || len(keys) == 0 {
		rep.Message = "the image promises no proof of readiness"
		return nil
	}
	address := spec.GetAddress()
	if a, _, ok := strings.Cut(r.assigned.GetDeploy().GetAddress(), "/"); ok {
		address = a
	}
	began := r.deps.Now()
	if at, before := r.begun(step, "wait"); before {
		began = at
	} else if err := r.intent(step, "wait"); err != nil {
		return err
	}
	lastErr := errors.New("not asked yet")
	for r.deps.Now().Sub(began) < r.deps.Timing.Ready {
		if lastErr = r.deps.Ready.Probe(ctx, address, keys); lastErr == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, restarted := r.begun(step, "restart-on"); !restarted && r.deps.Now().Sub(began) >= r.deps.Timing.Ready/2 {
			if err := r.restartFromDisk(ctx, spec, step, "restart", "not ready in half the time: off, on, boot from disk"); err != nil {
				return err
			}
		}
		if err := sleep(ctx, r.deps.Timing.ReadyPoll); err != nil {
			return err
		}
	}
	return &metal.Error{
		Code: metal.CodeNotReady, Err: lastErr,
		Message: "the operating system at " + address + " did not show its recorded SSH host key within " + r.deps.Timing.Ready.String(),
	}
}

func (r *run) hostKeys(spec *agentv1.ServerSpec) []string {
	if in := r.past.done[metal.StepConfigure].GetInstalled(); len(in.GetSshHostKeys()) > 0 {
		return in.GetSshHostKeys()
	}
	var keys []string
	for line := range strings.Lines(spec.GetSshHostKey()) {
		if line = strings.TrimSpace(line); line != "" {
			keys = append(keys, line)
		}
	}
	return keys
}

// readyBy is the image's promise: of the manifest that is being deployed, else
// of the one that the server was rented with.
func (r *run) readyBy(spec *agentv1.ServerSpec) string {
	if data := r.assigned.GetDeploy().GetManifest(); len(data) > 0 {
		if m, err := manifest.Parse(data); err == nil {
			return m.Ready
		}
	}
	return spec.GetReady()
}
