package check

import (
	"fmt"
	"strings"
	"time"

	"bmc/lab/light"
	"bmc/metal"
)

// Light machines keep their own record of what happened to them: they are the
// only witnesses of what a ramdisk began, what a disk held and what was on the
// wire. The checks below read it.

func machineLine(m *light.Event) string {
	s := fmt.Sprintf("machine %s %s %s", m.Server, stamp(m.Time), m.Event)
	for _, f := range []struct{ name, value string }{
		{"boot", m.Boot}, {"task", m.Task}, {"mac", m.MAC}, {"addr", m.Address}, {"from", m.From},
	} {
		if f.value != "" {
			s += " " + f.name + "=" + f.value
		}
	}
	return s + " " + m.Detail
}

// machines calls f for each event of a machine that the cluster knows, in order.
func (e *Evidence) machines(f func(*metal.Server, *light.Event)) {
	servers := map[string]*metal.Server{}
	for _, s := range e.Servers {
		servers[s.Name] = s
	}
	for i := range e.Machines {
		if s := servers[e.Machines[i].Server]; s != nil {
			f(s, &e.Machines[i])
		}
	}
}

// onWire takes the DHCP answers of agents, by the addresses under which they
// answer, from the machines' record. Who else answered is no agent's doing.
func (e *Evidence) onWire(agents map[string]string) {
	for i := range e.Machines {
		m := &e.Machines[i]
		if m.Event == light.Answered && agents[m.From] != "" {
			e.DHCP = append(e.DHCP, DHCPAnswer{Agent: agents[m.From], MAC: m.MAC, Address: m.Address, Line: machineLine(m)})
		}
	}
}

// Asked is how often machines that nobody enrolled asked for an address.
func (e *Evidence) Asked() (n int) {
	for i := range e.Machines {
		if e.Machines[i].Event == light.Asked {
			n++
		}
	}
	return n
}

// operationOf is the operation that a task belongs to: a task is named
// operation/attempt/step.
func operationOf(task string) string {
	op, _, _ := strings.Cut(task, "/")
	return op
}

// grantedTwice: a task that was begun is begun again only after the machine was off.
func grantedTwice(e *Evidence, l *look) []Violation {
	var out []Violation
	begun := map[string]map[string]*light.Event{} // by machine and task, since it was off
	e.machines(func(_ *metal.Server, m *light.Event) {
		switch m.Event {
		case light.PowerOn, light.PowerOff:
			delete(begun, m.Server)
		case light.TaskStart:
			l.saw("tasks", 1)
			if begun[m.Server] == nil {
				begun[m.Server] = map[string]*light.Event{}
			}
			if was := begun[m.Server][m.Task]; was != nil {
				text := "a light machine began a task twice in one boot"
				if was.Boot != m.Boot {
					text = "a light machine began a task in a second boot and was not off between them"
				}
				out = append(out, violation("twice", text, machineLine(was), machineLine(m)))
			}
			begun[m.Server][m.Task] = m
		}
	})
	return out
}

// inFlight is what an answer of an agent may take to the machine.
const inFlight = 2 * time.Second

// granted (I5): a ramdisk gets its certificate while an operation on the server
// is assigned, and begins nothing but tasks of that one.
func granted(e *Evidence, l *look) []Violation {
	var out []Violation
	spans := e.spans()
	e.machines(func(s *metal.Server, m *light.Event) {
		if m.Event != light.Hello && m.Event != light.TaskStart {
			return
		}
		l.saw("ramdisks' hellos and tasks", 1)
		lines := []string{machineLine(m)}
		for _, sp := range spans[s.ID] {
			if m.Event == light.TaskStart && sp.assigned.OperationID != operationOf(m.Task) || sp.assigned.Time.After(m.Time) {
				continue
			}
			if sp.until.IsZero() || !m.Time.After(sp.until.Add(inFlight)) {
				return
			}
			lines = append(lines, auditLine(sp.assigned), auditLine(sp.ended))
		}
		text := "the ramdisk of " + s.Name + " was answered with no operation assigned"
		if m.Event == light.TaskStart {
			text = s.Name + " began a task of no operation that was assigned on it"
		}
		out = append(out, violation("I5", text, lines...))
	})
	return out
}

// powered is when a machine had power: by its own record, which starts off.
type powered struct {
	edges []*light.Event // power-on and power-off
}

func (e *Evidence) powered() map[string]*powered {
	out := map[string]*powered{}
	e.machines(func(s *metal.Server, m *light.Event) {
		p := out[s.ID]
		if p == nil {
			p = &powered{}
			out[s.ID] = p
		}
		if m.Event == light.PowerOn || m.Event == light.PowerOff {
			p.edges = append(p.edges, m)
		}
	})
	return out
}

// wasOff says whether the machine had no power at some moment of a time.
func (p *powered) wasOff(from, to time.Time) bool {
	on := false
	for _, m := range p.edges {
		if m.Time.After(to) {
			break
		}
		if !m.Time.Before(from) && (!on || m.Event == light.PowerOff) {
			return true
		}
		on = m.Event == light.PowerOn
	}
	return !on
}

// content is what a light machine's disk holds, as its record tells.
type content struct {
	wiping *light.Event
	wiped  bool
	write  *light.Event // of the last image, whose first byte was written
	silent bool         // nobody answered its network boot: the firmware goes on to the disk by itself
}

// disks (I10, as far as light machines can show it): between two tenants the
// disk was wiped to the end, nothing boots from a wiped disk nor from one whose
// tenant has gone, and who is available is wiped.
func disks(e *Evidence, l *look) []Violation {
	var out []Violation
	all, gone := map[string]*content{}, e.gone()
	e.machines(func(s *metal.Server, m *light.Event) {
		c := all[s.ID]
		if c == nil {
			c = &content{}
			all[s.ID] = c
		}
		switch m.Event {
		case light.PowerOn:
			c.silent = false
		case light.NoBoot:
			c.silent = strings.HasSuffix(m.Detail, light.NoAnswer)
		case light.WipeDisk:
			c.wiping = m
		case light.TaskEnd:
			if c.wiping != nil && c.wiping.Task == m.Task {
				c.wiped, c.wiping = m.Detail == "", nil
			}
		case light.PowerOff:
			c.wiping = nil // cut short
		case light.WriteDisk:
			l.saw("images written", 1)
			if !c.wiped && c.write != nil && operationOf(c.write.Task) != operationOf(m.Task) {
				out = append(out, violation("I10", "an image was written to "+s.Name+" over what its former tenant had left", machineLine(c.write), machineLine(m)))
			}
			c.wiped, c.write = false, m
		case light.DiskBoot:
			l.saw("boots from disk", 1)
			if c.wiped {
				out = append(out, violation("I10", s.Name+" booted from a disk that had been wiped", machineLine(m)))
			}
			switch a := last(gone[s.ID], m.Time); {
			case a == nil || c.wiped || c.write != nil && !c.write.Time.Before(a.Time):
			case c.silent: // the agent that served it died meanwhile; its successor starts it anew
				l.saw("of them of a tenant that had gone, as nobody answered the firmware", 1)
			default:
				out = append(out, violation("I10", s.Name+" booted the system of a tenant that had gone", auditLine(a), machineLine(m)))
			}
		}
	})
	for _, s := range e.Servers {
		if c := all[s.ID]; c != nil && s.State == metal.StateAvailable && !c.wiped {
			line := "machine " + s.Name + " has no wipe on record"
			if c.write != nil {
				line = machineLine(c.write)
			}
			out = append(out, violation("I10", s.Name+" is available and its disk was not wiped to the end", line))
		}
	}
	return out
}

// gone is the reports, by server and in order, that a machine whose disk is to be
// wiped was read as off: from then on it has no tenant.
func (e *Evidence) gone() map[string][]*metal.AuditEntry {
	out, kinds := map[string][]*metal.AuditEntry{}, e.kinds()
	for _, a := range e.accepted("report_step") {
		if k := kinds[a.OperationID]; a.Step == string(metal.StepPowerOff)+"/done" && (k == metal.KindRelease || k == metal.KindClean) {
			out[a.ObjectID] = append(out[a.ObjectID], a)
		}
	}
	return out
}

// last is the last entry up to a time, or nil.
func last(all []*metal.AuditEntry, t time.Time) (found *metal.AuditEntry) {
	for _, a := range all {
		if !a.Time.After(t) {
			found = a
		}
	}
	return found
}
