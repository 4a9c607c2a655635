package fsm

import (
	"fmt"

	"bmc/fsm/lifecycle"
	"bmc/fsm/logpb"
	"bmc/metal"
)

// warmLevel is the feature level with which servers may wait in the ramdisk.
const warmLevel = 3

// setRackWarm changes how many servers of a rack shall wait in the ramdisk. Who
// was given up gets all its tries again.
func (a *applier) setRackWarm(m *logpb.SetRackWarm, r *Result) *metal.Error {
	rack, ok := a.Rack(m.GetRackId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no rack %q", m.GetRackId()).WithHint("bmc rack list")
	}
	a.target, r.ID = rack.Name, rack.ID
	changed := *rack
	changed.Warm = int(m.GetWarm())
	if err := changed.Validate("rack"); err != nil {
		return failure(err)
	}
	a.PutRack(&changed)
	a.note("rack.warm", rack.Name, "", "servers of rack "+rack.Name+" that wait in the ramdisk: "+metal.WarmText(changed.Warm))
	a.tryAgain(rack.ID)
	return nil
}

// tryAgain forgets what was in the way of a rack's servers.
func (a *applier) tryAgain(rackID string) {
	for _, was := range a.inRack(rackID) {
		if was.Warm == nil || was.Warm.Tries == 0 || was.Warm.Waits() {
			continue
		}
		s := *was
		setWarm(a, &s, &metal.Warm{})
		a.PutServer(&s)
	}
}

// warmServer starts one of the system's own operations. How many servers shall
// wait is the leader's to count; here it is made sure that this one may.
func (a *applier) warmServer(m *logpb.WarmServer, r *Result) *metal.Error {
	was, ok := a.Server(m.GetServerId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no server %q", m.GetServerId())
	}
	a.target = was.Name
	if was.Operation != "" {
		return metal.Errorf(metal.CodeBusy, "%s is busy with operation %s", was.Name, was.Operation)
	}
	kind, ev := metal.KindWarm, lifecycle.EventWarm
	switch {
	case m.GetCold() && (!was.Warm.DueCold(a.now) || was.Power.Observed == metal.PowerOff):
		return metal.Errorf(metal.CodeConflict, "%s is not to be switched off now", was.Name)
	case m.GetCold():
		kind, ev = metal.KindCool, lifecycle.EventCool
	case !was.Warm.Due(a.now):
		return metal.Errorf(metal.CodeConflict, "%s failed to come warm %d times", was.Name, was.Warm.Tries)
	case !Rentable(&a.View, was):
		return metal.Errorf(metal.CodeConflict, "%s cannot be rented: it need not wait", was.Name)
	}
	s := *was
	kept := s.Warm
	o, err := a.start(&s, kind, m.GetOperationId(), ev)
	if err != nil {
		return err
	}
	// Its power is about to go: nobody shall build on that ramdisk any more.
	setWarm(a, &s, without(kept))
	if kind == metal.KindWarm {
		s.Power.Wanted = metal.PowerOn
	} else {
		s.Power.Wanted = metal.PowerOff
	}
	a.PutServer(&s)
	r.ID, r.OperationID, r.Value = s.ID, o.ID, o
	return nil
}

// without is what is remembered of a server that waits no more; its tries only
// while they count.
func without(w *metal.Warm) *metal.Warm {
	out := &metal.Warm{}
	if w != nil {
		out.Tries, out.Next, out.Problem = w.Tries, w.Next, w.Problem
	}
	return out
}

// setWarm puts a server's warmth and the condition that goes with it, on a copy.
func setWarm(a *applier, s *metal.Server, w *metal.Warm) {
	s.Warm = w
	if w == nil || w.Tries == 0 || w.Waits() {
		clearCondition(s, metal.ConditionWarmFailed)
		return
	}
	message := fmt.Sprintf("%s (try %d of %d)", w.Problem, min(w.Tries, metal.MaxWarmTries), metal.MaxWarmTries)
	if since, ok := s.Conditions[metal.ConditionWarmFailed]; !ok || since.Message != message {
		a.raise(s, metal.ConditionWarmFailed, message)
	}
}

// waits records the ramdisk in which a server waits from now on.
func (a *applier) waits(s *metal.Server, bootID, ramdisk string) {
	if bootID == "" {
		a.notWarm(s, "its agent did not say which boot of the ramdisk waits")
		return
	}
	w := without(s.Warm)
	w.BootID, w.Ramdisk, w.Since = bootID, shorten(ramdisk), a.now
	setWarm(a, s, w)
	a.event("server.warm", s, nil, "", s.Name+" waits in the ramdisk "+w.Ramdisk)
}

// notWarm counts a try that has failed, or a ramdisk that waits no more.
func (a *applier) notWarm(s *metal.Server, why string) {
	w := without(s.Warm)
	if s.Warm.Waits() && a.now.Sub(s.Warm.Since) >= metal.WarmStable {
		w.Tries = 0
	}
	w.Tries, w.Problem = w.Tries+1, shorten(why)
	w.Next = a.now.Add(metal.WarmPause(w.Tries))
	message := s.Name + " does not wait in the ramdisk: " + w.Problem
	if w.Tries >= metal.MaxWarmTries {
		message += "; it is left cold after " + fmt.Sprint(w.Tries) + " tries"
	}
	setWarm(a, s, w)
	a.event("server.cold", s, nil, "", message)
}

// chill takes warmth from a server whose controller reads off, as it was told to.
func chill(a *applier, s *metal.Server) {
	switch {
	case s.Warm == nil:
	case s.Warm.Tries == 0:
		setWarm(a, s, nil)
	default:
		setWarm(a, s, without(s.Warm))
	}
}

// preempt ends one of the system's own operations on a server that somebody
// wants now, on a copy of the server. Whatever starts reads the machine off first.
func (a *applier) preempt(s *metal.Server) {
	old, ok := a.Operation(s.Operation)
	if !ok || old.State.Ended() || !old.Kind.Yields() {
		return
	}
	o := *old
	a.cutShort(&o, s, "it gave way to what "+a.h.GetPrincipal()+" asked for")
	a.PutOperation(&o)
}

// coldAgain forgets who waits in a rack: after a restored backup a ramdisk of
// before may have done more than the backup knows of.
func (a *applier) coldAgain(rackID string) {
	if a.Meta().FeatureLevel < warmLevel {
		return
	}
	for _, s := range a.inRack(rackID) {
		if s.Warm == nil {
			continue
		}
		changed := *s
		setWarm(a, &changed, &metal.Warm{})
		a.PutServer(&changed)
	}
}
