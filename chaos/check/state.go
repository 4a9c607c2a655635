package check

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"bmc/fsm"
	"bmc/metal"
)

// equalHashes (I3).
func equalHashes(e *Evidence, l *look) []Violation {
	var out []Violation
	at := map[uint64]Replica{}
	for _, r := range e.Replicas {
		was, ok := at[r.Revision]
		if !ok {
			at[r.Revision] = r
			continue
		}
		if was.Node != r.Node {
			l.saw("pairs of hashes at one revision", 1)
		}
		if was.Hash != r.Hash {
			out = append(out, violation("I3", fmt.Sprintf("two nodes differ at revision %d", r.Revision),
				"node "+was.Node+" hash "+was.Hash, "node "+r.Node+" hash "+r.Hash))
		}
	}
	return out
}

// addresses (I6): in the state, and in what agents have answered.
func addresses(e *Evidence, l *look) []Violation {
	type key struct {
		rack string
		addr netip.Addr
	}
	var out []Violation
	holds := map[key]string{}
	hold := func(rack string, addr netip.Addr, who string) {
		k := key{rack, addr}
		if was, ok := holds[k]; ok && was != who {
			out = append(out, violation("I6", fmt.Sprintf("%s of rack %s is assigned twice", addr, rack), was, who))
		}
		holds[k] = who
	}
	macs := map[string]string{} // address by MAC
	for _, s := range e.Servers {
		if s.Address.IsValid() {
			hold(s.RackID, s.Address, "server "+s.ID)
		}
		for _, m := range s.MACs {
			macs[strings.ToLower(m)] = s.Address.String()
		}
	}
	for _, a := range e.Addresses {
		who := "MAC " + a.MAC
		if a.ServerID != "" {
			who = "server " + a.ServerID
		} else {
			macs[strings.ToLower(a.MAC)] = a.Address.String()
		}
		l.saw("addresses in the state", 1)
		hold(a.RackID, a.Address, who)
	}
	leased := map[string]DHCPAnswer{} // by address
	l.saw("DHCP answers", len(e.DHCP))
	l.saw("questions of strangers", e.Asked())
	for _, d := range e.DHCP {
		want, known := macs[strings.ToLower(d.MAC)]
		switch {
		case !known:
			out = append(out, violation("I6", "an unknown MAC was answered: "+d.MAC, d.Line))
		case d.Address != "" && d.Address != want:
			out = append(out, violation("I6", fmt.Sprintf("%s was given %s, its address is %s", d.MAC, d.Address, want), d.Line))
		}
		if was, ok := leased[d.Address]; ok && d.Address != "" && was.MAC != d.MAC {
			out = append(out, violation("I6", d.Address+" was given to two MACs", was.Line, d.Line))
		}
		leased[d.Address] = d
	}
	return out
}

// tenants (I7), by the order of the audit: between two rentals of a server lies
// a release whose machine was read as off.
func tenants(e *Evidence, l *look) []Violation {
	var out []Violation
	holder := map[string]*metal.AuditEntry{}   // create_server, by server
	released := map[string]*metal.AuditEntry{} // that ended it
	kinds := e.kinds()
	for _, a := range e.accepted() {
		switch {
		case a.Command == "create_server":
			l.saw("rentals", 1)
			if was := holder[a.ObjectID]; was != nil {
				lines := []string{auditLine(was)}
				if r := released[a.ObjectID]; r != nil {
					lines = append(lines, auditLine(r))
				}
				out = append(out, violation("I7", "server "+a.ObjectID+" was rented before its former tenant was gone", append(lines, auditLine(a))...))
			}
			holder[a.ObjectID], released[a.ObjectID] = a, nil
		case a.Command == "destroy_server", a.Command == "cancel_operation" && kinds[a.OperationID] == metal.KindClean:
			released[a.ObjectID] = a
		case a.Step == string(metal.StepPowerOff)+"/done" && released[a.ObjectID] != nil:
			holder[a.ObjectID], released[a.ObjectID] = nil, nil
		}
	}
	rentals := map[string]string{}
	for _, s := range e.Servers {
		if s.Rental == nil || s.Rental.Released {
			continue
		}
		k := s.Rental.Project + "/" + s.Rental.Name
		if was, twice := rentals[k]; twice {
			out = append(out, violation("I7", "the name "+k+" leads to two servers", was, s.ID))
		}
		rentals[k] = s.ID
	}
	return out
}

// kinds of all operations that the evidence knows.
func (e *Evidence) kinds() map[string]metal.OperationKind {
	by := map[string]metal.OperationKind{"create_server": metal.KindDeploy, "destroy_server": metal.KindRelease, "set_power": metal.KindPower,
		"restart_server": metal.KindRestart, "inspect_server": metal.KindInspect, "clean_server": metal.KindClean, "cancel_operation": metal.KindClean, "warm_server": metal.KindWarm}
	out := map[string]metal.OperationKind{}
	for _, a := range e.accepted() {
		if k, ok := by[a.Command]; ok && out[a.OperationID] == "" { // a cancel names what was cancelled, or what follows
			out[a.OperationID] = k
		}
	}
	for _, o := range e.Operations {
		out[o.ID] = o.Kind
	}
	return out
}

// lateBy is what a leader may be late with its alarms: it must be there, and its
// loop must come around.
const lateBy = 30 * time.Second

// deadlines (I8): nothing that is open is past its time without a word, and no
// step took more than half of its time without an alarm.
func deadlines(e *Evidence, l *look) []Violation {
	var out []Violation
	for _, o := range e.Operations {
		if o.State.Ended() || o.Deadline.IsZero() {
			continue
		}
		l.saw("open operations", 1)
		limit := fsm.StepDeadline(o.Current())
		line := fmt.Sprintf("operation %s (%s) at %s, deadline %s, late %v, now %s", o.ID, o.Kind, o.Current(), stamp(o.Deadline), o.Late, stamp(e.Now))
		switch {
		case e.Now.After(o.Deadline.Add(lateBy)):
			out = append(out, violation("I8", "an operation is past its deadline and still open", line))
		case e.Now.After(o.Deadline.Add(lateBy-limit/2)) && !o.Late:
			out = append(out, violation("I8", "an operation is past half of its time without an alarm", line))
		}
	}
	type since struct {
		at   *metal.AuditEntry
		late bool
	}
	last := map[string]since{}
	for _, a := range e.accepted("assign_operation", "report_step", "mark_late", "expire_step", "fail_operation", "cancel_operation") {
		step, phase, _ := strings.Cut(a.Step, "/")
		was := last[a.OperationID]
		if a.Command == "mark_late" {
			was.late = true
			last[a.OperationID] = was
			continue
		}
		limit := fsm.StepDeadline(metal.Step(step))
		if was.at != nil && limit > 0 && (a.Command == "report_step" && phase != "started" || a.Command == "expire_step") {
			l.saw("steps' ends", 1)
		}
		if was.at != nil && !was.late && (a.Command == "report_step" && phase != "started" || a.Command == "expire_step") && limit > 0 && a.Time.Sub(was.at.Time) > limit/2+lateBy {
			out = append(out, violation("I8", fmt.Sprintf("step %s took %s of its %s and no alarm was raised", step, a.Time.Sub(was.at.Time).Round(time.Second), limit),
				auditLine(was.at), auditLine(a)))
		}
		if phase == "started" && was.at != nil && was.at.Command == "report_step" {
			continue // the time counts from the end of the step before
		}
		last[a.OperationID] = since{at: a}
	}
	return out
}

// ended (I15).
func ended(e *Evidence, l *look) []Violation {
	var out []Violation
	for _, o := range e.Operations {
		if e.Healed || o.State == metal.OperationFailed {
			l.saw("operations", 1)
		}
		line := fmt.Sprintf("operation %s (%s of %s) is %s at step %q, attempt %d", o.ID, o.Kind, o.Target, o.State, o.Current(), o.Attempt)
		switch {
		case e.Healed && !o.State.Ended():
			out = append(out, violation("I15", "an operation has not ended", line))
		case o.State == metal.OperationFailed && (o.Failure == nil || o.Failure.Reason == ""):
			out = append(out, violation("I15", "an operation failed without a reason", line))
		}
	}
	return out
}
