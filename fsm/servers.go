package fsm

import (
	"maps"
	"slices"

	"bmc/fsm/lifecycle"
	"bmc/fsm/logpb"
	"bmc/metal"
)

// lookup finds the server of a command and makes sure that it is still what the
// leader saw: between resolving a name and applying the command the machine may
// have changed hands.
func (a *applier) lookup(ref *logpb.ServerRef) (*metal.Server, *metal.Error) {
	s, ok := a.Server(ref.GetServerId())
	if !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "there is no server %q", ref.GetServerId()).WithHint("bmc list")
	}
	a.target = s.Name
	if s.Rental != nil {
		a.target = s.Rental.Name
	}
	if name := ref.GetRental(); name != "" && (s.Rental == nil || s.Rental.Name != name || s.Rental.Project != ref.GetProject()) {
		return nil, metal.Errorf(metal.CodeNotFound, "there is no server %q any more", name).WithHint("bmc list")
	}
	if v := ref.GetResourceVersion(); v != 0 && v != s.Revision {
		return nil, metal.Errorf(metal.CodeConflict, "%s has changed since: it is at version %d, not %d", a.target, s.Revision, v).
			WithHint("bmc get %s", a.target)
	}
	return s, nil
}

// admit refuses a verb that the state does not admit, naming what it does, and
// any verb while an operation is under way that is not the system's own.
func (a *applier) admit(s *metal.Server, verb lifecycle.Verb) *metal.Error {
	if err := lifecycle.Admit(s.State, s.WasAvailable, verb); err != nil {
		e := failure(err)
		e.Message = a.target + ": " + e.Message
		return e.WithHint("bmc explain %s", a.target)
	}
	return a.idle(s)
}

func (a *applier) idle(s *metal.Server) *metal.Error {
	o, ok := a.Operation(s.Operation)
	if s.Operation == "" || !ok || o.Kind.Yields() {
		return nil
	}
	return metal.Errorf(metal.CodeBusy, "%s is busy: operation %s (%s) is %s", a.target, o.ID, o.Kind, o.State).
		WithHint("bmc operation watch %s", o.ID)
}

// move takes a transition of the table on a copy that the caller puts.
func (a *applier) move(s *metal.Server, e lifecycle.Event) *metal.Error {
	next, err := lifecycle.Next(s.State, e)
	if err != nil {
		return failure(err)
	}
	if next != s.State {
		s.State, s.StateSince = next, a.now
	}
	return nil
}

// raise and clear change a condition on a copy of a server.
func (a *applier) raise(s *metal.Server, c metal.Condition, message string) {
	s.Conditions = maps.Clone(s.Conditions)
	if s.Conditions == nil {
		s.Conditions = map[metal.Condition]metal.ConditionStatus{}
	}
	s.Conditions[c] = metal.ConditionStatus{Since: a.now, Message: message}
}

func clearCondition(s *metal.Server, c metal.Condition) {
	if _, ok := s.Conditions[c]; ok {
		s.Conditions = maps.Clone(s.Conditions)
		delete(s.Conditions, c)
	}
}

func (a *applier) observed(s *metal.Server, p metal.Power) {
	s.Power.Observed, s.Power.ObservedAt = p, a.now
}

func (a *applier) createServer(m *logpb.CreateServer, r *Result) *metal.Error {
	a.target = m.GetName()
	p, err := plan(&a.View, m)
	if err != nil {
		return err
	}
	s := *p.Server
	s.Rental = &metal.Rental{Name: m.GetName(), Project: m.GetProject(), ImageID: p.Image.ID, ImageName: p.Image.Name,
		User: p.Image.User, SSHKeys: p.Keys, UserData: m.GetUserData(), Since: a.now, Expires: logpb.Time(m.GetExpires())}
	s.Power.Wanted = metal.PowerOn
	o, err := a.start(&s, metal.KindDeploy, m.GetOperationId(), lifecycle.EventCreate)
	if err != nil {
		return err
	}
	a.event("server.created", &s, o, "", s.Rental.Name+" gets "+s.Name+" with "+p.Image.Name)
	a.PutServer(&s)
	r.ID, r.OperationID, r.Value = s.ID, o.ID, o
	return nil
}

// destroyServer ends a rental: quota and name are free at once, the machine is
// held until its management controller has read off.
func (a *applier) destroyServer(m *logpb.DestroyServer, r *Result) *metal.Error {
	was, err := a.lookup(m.GetServer())
	if err != nil {
		return err
	}
	if was.Holds[metal.HoldProtected] {
		return metal.Errorf(metal.CodeProtected, "%s is protected", a.target).WithHint("bmc unprotect %s", a.target)
	}
	if err := a.admit(was, lifecycle.VerbDestroy); err != nil {
		return err
	}
	if was.Rental == nil {
		return metal.Errorf(metal.CodeWrongState, "%s is not rented, there is nothing to release", a.target).WithHint("bmc explain %s", a.target)
	}
	s := *was
	rental := *was.Rental
	s.Rental = &rental
	o, err := a.start(&s, metal.KindRelease, m.GetOperationId(), lifecycle.EventDestroy)
	if err != nil {
		return err
	}
	s.Rental.Released = true
	s.Power.Wanted = metal.PowerOff
	a.event("server.releasing", &s, o, "", s.Rental.Name+" is released; "+s.Name+" is switched off and wiped")
	a.PutServer(&s)
	r.ID, r.OperationID, r.Value = s.ID, o.ID, o
	return nil
}

func (a *applier) setPower(m *logpb.SetPower, r *Result) *metal.Error {
	wanted := metal.Power(m.GetWanted())
	if wanted != metal.PowerOn && wanted != metal.PowerOff {
		return metal.Invalid("wanted", "%q is not on or off", m.GetWanted())
	}
	return a.onActive(m.GetServer(), metal.KindPower, m.GetOperationId(), lifecycle.VerbPower, lifecycle.EventPower, wanted, m.GetHard(), r)
}

func (a *applier) restartServer(m *logpb.RestartServer, r *Result) *metal.Error {
	return a.onActive(m.GetServer(), metal.KindRestart, m.GetOperationId(), lifecycle.VerbRestart, lifecycle.EventRestart, metal.PowerOn, m.GetHard(), r)
}

func (a *applier) onActive(ref *logpb.ServerRef, kind metal.OperationKind, op string, verb lifecycle.Verb, ev lifecycle.Event, wanted metal.Power, hard bool, r *Result) *metal.Error {
	was, err := a.lookup(ref)
	if err != nil {
		return err
	}
	if err := a.admit(was, verb); err != nil {
		return err
	}
	s := *was
	o, err := a.start(&s, kind, op, ev)
	if err != nil {
		return err
	}
	o.WantedPower, o.Hard = wanted, hard
	a.PutOperation(o)
	s.Power.Wanted = wanted
	a.event("server."+string(kind), &s, o, "", string(kind)+" was asked for")
	a.PutServer(&s)
	r.ID, r.OperationID, r.Value = s.ID, o.ID, o
	return nil
}

func (a *applier) inspectServer(m *logpb.InspectServer, r *Result) *metal.Error {
	return a.onIdle(m.GetServer(), metal.KindInspect, m.GetOperationId(), lifecycle.VerbInspect, lifecycle.EventInspect, r)
}

func (a *applier) cleanServer(m *logpb.CleanServer, r *Result) *metal.Error {
	return a.onIdle(m.GetServer(), metal.KindClean, m.GetOperationId(), lifecycle.VerbClean, lifecycle.EventClean, r)
}

// onIdle starts an operator's work on a server that nobody rents.
func (a *applier) onIdle(ref *logpb.ServerRef, kind metal.OperationKind, op string, verb lifecycle.Verb, ev lifecycle.Event, r *Result) *metal.Error {
	was, err := a.lookup(ref)
	if err != nil {
		return err
	}
	if err := a.admit(was, verb); err != nil {
		return err
	}
	if kind == metal.KindClean && !was.WipeOK && !was.WasAvailable {
		return wipeRefused(was)
	}
	s := *was
	o, err := a.start(&s, kind, op, ev)
	if err != nil {
		return err
	}
	a.event("server."+string(s.State), &s, o, "", string(kind)+" was asked for")
	a.PutServer(&s)
	r.ID, r.OperationID, r.Value = s.ID, o.ID, o
	return nil
}

func wipeRefused(s *metal.Server) *metal.Error {
	return metal.Errorf(metal.CodeWipeRefused, "the disks of %s have never been released for wiping", s.Name).
		WithHint("set wipe: true for %s in the inventory file, then: bmc inventory apply -f FILE && bmc retry %s", s.Name, s.Name)
}

// forgetServer removes a server that nobody rents. One that is available is
// retired first, in the same command.
func (a *applier) forgetServer(m *logpb.ForgetServer, r *Result) *metal.Error {
	was, err := a.lookup(m.GetServer())
	if err != nil {
		return err
	}
	if err := a.leftOn(was); err != nil {
		return err
	}
	s := *was
	if s.State == metal.StateAvailable && a.idle(was) == nil {
		if err := a.move(&s, lifecycle.EventRetire); err != nil {
			return err
		}
	}
	if err := a.admit(&s, lifecycle.VerbForget); err != nil {
		return a.forgetHint(err, was)
	}
	if s.Rental != nil {
		return metal.Errorf(metal.CodeInUse, "%s is rented as %s", s.Name, s.Rental.Name).WithHint("bmc destroy %s", s.Rental.Name)
	}
	if err := a.move(&s, lifecycle.EventForget); err != nil {
		return err
	}
	a.DeleteServer(s.ID)
	a.note("server.forgotten", s.Name, "", s.Name+" left the inventory")
	r.ID = s.ID
	return nil
}

// leftOn refuses to forget a machine that the system itself has switched on and
// has not yet tried to switch off: nobody would do so any more. One that is parked
// is a person's to switch off.
func (a *applier) leftOn(s *metal.Server) *metal.Error {
	o, busy := a.Operation(s.Operation)
	own := busy && o.Kind.Yields()
	lit := s.Warm != nil && s.Warm.Tries == 0 && s.Power.Observed == metal.PowerOn
	switch {
	case s.Holds[metal.HoldParked] || !own && !s.Warm.Waits() && !lit:
		return nil
	case s.State == metal.StateAvailable:
		return metal.Errorf(metal.CodeBusy, "%s is on, to wait for a tenant, and would stay so: retire it, which switches it off, then forget it", s.Name).
			WithHint("bmc inventory retire %s", s.Name)
	case own:
		return metal.Errorf(metal.CodeBusy, "%s is being switched off: operation %s (%s) is %s", s.Name, o.ID, o.Kind, o.State).WithHint("bmc operation watch %s", o.ID)
	}
	return metal.Errorf(metal.CodeBusy, "%s is still on, and will be switched off in a moment, or when its rack has an agent again", s.Name).
		WithHint("bmc explain %s", s.Name)
}

// forgetHint says what leads to a state that admits forget.
func (a *applier) forgetHint(err *metal.Error, s *metal.Server) *metal.Error {
	switch busy := a.idle(s); {
	case busy != nil:
		return err.WithHint("%s", busy.Hint)
	case s.Rental != nil && !s.Rental.Released:
		return err.WithHint("bmc destroy %s", s.Rental.Name)
	case s.State == metal.StateFailed:
		return err.WithHint("bmc retry %s", a.target)
	}
	return err
}

func (a *applier) retireServer(m *logpb.RetireServer, r *Result) *metal.Error {
	was, err := a.lookup(m.GetServer())
	if err != nil {
		return err
	}
	if err := a.admit(was, lifecycle.VerbRetire); err != nil {
		return err
	}
	s := *was
	a.preempt(&s)
	if err := a.move(&s, lifecycle.EventRetire); err != nil {
		return err
	}
	a.event("server.retired", &s, nil, "", s.Name+" was taken out of service")
	a.PutServer(&s)
	r.ID = s.ID
	return nil
}

func (a *applier) setHold(m *logpb.SetHold, r *Result) *metal.Error {
	was, err := a.lookup(m.GetServer())
	if err != nil {
		return err
	}
	h := metal.Hold(m.GetHold())
	if !slices.Contains([]metal.Hold{metal.HoldProtected, metal.HoldCordoned, metal.HoldParked, metal.HoldNoKexec}, h) {
		return metal.Invalid("hold", "%q is not protected, cordoned, parked or no-kexec", m.GetHold())
	}
	r.ID = was.ID
	if was.Holds[h] == m.GetOn() {
		return nil
	}
	s := *was
	if s.Holds = maps.Clone(was.Holds); s.Holds == nil {
		s.Holds = map[metal.Hold]bool{}
	}
	message := a.target + " is " + string(h)
	if s.Holds[h] = true; !m.GetOn() {
		delete(s.Holds, h)
		message = a.target + " is no longer " + string(h)
	}
	a.event("server.hold", &s, nil, "", message)
	a.PutServer(&s)
	return nil
}
