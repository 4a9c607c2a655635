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
// machine's hello. Each start is off, one-shot network boot, on.
func (r *run) bootRamdisk(ctx context.Context, spec *agentv1.ServerSpec, step metal.Step) error {
	if r.ramdisk.Alive() {
		return nil // it said so before a restart of the agent
	}
	suspects := make(map[string]int)
	for start := range networkBoots {
		if _, later := r.begun(step, onAct(start+1)); later {
			continue
		}
		since, err := r.startNetworkBoot(ctx, spec, step, start)
		if err != nil {
			return err
		}
		hello, strangers, err := r.awaitHello(ctx, since)
		if err != nil || hello {
			return err
		}
		for _, mac := range strangers {
			if suspects[mac]++; suspects[mac] > 1 {
				return r.giveUp(metal.Errorf(metal.CodeBMCMismatch,
					"management controller %s of %s powers another machine: twice %s asked for an address instead of %s",
					spec.GetOob().GetAddress(), spec.GetName(), mac, firstMAC(spec)))
			}
		}
	}
	return r.giveUp(metal.Errorf(metal.CodeNoNetboot, "%s (%s) did not boot the ramdisk from the network in %d starts",
		spec.GetName(), firstMAC(spec), networkBoots))
}

func onAct(start int) string { return fmt.Sprintf("on-%d", start) }

// startNetworkBoot brings the machine to a network boot of its own and returns
// when it got power. The intent is journalled between off and on: with it, a
// machine that reads on has been started by us and is not started again.
func (r *run) startNetworkBoot(ctx context.Context, spec *agentv1.ServerSpec, step metal.Step, start int) (since time.Time, err error) {
	c := r.controller(spec)
	act := onAct(start)
	efi := r.firmware(spec) == "uefi"
	if _, before := r.begun(step, act); !before && start > 0 {
		if err := r.recovery(step, "network boot again, %d of %d: off, on", start, networkBoots-1); err != nil {
			return since, err
		}
	}
	err = r.guarded(ctx, func(ctx context.Context) error {
		if _, before := r.begun(step, act); before {
			power, err := c.Power(ctx)
			if err != nil || power == metal.PowerOn {
				return err
			}
		} else {
			if err := c.SetPower(ctx, metal.PowerOff); err != nil {
				return err
			}
			if err := r.ramdisk.Arm(); err != nil {
				return err
			}
		}
		if err := c.SetBootDevice(ctx, oob.DevicePXE, false, efi); err != nil {
			return err
		}
		if _, before := r.begun(step, act); !before {
			if err := r.intent(step, act); err != nil {
				return err
			}
		}
		return c.SetPower(ctx, metal.PowerOn)
	})
	since, _ = r.begun(step, act)
	return since, err
}

// awaitHello waits for the machine's hello. Without one it returns the MACs of
// strangers that booted in its stead, when it was not seen itself.
func (r *run) awaitHello(ctx context.Context, since time.Time) (hello bool, strangers []string, err error) {
	deadline := r.deps.Now().Add(r.deps.Timing.BootWait)
	if d := since.Add(r.deps.Timing.BootWait); d.After(r.deps.Now()) {
		deadline = d
	}
	var firstStranger time.Time
	tick := time.NewTicker(r.deps.Timing.PowerPoll)
	defer tick.Stop()
	for {
		changed := r.ramdisk.Changed()
		if err := r.ramdisk.Failure(); err != nil {
			return false, nil, err
		}
		if r.ramdisk.Alive() {
			return true, nil, nil
		}
		now := r.deps.Now()
		strangers = strangers[:0]
		if !r.deps.Strange.Seen(r.server, since) {
			for mac := range r.deps.Strange.Since(r.server, since) {
				strangers = append(strangers, mac)
			}
		}
		if len(strangers) > 0 && firstStranger.IsZero() {
			firstStranger = now
		}
		if !now.Before(deadline) || len(strangers) > 0 && now.Sub(firstStranger) >= r.deps.Timing.StrangerWait {
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
