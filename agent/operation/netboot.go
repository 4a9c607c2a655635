package operation

import (
	"context"
	"fmt"
	"time"

	"bmc/agent/oob"
	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// networkBoots is how often a machine is started from the network before the
// step fails: once, and two rungs of the recovery ladder.
const networkBoots = 3

// bootRamdisk has the machine boot the ramdisk and waits for that very
// machine's hello, and for its first call: until it has its certificate, no other
// agent could take it over. Each start is off, one-shot network boot, on; an enrolment's
// happen at the rack's gate until its own machine was seen.
func (r *run) bootRamdisk(ctx context.Context, spec *agentv1.ServerSpec, step metal.Step) error {
	if r.ramdisk.Called() {
		return nil
	}
	defer r.leave()
	suspects := make(map[string]bool)
	for n := range networkBoots {
		if _, later := r.begun(step, onAct(n+1)); later {
			continue
		}
		if err := r.enter(ctx, step); err != nil {
			return err
		}
		s, err := r.startNetworkBoot(ctx, spec, step, n)
		if err != nil {
			return err
		}
		w := &watch{first: make(map[string]time.Time), suspects: suspects}
		hello, strangers, err := r.awaitHello(ctx, s, w)
		if err != nil || hello {
			return err
		}
		if mac, ok := w.verdict(s, strangers); ok {
			return r.giveUpMismatch(ctx, spec, mac, strangers[mac])
		}
	}
	return r.giveUp(metal.Errorf(metal.CodeNoNetboot, "%s (%s) did not boot the ramdisk from the network in %d starts",
		spec.GetName(), firstMAC(spec), networkBoots))
}

func onAct(start int) string { return fmt.Sprintf("on-%d", start) }

// startNetworkBoot brings the machine to a network boot of its own and returns
// when it got power. The intent is journalled between off and on: with it, a
// machine that reads on has been started by us and is not started again.
func (r *run) startNetworkBoot(ctx context.Context, spec *agentv1.ServerSpec, step metal.Step, n int) (s start, err error) {
	c := r.controller(spec)
	act := onAct(n)
	efi := r.firmware(spec) == "uefi"
	if _, before := r.begun(step, act); !before && n > 0 {
		if err := r.recovery(step, "network boot again, %d of %d: off, on", n, networkBoots-1); err != nil {
			return s, err
		}
	}
	err = r.guarded(ctx, func(ctx context.Context) error {
		power, err := c.Power(ctx)
		if _, before := r.begun(step, act); before {
			if err != nil {
				return err
			}
			if power == metal.PowerOn {
				r.ramdisk.Admit(true)
				return nil
			}
		} else if err := r.prepareStart(ctx, c, &s, n, power); err != nil {
			return err
		}
		if err := c.SetBootDevice(ctx, oob.DevicePXE, false, efi); err != nil {
			return err
		}
		if _, before := r.begun(step, act); !before {
			if err := r.intent(step, act); err != nil {
				return err
			}
		}
		r.ramdisk.Admit(true)
		return c.SetPower(ctx, metal.PowerOn)
	})
	s.since, _ = r.begun(step, act)
	return s, err
}

// prepareStart has the machine off, notes who booted nevertheless, and opens
// the boot intent.
func (r *run) prepareStart(ctx context.Context, c oob.Controller, s *start, n int, power metal.Power) error {
	off := r.offSince()
	if n > 0 || power != metal.PowerOff || off.IsZero() {
		if err := c.SetPower(ctx, metal.PowerOff); err != nil {
			return err
		}
		off = r.deps.Now()
	}
	r.observeOff(s, off)
	return r.ramdisk.Arm()
}

// awaitHello waits for the machine's hello. Without one it returns the
// strangers that booted in its stead, when it was not seen itself.
func (r *run) awaitHello(ctx context.Context, s start, w *watch) (hello bool, strangers map[string]Stranger, err error) {
	deadline := r.deps.Now().Add(r.deps.Timing.BootWait)
	if d := s.since.Add(r.deps.Timing.BootWait); d.After(r.deps.Now()) {
		deadline = d
	}
	tick := time.NewTicker(r.deps.Timing.PowerPoll)
	defer tick.Stop()
	for {
		changed := r.ramdisk.Changed()
		if err := r.ramdisk.Failure(); err != nil {
			return false, nil, err
		}
		if r.ramdisk.Called() {
			return true, nil, nil
		}
		if r.deps.Strange.Seen(r.server, s.since) {
			r.leave() // our power-on, our machine
		}
		now := r.deps.Now()
		strangers = r.strangers(s)
		if w.enough(now, strangers, r.deps.Timing.StrangerWait) || !now.Before(deadline) {
			return false, strangers, nil
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return false, nil, context.Cause(ctx)
		}
	}
}

// giveUpMismatch leaves a stranger that is about to be enrolled off: it must not
// boot by itself while its own operation has its turn. Any other keeps its power.
func (r *run) giveUpMismatch(ctx context.Context, spec *agentv1.ServerSpec, mac string, s Stranger) error {
	if s.State == metal.StateEnrolling {
		if err := r.setPower(ctx, spec, metal.PowerOff); err != nil {
			r.log.Warn("the stranger was left on", "mac", mac, "err", err)
		}
	}
	return r.giveUp(mismatch(spec, mac, s))
}

// giveUp closes the boot intent and returns why.
func (r *run) giveUp(why error) error {
	if err := r.ramdisk.Disarm(); err != nil {
		return err
	}
	return why
}

// firmware is how the machine boots: what its ramdisk said, else the inventory.
func (r *run) firmware(spec *agentv1.ServerSpec) string {
	if f := r.ramdisk.Firmware(); f != "" {
		return f
	}
	return spec.GetFirmware()
}

func firstMAC(spec *agentv1.ServerSpec) string {
	if len(spec.GetMacs()) == 0 {
		return ""
	}
	return spec.GetMacs()[0]
}
