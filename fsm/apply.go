package fsm

import (
	"bytes"
	"crypto/sha256"
	"time"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/internal/mutant"
	"bmc/metal"
)

// outcomeReplayed marks, in the audit, a command whose request ID was known.
const outcomeReplayed metal.Code = "REPLAYED"

// maxAhead is how far a request ID's time may be ahead of the log's: one far in
// the future would never fall behind the horizon.
const maxAhead = time.Hour

// applier runs one command.
type applier struct {
	*state.Txn
	h      *logpb.Header
	term   uint64 // Raft's, of the log entry
	now    time.Time
	target string // for the audit: what the command was about
	// next free address to look at, by rack: keeps large inventories linear
	cursor map[string]uint32
}

// run applies one command to a view, as an entry of the term that its header says.
func run(v *state.View, index uint64, raw []byte, c *logpb.Command) (*state.View, *Result) {
	x := v.Begin()
	r := apply(x, index, c.GetHeader().GetTerm(), raw, c)
	return x.Commit(), r
}

// apply runs one command in a transaction of several. What is refused leaves no
// trace but the audit's.
func apply(x *state.Txn, index, term uint64, raw []byte, c *logpb.Command) *Result {
	a := begin(x, index, term, c)
	if known, err := a.known(); known != nil || err != nil {
		outcome, r := outcomeReplayed, &Result{Revision: index, Err: err}
		if err != nil {
			outcome = err.Code
		} else {
			r = a.replay(known)
		}
		a.record(raw, c, outcome, r)
		return r
	}
	r := &Result{Revision: index}
	if err := a.do(c, r); err != nil {
		r = &Result{Revision: index, Err: err}
		target := a.target
		x.Rollback()
		a = begin(x, index, term, c)
		a.target = target
		a.record(raw, c, err.Code, r)
		return r
	}
	if a.h.GetRequestId() != "" {
		a.Remember(state.Request{ID: a.h.GetRequestId(), Principal: a.h.GetPrincipal(), MAC: a.h.GetRequestMac(),
			OperationID: r.OperationID, ResultID: r.ID})
	}
	a.record(raw, c, "", r)
	return r
}

func begin(x *state.Txn, index, term uint64, c *logpb.Command) *applier {
	a := &applier{Txn: x, h: c.GetHeader(), term: term}
	now := a.h.GetTime()
	if clock := mutant.Clock(); clock != 0 {
		now = clock
	}
	a.now = a.SetCommand(index, logpb.Time(now))
	return a
}

// record appends to the audit, whose chain covers every command in the log.
func (a *applier) record(raw []byte, c *logpb.Command, outcome metal.Code, r *Result) {
	h := sha256.New()
	h.Write(a.Meta().AuditHead)
	h.Write(raw)
	e := metal.AuditEntry{Principal: a.h.GetPrincipal(), RequestID: a.h.GetRequestId(), Command: Name(c),
		Target: a.target, Outcome: outcome}
	if a.Meta().FeatureLevel >= 2 {
		e.ObjectID, e.OperationID = r.ID, r.OperationID
		detail(&e, c, r)
	}
	a.Audit(e, h.Sum(nil))
}

// detail adds who works on what under which epoch: what a check of the
// controllers' own record needs. IDs and names that a refused command made up
// are cut to a size that IDs have.
func detail(e *metal.AuditEntry, c *logpb.Command, r *Result) {
	cut := func(s string) string { return s[:min(len(s), 128)] }
	about := func(operation, step string) {
		if e.OperationID == "" {
			e.OperationID = cut(operation)
		}
		e.Step = cut(step)
	}
	switch {
	case c.GetGrantLease() != nil:
		e.AgentID = cut(c.GetGrantLease().GetAgentId())
		if l, ok := r.Value.(metal.Lease); ok {
			e.Epoch = l.Epoch
		}
	case c.GetAssignOperation() != nil:
		m := c.GetAssignOperation()
		about(m.GetOperationId(), "")
		e.AgentID, e.Epoch = cut(m.GetAgentId()), m.GetEpoch()
	case c.GetReportStep() != nil:
		m := c.GetReportStep()
		about(m.GetOperationId(), m.GetStep()+"/"+m.GetPhase())
		e.AgentID, e.Epoch = cut(m.GetAgentId()), m.GetEpoch()
	case c.GetMarkLate() != nil:
		about(c.GetMarkLate().GetOperationId(), c.GetMarkLate().GetStep())
	case c.GetExpireStep() != nil:
		about(c.GetExpireStep().GetOperationId(), c.GetExpireStep().GetStep())
	case c.GetFailOperation() != nil:
		about(c.GetFailOperation().GetOperationId(), "")
	case c.GetObserve() != nil:
		e.AgentID, e.Epoch = cut(c.GetObserve().GetAgentId()), c.GetObserve().GetEpoch()
	}
}

// known looks the request ID up. Errors: INVALID_ARGUMENT for what is no
// UUIDv7, REQUEST_ID_REUSED, REQUEST_TOO_OLD.
func (a *applier) known() (*state.Request, *metal.Error) {
	id := a.h.GetRequestId()
	if id == "" {
		return nil, nil
	}
	ms := state.RequestTime(id)
	switch {
	case ms < 0:
		return nil, metal.Invalid("request_id", "is not a UUIDv7 in lower case")
	case len(a.h.GetRequestMac()) == 0:
		return nil, metal.Invalid("request_mac", "is empty")
	}
	if r, ok := a.Request(a.h.GetPrincipal(), id); ok && !mutant.On("request-twice") {
		if !bytes.Equal(r.MAC, a.h.GetRequestMac()) {
			return nil, metal.Errorf(metal.CodeRequestReused, "request ID %s was used for another request", id)
		}
		return r, nil
	}
	if ms <= a.Meta().RequestHorizon {
		return nil, metal.Errorf(metal.CodeRequestTooOld, "request ID %s is older than what is remembered: it may have been run already", id)
	}
	if ms > a.now.Add(maxAhead).UnixMilli() {
		return nil, metal.Invalid("request_id", "is from the future: check this machine's clock")
	}
	return nil, nil
}

// replay answers a known request with what it did: its operation as it is now,
// or the IDs alone.
func (a *applier) replay(r *state.Request) *Result {
	res := &Result{Revision: r.Revision, ID: r.ResultID, OperationID: r.OperationID, Replayed: true}
	if o, ok := a.Operation(r.OperationID); ok {
		res.Value = o
	}
	return res
}

// event appends an event about a server, in the words of its tenant if it has one.
func (a *applier) event(kind string, s *metal.Server, o *metal.Operation, reason metal.Code, message string) {
	e := metal.Event{Kind: kind, Principal: a.h.GetPrincipal(), Reason: reason, Message: message}
	if s != nil {
		e.ServerID, e.Target = s.ID, s.Name
		if s.Rental != nil {
			e.Target, e.Project = s.Rental.Name, s.Rental.Project
		}
	}
	if o != nil {
		e.OperationID = o.ID
		if o.Project != "" {
			e.Target, e.Project = o.Target, o.Project
		}
	}
	a.Event(e)
}

// note appends an event that concerns no server.
func (a *applier) note(kind, target, project, message string) {
	a.Event(metal.Event{Kind: kind, Target: target, Project: project, Principal: a.h.GetPrincipal(), Message: message})
}

// failure turns an error of another package into a refusal.
func failure(err error) *metal.Error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*metal.Error); ok { //nolint:errorlint // our own, never wrapped
		return e
	}
	return metal.Errorf(metal.CodeInvalid, "%s", err)
}
