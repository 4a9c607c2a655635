package fsm

import (
	"time"

	"bmc/fsm/lifecycle"
	"bmc/fsm/logpb"
	"bmc/metal"
)

// start puts a pending operation and takes the server's transition, both on
// copies: the caller puts the server. A deployment goes on with the ramdisk in
// which the server waits; everything else begins with its power off.
func (a *applier) start(s *metal.Server, kind metal.OperationKind, id string, ev lifecycle.Event) (*metal.Operation, *metal.Error) {
	if err := a.freshID("operation", id, func(id string) bool { _, ok := a.Operation(id); return ok }); err != nil {
		return nil, err
	}
	if err := a.idle(s); err != nil {
		return nil, err
	}
	if err := a.mayStart(s, ev); err != nil {
		return nil, err
	}
	o := &metal.Operation{ID: id, Kind: kind, State: metal.OperationPending, ServerID: s.ID, Target: s.Name,
		Principal: a.h.GetPrincipal(), RequestID: a.h.GetRequestId(), Attempt: 1, Steps: steps(kind), Created: a.now, Queued: a.queued(), From: s.State}
	if s.Rental != nil {
		o.Target, o.Project = s.Rental.Name, s.Rental.Project
	}
	if kind == metal.KindDeploy && s.Warm.Waits() {
		o.BootID, o.Steps = s.Warm.BootID, o.Steps[1:]
	}
	a.preempt(s)
	if err := a.move(s, ev); err != nil {
		return nil, err
	}
	setWarm(a, s, nil)
	s.Operation = id
	a.PutOperation(o)
	return o, nil
}

// mayStart refuses new work on parked servers and in frozen racks. What ends a rental
// need not wait until an operator thaws the rack: it is begun then.
func (a *applier) mayStart(s *metal.Server, ev lifecycle.Event) *metal.Error {
	if s.Holds[metal.HoldParked] {
		return metal.Errorf(metal.CodeProtected, "%s is parked: nothing starts on it", s.Name).WithHint("bmc inventory hold %s --clear parked", s.Name)
	}
	rack, ok := a.Rack(s.RackID)
	if !ok || !rack.Frozen && (ev == lifecycle.EventCancel || ev == lifecycle.EventDestroy) {
		return nil
	}
	return Frozen(rack)
}

func steps(kind metal.OperationKind) []metal.StepStatus {
	var out []metal.StepStatus
	for _, st := range metal.Plan(kind) {
		out = append(out, metal.StepStatus{Step: st, State: metal.StepPending})
	}
	return out
}

// retryEvents say where a kind of operation begins again.
var retryEvents = map[metal.OperationKind]lifecycle.Event{
	metal.KindEnroll:  lifecycle.EventRetryEnroll,
	metal.KindInspect: lifecycle.EventRetryInspect,
	metal.KindDeploy:  lifecycle.EventRetryDeploy,
	metal.KindRelease: lifecycle.EventRetryRelease,
	metal.KindClean:   lifecycle.EventRetryClean,
}

// retryServer runs the failed operation again from its first step, as a new
// attempt. A quarantined server's way back is a clean, which is a new operation.
func (a *applier) retryServer(m *logpb.RetryServer, r *Result) *metal.Error {
	was, err := a.lookup(m.GetServer())
	if err != nil {
		return err
	}
	if was.State == metal.StateQuarantined {
		return a.cleanServer(&logpb.CleanServer{Server: m.GetServer(), OperationId: m.GetOperationId()}, r)
	}
	if err := a.admit(was, lifecycle.VerbRetry); err != nil {
		return err
	}
	if err := a.mayStart(was, ""); err != nil {
		return err
	}
	id := ""
	if was.Failure != nil {
		id = was.Failure.Operation
	}
	old, ok := a.Operation(id)
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "the failed operation of %s is not kept any more", a.target).WithHint("bmc explain %s", a.target)
	}
	ev := retryEvents[old.Kind]
	if old.Kind == metal.KindRelease && was.Rental == nil {
		ev = lifecycle.EventRetryClean // it has been read off already: the tenant is gone
	}
	s, o := *was, *old
	if err := a.move(&s, ev); err != nil {
		return err
	}
	s.Operation, s.Failure = o.ID, nil
	o.State, o.Attempt, o.Steps, o.Failure = metal.OperationPending, old.Attempt+1, steps(old.Kind), nil
	o.Ended, o.Started = logpb.Time(0), logpb.Time(0)
	o.BootID, o.RootDisk, o.BootMethod, o.ReportedEpoch, o.Queued = "", "", "", 0, a.queued()
	reassign(&o, "", 0)
	a.PutOperation(&o)
	a.event("operation.retried", &s, &o, "", string(o.Kind)+" is tried again")
	a.PutServer(&s)
	r.ID, r.OperationID, r.Value = s.ID, o.ID, &o
	return nil
}

// queued is when an operation that begins to wait now began to; not recorded
// while replicas may be of a version that has no field for it.
func (a *applier) queued() time.Time {
	if a.Meta().FeatureLevel < 2 {
		return time.Time{}
	}
	return a.now
}

// reassign starts the count of reports over: they are numbered within one
// (attempt, epoch).
func reassign(o *metal.Operation, agent string, epoch uint64) {
	o.Agent, o.Epoch, o.Sequence, o.LastReport = agent, epoch, 0, nil
	o.Deadline, o.Late = logpb.Time(0), false
}

func (a *applier) unassign(old *metal.Operation) {
	o := *old
	o.State, o.Queued = metal.OperationPending, a.queued()
	reassign(&o, "", 0)
	a.PutOperation(&o)
}

// open looks up an operation that has not ended, in the attempt given.
func (a *applier) open(id string, attempt int64) (*metal.Operation, *metal.Server, *metal.Error) {
	o, ok := a.Operation(id)
	if !ok {
		return nil, nil, metal.Errorf(metal.CodeNotFound, "there is no operation %q", id)
	}
	a.target = o.Target
	if int64(o.Attempt) != attempt {
		return nil, nil, metal.Errorf(metal.CodeStaleAttempt, "operation %s is at attempt %d, not %d", id, o.Attempt, attempt)
	}
	if o.State.Ended() {
		return nil, nil, metal.Errorf(metal.CodeStaleAttempt, "operation %s has %s already", id, o.State)
	}
	s, ok := a.Server(o.ServerID)
	if !ok {
		return nil, nil, metal.Errorf(metal.CodeNotFound, "the server of operation %s is gone", id)
	}
	return o, s, nil
}

// assignOperation gives an operation to the holder of its rack's lease. After
// a takeover the step that was under way gets its whole time again.
func (a *applier) assignOperation(m *logpb.AssignOperation, r *Result) *metal.Error {
	old, was, err := a.open(m.GetOperationId(), m.GetAttempt())
	if err != nil {
		return err
	}
	r.ID, r.OperationID = was.ID, old.ID
	rack, ok := a.Rack(was.RackID)
	if !ok || rack.Lease.Agent == "" || rack.Lease.Agent != m.GetAgentId() || rack.Lease.Epoch != m.GetEpoch() {
		return metal.Errorf(metal.CodeStaleEpoch, "the lease of the rack is not held by agent %q at epoch %d", m.GetAgentId(), m.GetEpoch())
	}
	if rack.HoldsBack(old) {
		return Frozen(rack)
	}
	if r.Value = old; old.Agent == m.GetAgentId() && old.Epoch == m.GetEpoch() {
		return nil
	}
	o, s := *old, *was
	reassign(&o, m.GetAgentId(), m.GetEpoch())
	o.State = metal.OperationRunning
	if o.Started.IsZero() {
		o.Started = a.now
	}
	a.untilDeadline(&o, &s)
	a.PutOperation(&o)
	a.PutServer(&s)
	a.event("operation.assigned", &s, &o, "", string(o.Kind)+" runs at an agent")
	r.Value = &o
	return nil
}

// untilDeadline gives the current step its time, and takes lateness back.
func (a *applier) untilDeadline(o *metal.Operation, s *metal.Server) {
	o.Late = false
	clearCondition(s, metal.ConditionLate)
	if o.Deadline = logpb.Time(0); o.Current() != "" && !o.State.Ended() {
		o.Deadline = a.now.Add(StepDeadline(o.Current()))
	}
}

func (a *applier) markLate(m *logpb.MarkLate, r *Result) *metal.Error {
	old, was, err := a.open(m.GetOperationId(), m.GetAttempt())
	if err != nil {
		return err
	}
	r.ID, r.OperationID, r.Value = was.ID, old.ID, old
	if !a.at(old, m.GetStep()) {
		return metal.Errorf(metal.CodeConflict, "operation %s is not at step %q", old.ID, m.GetStep())
	}
	if old.Late {
		return nil
	}
	o, s := *old, *was
	o.Late = true
	message := "waits for an agent of its rack"
	if m.GetStep() != "" {
		message = "step " + m.GetStep() + " takes longer than it should"
	}
	a.raise(&s, metal.ConditionLate, message)
	a.PutOperation(&o)
	a.PutServer(&s)
	a.event("operation.late", &s, &o, "", message)
	r.Value = &o
	return nil
}

// at says whether an operation is at a step; "" is the wait for an agent.
func (a *applier) at(o *metal.Operation, step string) bool {
	if step == "" {
		return o.State == metal.OperationPending
	}
	return o.State == metal.OperationRunning && string(o.Current()) == step
}

func (a *applier) expireStep(m *logpb.ExpireStep, r *Result) *metal.Error {
	old, was, err := a.open(m.GetOperationId(), m.GetAttempt())
	if err != nil {
		return err
	}
	if old.State != metal.OperationRunning || string(old.Current()) != m.GetStep() || a.now.Before(old.Deadline) {
		return metal.Errorf(metal.CodeConflict, "step %q of operation %s has not run out of time", m.GetStep(), old.ID)
	}
	o, s := *old, *was
	limit := StepDeadline(o.Current())
	if err := a.fail(&o, &s, metal.CodeDeadline, "step "+m.GetStep()+" did not end within "+limit.String()); err != nil {
		return err
	}
	r.ID, r.OperationID, r.Value = s.ID, o.ID, &o
	return nil
}

func (a *applier) failOperation(m *logpb.FailOperation, r *Result) *metal.Error {
	old, was, err := a.open(m.GetOperationId(), m.GetAttempt())
	if err != nil {
		return err
	}
	if m.GetReason() == "" {
		return metal.Invalid("reason", "is empty")
	}
	o, s := *old, *was
	if err := a.fail(&o, &s, metal.Code(m.GetReason()), shorten(m.GetMessage())); err != nil {
		return err
	}
	r.ID, r.OperationID, r.Value = s.ID, o.ID, &o
	return nil
}

// fail ends an operation at its current step. The server follows: a wipe that
// failed leads to quarantine, a power operation leaves a rented server active,
// everything else is failed until somebody says what to do.
func (a *applier) fail(o *metal.Operation, s *metal.Server, reason metal.Code, message string) *metal.Error {
	step := o.Current()
	o.Steps = append([]metal.StepStatus(nil), o.Steps...)
	for i := range o.Steps {
		if st := &o.Steps[i]; st.Step == step && st.State != metal.StepDone {
			st.State, st.Ended, st.Message = metal.StepFailed, a.now, message
			break
		}
	}
	o.State, o.Ended = metal.OperationFailed, a.now
	a.untilDeadline(o, s)
	o.Failure = &metal.Failure{From: s.State, Operation: o.ID, Step: step, Reason: reason, Message: message, At: a.now}
	s.Operation = ""
	a.event("operation.failed", s, o, reason, message)
	if o.Kind.Yields() {
		a.notWarm(s, "step "+string(step)+" failed with "+string(reason)+", "+message)
	}
	if o.Kind != metal.KindPower && o.Kind != metal.KindRestart && !o.Kind.Yields() {
		ev := lifecycle.EventFailed
		if step == metal.StepWipe && s.State == metal.StateCleaning && reason != metal.CodeWipeRefused {
			ev = lifecycle.EventWipeFailed
		}
		if err := a.move(s, ev); err != nil {
			return err
		}
		s.Failure = o.Failure
		a.event("server."+string(s.State), s, o, reason, message)
	}
	a.PutOperation(o)
	a.PutServer(s)
	return nil
}

// doneEvents say where the end of a kind of operation leads; power and restart
// lead nowhere.
var doneEvents = map[metal.OperationKind]lifecycle.Event{
	metal.KindEnroll:  lifecycle.EventCleaned,
	metal.KindInspect: lifecycle.EventReturned,
	metal.KindDeploy:  lifecycle.EventDeployed,
	metal.KindRelease: lifecycle.EventCleaned,
	metal.KindClean:   lifecycle.EventCleaned,
}

// succeed ends an operation whose last step is done.
func (a *applier) succeed(o *metal.Operation, s *metal.Server) *metal.Error {
	o.State, o.Ended = metal.OperationSucceeded, a.now
	a.untilDeadline(o, s)
	s.Operation = ""
	a.event("operation.succeeded", s, o, "", string(o.Kind)+" is done")
	if ev, ok := doneEvents[o.Kind]; ok {
		if o.Kind == metal.KindInspect && o.From == metal.StateQuarantined {
			ev = lifecycle.EventStillDirty
		} else {
			s.Failure = nil
		}
		if err := a.move(s, ev); err != nil {
			return err
		}
		if s.State == metal.StateAvailable {
			s.WasAvailable, s.Power.Wanted = true, metal.PowerOff
		}
		a.event("server."+string(s.State), s, o, "", s.Name+" is "+string(s.State))
	}
	return nil
}

// shorten keeps messages from outside from filling the state.
func shorten(s string) string {
	const limit = 1000
	if len(s) <= limit {
		return s
	}
	cut := limit
	for cut > 0 && s[cut]&0xc0 == 0x80 { // not inside a character
		cut--
	}
	return s[:cut] + "…"
}
