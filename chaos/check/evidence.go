// Package check holds a cluster to its invariants by what is left after a run:
// the clients' history, the state and its audit, the replicas' hashes, the
// controllers' own record, the machines' consoles and light machines' own record. It asks nobody: Collect does.
package check

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"bmc/chaos/history"
	"bmc/lab/light"
	"bmc/lab/virtualbmc"
	"bmc/metal"
)

// The lease's terms, as package dispatch grants it.
const (
	leaseTTL  = 15 * time.Second
	leaseSkew = 2 * time.Second
)

// Evidence is everything that the checks look at. Parts that a run does not have
// stay empty; what needs them then has looked at nothing, and its verdict says so.
type Evidence struct {
	Start time.Time // of the history
	Calls []history.Call
	// Charts is a folder for pictures of histories that cannot be explained.
	Charts string

	// Of the state at the end; Audit is the whole of it, by revision.
	Now        time.Time
	Healed     bool // all faults are gone, and operations had the time to end
	Servers    []*metal.Server
	Racks      []*metal.Rack
	Operations []*metal.Operation
	Addresses  []*metal.AddressAssignment
	Agents     []*metal.Agent
	Audit      []*metal.AuditEntry

	Replicas []Replica
	Commands []virtualbmc.Command  // of all controllers, in the order of arrival
	Sources  map[netip.Addr]string // name of the agent behind an address that controllers see
	DHCP     []DHCPAnswer
	Consoles map[string]string // serial output by server's name
	Machines []light.Event     // of light machines, in the order in which they happened
}

// Replica is what a node said of its state at some moment.
type Replica struct {
	Node     string
	Revision uint64
	Hash     string
}

// DHCPAnswer is a DHCP answer that an agent sent.
type DHCPAnswer struct {
	Agent   string
	MAC     string
	Address string
	Line    string // of its log, or of the machine's record
}

// Violation is one breach of an invariant, with what shows it.
type Violation struct {
	Invariant string
	Text      string
	Lines     []string
}

func (v Violation) String() string {
	s := v.Invariant + ": " + v.Text
	for _, l := range v.Lines {
		s += "\n    " + l
	}
	return s
}

func violation(invariant, text string, lines ...string) Violation {
	return Violation{invariant, text, lines}
}

// Check is one invariant's. What it looks at it says to the look that it is given.
type Check struct {
	Name string
	What string
	Run  func(*Evidence, *look) []Violation
}

// Checks lists all, by the invariants' numbers.
var Checks = []Check{
	{"I1", "an acknowledged write is never lost", acknowledged},
	{"I2", "the history is linearizable per name, server and address", linearizable},
	{"I3", "replicas' state hashes are equal at equal index", equalHashes},
	{"I4", "no controller obeys an agent whose lease has ended; epochs never decrease", epochs},
	{"I5", "no controller acts without a committed, assigned operation", intents},
	{"I6", "no address is leased twice; unknown MACs get no answer", addresses},
	{"I7", "a server has at most one tenant", tenants},
	{"I8", "nothing outlives its deadline without an alarm", deadlines},
	{"I9", "between two tenants the controller was read as off", readOff},
	{"I10", "a light machine's disk is wiped between tenants, and no wiped disk boots", disks},
	{"I12", "an agent touches only its own rack", ownRack},
	{"I14", "a request ID has one effect", oneEffect},
	{"I15", "after healing, every operation has ended, a failed one with a reason", ended},
	{"twice", "no power command in vain, no cycle or reset, no task twice in a boot", twice},
}

func stamp(t time.Time) string { return t.UTC().Format("15:04:05.000") }

func auditLine(a *metal.AuditEntry) string {
	s := fmt.Sprintf("audit %d %s %s", a.Revision, stamp(a.Time), a.Command)
	for _, f := range []struct{ name, value string }{
		{"target", a.Target}, {"object", a.ObjectID}, {"operation", a.OperationID}, {"agent", a.AgentID},
		{"step", a.Step}, {"request", a.RequestID}, {"outcome", string(a.Outcome)},
	} {
		if f.value != "" {
			s += " " + f.name + "=" + f.value
		}
	}
	if a.Epoch != 0 {
		s += fmt.Sprintf(" epoch=%d", a.Epoch)
	}
	return s
}

func callLine(c *history.Call) string {
	s := fmt.Sprintf("call %d client %d %s %s %s %s", c.ID, c.Client, c.Kind, c.Name, c.Outcome, c.Code)
	if c.Operation != "" {
		s += " operation=" + c.Operation
	}
	return s + " request=" + c.RequestID
}

func commandLine(c *virtualbmc.Command) string {
	return fmt.Sprintf("controller of %s %s from %s session %d: %s data=%s on=%v ok=%v", c.Server, stamp(c.Time), c.From, c.Session, c.Name, c.Data, c.On, c.OK)
}

// accepted are the audit's entries that took effect, of these commands or of all.
func (e *Evidence) accepted(commands ...string) []*metal.AuditEntry {
	var out []*metal.AuditEntry
	for _, a := range e.Audit {
		if a.Outcome == "" && (len(commands) == 0 || slices.Contains(commands, a.Command)) {
			out = append(out, a)
		}
	}
	return out
}

func (e *Evidence) serverByName(name string) *metal.Server {
	for _, s := range e.Servers {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (e *Evidence) agentByName(name string) *metal.Agent {
	for _, a := range e.Agents {
		if a.Name == name {
			return a
		}
	}
	return nil
}
