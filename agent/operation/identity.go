package operation

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// offMargin is how long a machine whose controller reads off may still be heard.
const offMargin = 5 * time.Second

// start is one network boot: what was seen around its power-on.
type start struct {
	since  time.Time       // of the power-on
	before map[string]bool // came while the controller read off: not behind it
	stray  bool            // so did our own machine: it is not behind it either
}

// observeOff notes who came to boot since the controller read off.
func (r *run) observeOff(s *start, off time.Time) {
	off = off.Add(offMargin)
	s.before = make(map[string]bool)
	for mac := range r.deps.Strange.Since(r.server, off) {
		s.before[mac] = true
	}
	s.stray = r.unproven() && r.deps.Strange.Seen(r.server, off)
}

// offSince is when the step before found the controller reading off; zero when
// it is not known.
func (r *run) offSince() time.Time {
	if rep := r.past.done[metal.StepPowerOff]; rep != nil {
		return rep.GetAt().AsTime()
	}
	return time.Time{}
}

// watch tells strangers that boot in our machine's stead from those that just
// boot, too.
type watch struct {
	first    map[string]time.Time // when each was noticed in this start
	suspects map[string]bool      // came in an earlier start as well
}

// strangers is who has come since the power-on and not before it; nobody once
// our own machine has.
func (r *run) strangers(s start) map[string]Stranger {
	if r.deps.Strange.Seen(r.server, s.since) {
		return nil
	}
	out := r.deps.Strange.Since(r.server, s.since)
	maps.DeleteFunc(out, func(mac string, _ Stranger) bool { return s.before[mac] })
	return out
}

// enough says whether our machine has been silent for long enough beside a
// stranger. One that is not enrolled may be another port of our own machine,
// which is asked first: it gets twice the time. One that has done so before gets
// a quarter.
func (w *watch) enough(now time.Time, strangers map[string]Stranger, wait time.Duration) bool {
	for mac, s := range strangers {
		if _, noticed := w.first[mac]; !noticed {
			w.first[mac] = now
		}
		limit := wait
		switch {
		case w.suspects[mac]:
			limit = wait / 4
		case s.Name == "":
			limit = 2 * wait
		}
		if now.Sub(w.first[mac]) >= limit {
			return true
		}
	}
	return false
}

// verdict is the stranger that has come in this start and an earlier one; also
// one that has come in this start, when our own machine boots while its
// controller reads off.
func (w *watch) verdict(s start, strangers map[string]Stranger) (string, bool) {
	for _, mac := range slices.Sorted(maps.Keys(strangers)) {
		if w.suspects[mac] || s.stray {
			return mac, true
		}
		w.suspects[mac] = true
	}
	return "", false
}

// mismatch is the failure for a stranger.
func mismatch(spec *agentv1.ServerSpec, mac string, s Stranger) error {
	other := mac
	hint := "if it is another network port of the same server, have the firmware boot from " + firstMAC(spec) + " first"
	if s.Name != "" {
		other = fmt.Sprintf("%s (%s)", s.Name, mac)
		hint = fmt.Sprintf("correct the controller's address of %s, and look at that of %s: they may be swapped", spec.GetName(), s.Name)
	}
	return &metal.Error{
		Code: metal.CodeBMCMismatch,
		Message: fmt.Sprintf("management controller %s of %s powers another machine: %s booted instead of %s; no disk was touched; %s",
			spec.GetOob().GetAddress(), spec.GetName(), other, firstMAC(spec), hint),
	}
}

// powerOffEnd turns the server off. An enrolment's ramdisk falls silent with
// it; one that still calls runs on a machine that has another controller. One that
// another agent has met must be heard here first, whatever its controller reads.
func (r *run) powerOffEnd(ctx context.Context, spec *agentv1.ServerSpec) error {
	if r.unproven() && r.ramdisk.Adoptable() {
		if err := r.guarded(ctx, r.awaitCall); err != nil {
			return err
		}
	}
	if err := r.setPower(ctx, spec, metal.PowerOff); err != nil {
		return err
	}
	if !r.unproven() || !r.ramdisk.Alive() {
		return nil
	}
	quiet := r.deps.Timing.Quiet
	if err := sleep(ctx, quiet/2); err != nil { // what was on its way
		return err
	}
	off := r.deps.Now()
	r.ramdisk.Poll()
	if err := sleep(ctx, quiet); err != nil {
		return err
	}
	if r.ramdisk.LastSeen().After(off) {
		return metal.Errorf(metal.CodeBMCMismatch, "management controller %s of %s powers another machine: it reads off, but %s (%s) still runs",
			spec.GetOob().GetAddress(), spec.GetName(), spec.GetName(), firstMAC(spec))
	}
	return nil
}
