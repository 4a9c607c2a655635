package check

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bmc/lab/virtualbmc"
	"bmc/metal"
)

// Commands of the chassis (IPMI 2.0, table G-1), and what Chassis Control does
// (section 28.3).
const (
	netFnChassis     = 0
	getChassisStatus = 0x01
	chassisControl   = 0x02
	setBootOptions   = 0x08

	doOff, doOn, doCycle, doReset, doSoft = 0, 1, 2, 3, 5
)

// acts says whether a controller did what it was told, and that it changed something.
func acts(c *virtualbmc.Command) bool {
	return c.OK && !c.Fault && c.NetFn == netFnChassis && (c.Cmd == chassisControl || c.Cmd == setBootOptions)
}

// does is what a Chassis Control asks for, or -1.
func does(c *virtualbmc.Command) int {
	if c.NetFn != netFnChassis || c.Cmd != chassisControl || len(c.Data) < 2 {
		return -1
	}
	var v int
	if _, err := fmt.Sscanf(c.Data[:2], "%02x", &v); err != nil {
		return -1
	}
	return v & 0xf
}

// agentOf is who sent a command; nil for an address that no agent has.
func (e *Evidence) agentOf(c *virtualbmc.Command) *metal.Agent {
	from, err := netip.ParseAddrPort(c.From)
	if err != nil {
		return nil
	}
	return e.agentByName(e.Sources[from.Addr().Unmap()])
}

// epochs (I4). A grant's time is the leader's when it let the successor in, which
// is after the former holder's lease has ended by the holder's own count.
func epochs(e *Evidence, l *look) []Violation {
	var out []Violation
	grants := map[string][]*metal.AuditEntry{} // by rack
	for _, a := range e.accepted("grant_lease") {
		grants[a.ObjectID] = append(grants[a.ObjectID], a)
	}
	out = append(out, e.reports(grants, l)...)
	highest := map[string]uint64{} // by server
	from := map[string]*virtualbmc.Command{}
	for i := range e.Commands {
		c := &e.Commands[i]
		s, agent := e.serverByName(c.Server), e.agentOf(c)
		if !acts(c) || s == nil || agent == nil {
			continue
		}
		l.saw("acts of controllers", 1)
		var own, newest *metal.AuditEntry
		for _, g := range grants[s.RackID] {
			if g.Time.After(c.Time) {
				break
			}
			newest = g
			if g.AgentID == agent.ID {
				own = g
			}
		}
		switch {
		case own == nil:
			out = append(out, violation("I4", agent.Name+" commanded a controller without ever having held the lease of its rack", commandLine(c)))
			continue
		case own != newest:
			out = append(out, violation("I4", agent.Name+" commanded a controller after its lease had ended", auditLine(own), auditLine(newest), commandLine(c)))
		}
		if own.Epoch < highest[c.Server] {
			out = append(out, violation("I4", fmt.Sprintf("a controller obeyed epoch %d after epoch %d", own.Epoch, highest[c.Server]), commandLine(from[c.Server]), commandLine(c)))
			continue
		}
		highest[c.Server], from[c.Server] = own.Epoch, c
	}
	return out
}

// reports: what an agent says under an epoch that is over is refused.
func (e *Evidence) reports(grants map[string][]*metal.AuditEntry, l *look) []Violation {
	var out []Violation
	rack := map[string]string{}
	for _, s := range e.Servers {
		rack[s.ID] = s.RackID
	}
	for _, a := range e.accepted("report_step", "assign_operation") {
		var newest *metal.AuditEntry
		for _, g := range grants[rack[a.ObjectID]] {
			if g.Revision < a.Revision {
				newest = g
			}
		}
		if newest != nil {
			l.saw("reports", 1)
		}
		if newest != nil && (newest.Epoch != a.Epoch || newest.AgentID != a.AgentID) {
			out = append(out, violation("I4", fmt.Sprintf("a command from under epoch %d was accepted after epoch %d was granted", a.Epoch, newest.Epoch), auditLine(newest), auditLine(a)))
		}
	}
	return out
}

// span is the time in which an operation may act by an agent.
type span struct {
	assigned *metal.AuditEntry
	until    time.Time // zero: open
	ended    *metal.AuditEntry
}

// spans are all assignments, by server, in the order of the audit.
func (e *Evidence) spans() map[string][]*span {
	kinds := e.kinds()
	out := map[string][]*span{}
	open := map[string]*span{} // by operation
	server := map[string]string{}
	end := func(op string, at time.Time, a *metal.AuditEntry) {
		if s := open[op]; s != nil {
			s.until, s.ended = at, a
			delete(open, op)
		}
	}
	for _, a := range e.accepted() {
		switch a.Command {
		case "assign_operation":
			// The former agent has lost the lease: I4 is about what it does then.
			end(a.OperationID, a.Time.Add(leaseTTL), a)
			s := &span{assigned: a}
			open[a.OperationID], server[a.OperationID] = s, a.ObjectID
			out[a.ObjectID] = append(out[a.ObjectID], s)
		case "report_step":
			step, phase, _ := strings.Cut(a.Step, "/")
			kind := kinds[a.OperationID]
			if kind == "" {
				kind = metal.KindEnroll // only inventories begin operations that no other command names
			}
			plan := metal.Plan(kind)
			if phase == "failed" || phase == "done" && step == string(plan[len(plan)-1]) {
				end(a.OperationID, a.Time, a)
			}
		case "expire_step", "fail_operation":
			// The agent has to learn of it.
			end(a.OperationID, a.Time.Add(leaseTTL+leaseSkew), a)
		case "create_server", "inspect_server", "clean_server", "retire_server", "forget_server":
			for op, s := range server { // what the system had begun by itself gives way
				if s == a.ObjectID && kinds[op].Yields() {
					end(op, a.Time.Add(leaseTTL+leaseSkew), a)
				}
			}
		case "cancel_operation":
			for op, s := range server {
				if s == a.ObjectID {
					end(op, a.Time.Add(leaseTTL+leaseSkew), a)
				}
			}
		}
	}
	return out
}

// intents (I5): each act is by the agent to which an operation on that server was
// assigned before, which had said that it starts a step, and which had not ended.
func intents(e *Evidence, l *look) []Violation {
	var out []Violation
	spans := e.spans()
	started := map[string]*metal.AuditEntry{} // the first, by operation and agent
	for _, a := range e.accepted("report_step") {
		if k := a.OperationID + " " + a.AgentID; started[k] == nil && strings.HasSuffix(a.Step, "/started") {
			started[k] = a
		}
	}
	for i := range e.Commands {
		c := &e.Commands[i]
		if !acts(c) {
			continue
		}
		l.saw("acts of controllers", 1)
		s, agent := e.serverByName(c.Server), e.agentOf(c)
		if s == nil || agent == nil {
			out = append(out, violation("I5", "a command of nobody that the cluster knows", commandLine(c)))
			continue
		}
		var near *span
		covered, said := false, false
		for _, sp := range spans[s.ID] {
			if sp.assigned.AgentID != agent.ID || sp.assigned.Time.After(c.Time) {
				continue
			}
			near = sp
			if sp.until.IsZero() || !c.Time.After(sp.until) {
				first := started[sp.assigned.OperationID+" "+agent.ID]
				covered, said = true, said || first != nil && !first.Time.After(c.Time)
			}
		}
		if covered && said {
			continue
		}
		if covered {
			out = append(out, violation("I5", agent.Name+" acted on "+c.Server+" before it was recorded that it starts a step", auditLine(near.assigned), commandLine(c)))
			continue
		}
		lines := []string{commandLine(c)}
		if near != nil {
			lines = append(lines, auditLine(near.assigned), auditLine(near.ended))
		}
		out = append(out, violation("I5", "no operation on "+c.Server+" that was assigned to "+agent.Name+" covers a command", lines...))
	}
	return append(out, granted(e, l)...)
}

// readOff (I9).
func readOff(e *Evidence, l *look) []Violation {
	var out []Violation
	names := map[string]string{}
	for _, s := range e.Servers {
		names[s.ID] = s.Name
	}
	ends := map[string]*metal.AuditEntry{} // of the last rental, by server
	kinds, machines := e.kinds(), e.powered()
	for _, a := range e.accepted("create_server", "destroy_server", "cancel_operation") {
		if a.Command != "create_server" {
			if a.Command == "destroy_server" || kinds[a.OperationID] == metal.KindClean {
				ends[a.ObjectID] = a
			}
			continue
		}
		former := ends[a.ObjectID]
		if former == nil || names[a.ObjectID] == "" {
			continue
		}
		delete(ends, a.ObjectID)
		if len(e.Commands) > 0 {
			l.saw("changes of tenant", 1)
		}
		if !e.wasOff(names[a.ObjectID], former.Time, a.Time) {
			out = append(out, violation("I9", "the controller of "+names[a.ObjectID]+" was not read as off between two tenants", auditLine(former), auditLine(a)))
		}
		if m := machines[a.ObjectID]; m != nil && !m.wasOff(former.Time, a.Time) {
			out = append(out, violation("I9", names[a.ObjectID]+" was not off between two tenants", auditLine(former), auditLine(a)))
		}
	}
	out = append(out, e.declaredOff(kinds, names, l)...)
	for _, s := range e.Servers { // whose next tenant is yet to come
		former := ends[s.ID]
		if former == nil || s.State != metal.StateAvailable || len(e.Commands) == 0 {
			continue
		}
		l.saw("servers given back", 1)
		if !e.wasOff(s.Name, former.Time, e.Now) {
			out = append(out, violation("I9", s.Name+" is available and its controller was not read as off", auditLine(former)))
		}
	}
	return out
}

// declaredOff: the report that frees a machine of its tenant says what was read.
func (e *Evidence) declaredOff(kinds map[string]metal.OperationKind, names map[string]string, l *look) []Violation {
	var out []Violation
	begun := map[string]*metal.AuditEntry{} // destroy_server, by operation
	for _, a := range e.accepted("destroy_server", "report_step") {
		switch {
		case a.Command == "destroy_server":
			begun[a.OperationID] = a
		case a.Step != string(metal.StepPowerOff)+"/done" || kinds[a.OperationID] != metal.KindRelease:
		case begun[a.OperationID] == nil || names[a.ObjectID] == "" || len(e.Commands) == 0:
		case e.wasOff(names[a.ObjectID], begun[a.OperationID].Time, a.Time):
			l.saw("machines said to be off", 1)
		default:
			l.saw("machines said to be off", 1)
			out = append(out, violation("I9", names[a.ObjectID]+" was taken from its tenant and its controller had not been read as off", auditLine(begun[a.OperationID]), auditLine(a)))
		}
	}
	return out
}

func (e *Evidence) wasOff(server string, from, to time.Time) bool {
	if len(e.Commands) == 0 {
		return true // there is no record
	}
	for i := range e.Commands {
		c := &e.Commands[i]
		if c.Server == server && c.OK && !c.Fault && c.NetFn == netFnChassis && c.Cmd == getChassisStatus &&
			!c.Time.Before(from) && !c.Time.After(to) && len(c.Answer) >= 2 && strings.Contains("02468ace", c.Answer[1:2]) {
			return true
		}
	}
	return false
}

// ownRack (I12).
func ownRack(e *Evidence, l *look) []Violation {
	var out []Violation
	for i := range e.Commands {
		c := &e.Commands[i]
		s, agent := e.serverByName(c.Server), e.agentOf(c)
		if s == nil || agent == nil {
			continue
		}
		l.saw("commands", 1)
		own := false
		for _, r := range agent.Racks {
			own = own || r == s.RackID
		}
		if !own {
			out = append(out, violation("I12", agent.Name+" has touched a controller of another rack", commandLine(c)))
		}
	}
	return append(out, ownReports(e, l)...)
}

// ownReports: whoever has reported a step, by its certificate, serves the
// server's rack.
func ownReports(e *Evidence, l *look) []Violation {
	var out []Violation
	agents, racks := map[string]*metal.Agent{}, map[string]string{}
	for _, a := range e.Agents {
		agents["agent:"+a.ID] = a
	}
	for _, s := range e.Servers {
		racks[s.ID] = s.RackID
	}
	for _, a := range e.accepted("report_step") {
		agent, rack := agents[a.Principal], racks[a.ObjectID]
		if agent != nil && rack != "" {
			l.saw("reports", 1)
		}
		if agent != nil && rack != "" && !slices.Contains(agent.Racks, rack) {
			out = append(out, violation("I12", agent.Name+" has reported a step of a server of another rack", auditLine(a)))
		}
	}
	return out
}
