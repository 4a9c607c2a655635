package check

import (
	"fmt"
	"time"

	"bmc/chaos/history"
	"bmc/chaos/model"
	"bmc/metal"
)

// modelTime is how long one key's history may be searched.
const modelTime = 30 * time.Second

// acknowledged (I1): what a client was told is done is in the audit. What was
// first asked for before the audit's oldest entry is out of its reach.
func acknowledged(e *Evidence, l *look) []Violation {
	if len(e.Audit) == 0 {
		return nil
	}
	done := map[string]bool{}
	for _, a := range e.accepted() {
		done[a.RequestID] = true
	}
	first := map[string]int64{} // when a request was first made
	for i := range e.Calls {
		c := &e.Calls[i]
		if at, again := first[c.RequestID]; !again || c.Begin < at {
			first[c.RequestID] = c.Begin
		}
	}
	oldest, last := e.Audit[0], e.Audit[len(e.Audit)-1].Revision
	var out []Violation
	older := 0
	for i := range e.Calls {
		c := &e.Calls[i]
		if c.Outcome != history.OK {
			continue
		}
		switch {
		case c.RequestID == "" || done[c.RequestID]:
		case oldest.Revision <= 1 || e.Start.Add(time.Duration(first[c.RequestID])).After(oldest.Time):
			out = append(out, violation("I1", "an acknowledged "+c.Kind+" is not in the audit", callLine(c)))
		default:
			older++
			continue
		}
		if c.Revision > last {
			out = append(out, violation("I1", fmt.Sprintf("an answer names revision %d, the state ends at %d", c.Revision, last), callLine(c)))
		}
		if c.RequestID != "" {
			l.saw("acknowledged calls", 1)
		}
	}
	if older > 0 {
		l.missed(fmt.Sprintf("%d calls are older than the audit", older))
	}
	return out
}

// linearizable (I2).
func linearizable(e *Evidence, l *look) []Violation {
	results, err := model.Check(e.Calls, modelTime, e.Charts)
	if err != nil {
		return []Violation{violation("I2", err.Error())}
	}
	var out []Violation
	for _, r := range results {
		l.saw("keys", 1)
		l.saw("calls on them", r.Calls)
		if r.OK {
			continue
		}
		v := violation("I2", fmt.Sprintf("%s: %s (%d calls)", r.Key, r.Reason, r.Calls))
		if r.Chart != "" {
			v.Lines = []string{"chart: " + r.Chart}
		}
		out = append(out, v)
	}
	return out
}

// oneEffect (I14): one accepted command, one operation and one answer for each
// request ID.
func oneEffect(e *Evidence, l *look) []Violation {
	var out []Violation
	type key struct{ principal, id string }
	first := map[key]*metal.AuditEntry{}
	for _, a := range e.accepted() {
		if a.RequestID == "" {
			continue
		}
		l.saw("requests", 1)
		k := key{a.Principal, a.RequestID}
		if was := first[k]; was != nil {
			out = append(out, violation("I14", "a request ID was run twice", auditLine(was), auditLine(a)))
			continue
		}
		first[k] = a
	}
	ops := map[key]*metal.Operation{}
	for _, o := range e.Operations {
		k := key{o.Principal, o.RequestID + " " + o.ServerID} // an inventory enrols many servers
		if was := ops[k]; o.RequestID != "" && was != nil {
			out = append(out, violation("I14", "a request ID began two operations",
				fmt.Sprintf("operation %s and operation %s of request %s", was.ID, o.ID, o.RequestID)))
		}
		ops[k] = o
	}
	told := map[string]*history.Call{}
	for i := range e.Calls {
		c := &e.Calls[i]
		if c.RequestID == "" || c.Outcome != history.OK || c.Operation == "" {
			continue
		}
		l.saw("answers", 1)
		if was := told[c.RequestID]; was != nil && was.Operation != c.Operation {
			out = append(out, violation("I14", "a retry was told of another operation", callLine(was), callLine(c)))
		}
		told[c.RequestID] = c
	}
	return out
}
