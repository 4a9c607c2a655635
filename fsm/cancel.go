package fsm

import (
	"bmc/fsm/lifecycle"
	"bmc/fsm/logpb"
	"bmc/metal"
)

// cancelOperation ends an open operation by somebody's word, at any step. What
// it has left behind decides where the server goes: a machine that may hold
// parts of a system is wiped, one whose wipe was cut short is quarantined, and
// one that never was in service is failed and may be tried again. Only a
// release that has not yet read its machine off cannot be taken back.
func (a *applier) cancelOperation(m *logpb.CancelOperation, r *Result) *metal.Error {
	old, ok := a.Operation(m.GetOperationId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no operation %q", m.GetOperationId()).WithHint("bmc operation list")
	}
	was, err := a.lookup(m.GetServer())
	if err != nil {
		return err
	}
	a.target = old.Target
	if old.ServerID != was.ID {
		return metal.Errorf(metal.CodeNotFound, "operation %s is not about %s", old.ID, was.Name).WithHint("bmc operation get %s", old.ID)
	}
	if old.State.Ended() {
		return metal.Errorf(metal.CodeWrongState, "operation %s has %s already", old.ID, old.State).WithHint("bmc operation get %s", old.ID)
	}
	o, s := *old, *was
	if err := a.cancelled(&o, &s); err != nil {
		return err
	}
	r.ID, r.OperationID, r.Value = s.ID, o.ID, &o
	a.PutOperation(&o)
	if o.Kind == metal.KindDeploy {
		next, err := a.cleanAfter(&s, m.GetFollowUpId())
		if err != nil {
			return err
		}
		r.OperationID, r.Value = next.ID, next
	}
	a.PutServer(&s)
	return nil
}

// cancelled ends the operation and moves the server, on copies.
func (a *applier) cancelled(o *metal.Operation, s *metal.Server) *metal.Error {
	switch {
	case o.Kind == metal.KindRelease && s.State == metal.StateReleasing:
		return metal.Errorf(metal.CodeWrongState, "%s has been released already: its rental is over, and the machine must be read as off first", o.Target).
			WithHint("bmc operation watch %s", o.ID)
	case o.Kind == metal.KindDeploy && s.Holds[metal.HoldProtected]:
		return metal.Errorf(metal.CodeProtected, "%s is protected, and to cancel its deployment erases it", o.Target).WithHint("bmc unprotect %s", o.Target)
	}
	message := "cancelled by " + a.h.GetPrincipal()
	a.cutShort(o, s, "it was "+message)
	if o.Kind.Yields() {
		a.notWarm(s, "its "+string(o.Kind)+" operation was "+message)
		return nil
	}
	if o.Kind == metal.KindPower || o.Kind == metal.KindRestart || o.Kind == metal.KindDeploy {
		return nil
	}
	ev := lifecycle.EventCancel
	if s.State == metal.StateCleaning {
		ev = lifecycle.EventAbort
	}
	if err := a.move(s, ev); err != nil {
		return err
	}
	s.Failure = o.Failure
	a.event("server."+string(s.State), s, o, metal.CodeCancelled, s.Name+" is "+string(s.State)+": "+message)
	return nil
}

// cutShort ends an operation at its current step, on copies.
func (a *applier) cutShort(o *metal.Operation, s *metal.Server, message string) {
	step := o.Current()
	o.Steps = append([]metal.StepStatus(nil), o.Steps...)
	for i := range o.Steps {
		if st := &o.Steps[i]; st.Step == step {
			st.State, st.Ended, st.Message = metal.StepFailed, a.now, message
			break
		}
	}
	o.State, o.Ended = metal.OperationCancelled, a.now
	a.untilDeadline(o, s)
	o.Failure = &metal.Failure{From: s.State, Operation: o.ID, Step: step, Reason: metal.CodeCancelled, Message: message, At: a.now}
	s.Operation = ""
	a.event("operation.cancelled", s, o, metal.CodeCancelled, string(o.Kind)+": "+message)
}

// cleanAfter ends the rental of a deployment that was cancelled and starts the
// clean, whose first step reads the machine off.
func (a *applier) cleanAfter(s *metal.Server, id string) (*metal.Operation, *metal.Error) {
	name := s.Name
	if s.Rental != nil {
		name = s.Rental.Name
	}
	a.event("server.cleaning", s, nil, metal.CodeCancelled, "the deployment of "+name+" was cancelled; "+s.Name+" is wiped")
	s.Rental, s.Power.Wanted = nil, metal.PowerOff
	return a.start(s, metal.KindClean, id, lifecycle.EventCancel)
}

// quarantineServer takes a failed server out of use until it is cleaned.
func (a *applier) quarantineServer(m *logpb.QuarantineServer, r *Result) *metal.Error {
	was, err := a.lookup(m.GetServer())
	if err != nil {
		return err
	}
	if err := a.admit(was, lifecycle.VerbQuarantine); err != nil {
		return err
	}
	if was.Rental != nil {
		return metal.Errorf(metal.CodeInUse, "%s is rented as %s", was.Name, was.Rental.Name).WithHint("bmc destroy %s", was.Rental.Name)
	}
	s := *was
	if err := a.move(&s, lifecycle.EventQuarantine); err != nil {
		return err
	}
	message := s.Name + " was quarantined by " + a.h.GetPrincipal()
	if m.GetReason() != "" {
		message += ": " + shorten(m.GetReason())
	}
	a.event("server.quarantined", &s, nil, "", message)
	a.PutServer(&s)
	r.ID = s.ID
	return nil
}
