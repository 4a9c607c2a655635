package check

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bmc/chaos/history"
	"bmc/lab/light"
	"bmc/lab/virtualbmc"
	"bmc/metal"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds float64) time.Time { return t0.Add(time.Duration(seconds * float64(time.Second))) }

// good is what a life leaves behind: created by agent a1 under epoch 1, taken
// over by a2 under epoch 2 in the middle, destroyed, and rented again.
func good() *Evidence {
	e := &Evidence{
		Start: t0, Now: at(400), Healed: true,
		Servers: []*metal.Server{{ID: "srv-1", Name: "r1-u01", RackID: "rack-1", State: metal.StateDeploying, MACs: []string{"52:54:00:00:00:01"},
			Address: netip.MustParseAddr("10.77.1.11"), Rental: &metal.Rental{Name: "web-2", Project: "prj"}}},
		Racks:     []*metal.Rack{{ID: "rack-1", Name: "r1"}},
		Agents:    []*metal.Agent{{ID: "agt-1", Name: "r1-a1", Racks: []string{"rack-1"}}, {ID: "agt-2", Name: "r1-a2", Racks: []string{"rack-1"}}, {ID: "agt-3", Name: "r2-a1", Racks: []string{"rack-2"}}},
		Addresses: []*metal.AddressAssignment{{RackID: "rack-1", Address: netip.MustParseAddr("10.77.1.11"), ServerID: "srv-1"}},
		Sources: map[netip.Addr]string{netip.MustParseAddr("10.78.1.1"): "r1-a1", netip.MustParseAddr("10.78.1.2"): "r1-a2",
			netip.MustParseAddr("10.78.2.1"): "r2-a1"},
		Replicas: []Replica{{"cp1", 10, "aa"}, {"cp2", 10, "aa"}, {"cp3", 9, "bb"}},
		DHCP:     []DHCPAnswer{{"r1-a1", "52:54:00:00:00:01", "10.77.1.11", "line"}},
		Consoles: map[string]string{"r1-u01": "bmc: starting the network\nbmc: task started task=op-1/1/write-image\nbmc: starting the network\nbmc: task started task=op-1/1/write-image\n"},
		Calls: []history.Call{
			{ID: 1, Kind: history.Create, Name: "web-1", RequestID: "q-1", Begin: 1, End: 2, Outcome: history.OK, Operation: "op-1", Servers: []history.Server{{ID: "srv-1", Rental: "web-1"}}},
			{ID: 2, Kind: history.Destroy, Name: "web-1", RequestID: "q-2", Begin: 3, End: 4, Outcome: history.OK, Operation: "op-2", Servers: []history.Server{{ID: "srv-1"}}},
			{ID: 3, Kind: history.Create, Name: "web-2", RequestID: "q-3", Begin: 5, End: 6, Outcome: history.OK, Operation: "op-3", Servers: []history.Server{{ID: "srv-1", Rental: "web-2"}}},
		},
		Operations: []*metal.Operation{
			{ID: "op-1", Kind: metal.KindDeploy, State: metal.OperationSucceeded, Principal: "ann", RequestID: "q-1"},
			{ID: "op-2", Kind: metal.KindRelease, State: metal.OperationSucceeded, Principal: "ann", RequestID: "q-2"},
			{ID: "op-3", Kind: metal.KindDeploy, State: metal.OperationFailed, Principal: "ann", RequestID: "q-3", Failure: &metal.Failure{Reason: metal.CodeNoAgent}},
		},
	}
	e.audit(0, "grant_lease", "rack-1", "", "agt-1", 1, "")
	e.audit(10, "create_server", "srv-1", "op-1", "", 0, "q-1")
	e.audit(11, "assign_operation", "srv-1", "op-1", "agt-1", 1, "")
	e.step(11.5, "op-1", "agt-1", 1, "power-off/started")
	e.step(14, "op-1", "agt-1", 1, "power-off/done")
	e.audit(40, "grant_lease", "rack-1", "", "agt-2", 2, "")
	e.audit(41, "assign_operation", "srv-1", "op-1", "agt-2", 2, "")
	e.step(80, "op-1", "agt-2", 2, "ready/done")
	e.audit(100, "destroy_server", "srv-1", "op-2", "", 0, "q-2")
	e.audit(101, "assign_operation", "srv-1", "op-2", "agt-2", 2, "")
	e.step(101.5, "op-2", "agt-2", 2, "power-off/started")
	e.step(105, "op-2", "agt-2", 2, "power-off/done")
	e.step(195, "op-2", "agt-2", 2, "wipe/done")
	e.step(200, "op-2", "agt-2", 2, "power-off-end/done")
	e.audit(300, "create_server", "srv-1", "op-3", "", 0, "q-3")

	e.command(12, 1, setBootOptions, "05", true, "")
	e.command(13, 1, chassisControl, "01", false, "")
	e.command(50, 2, getChassisStatus, "", true, "010000")
	e.command(102, 2, chassisControl, "05", true, "")
	e.command(103, 2, chassisControl, "00", true, "")
	e.command(104, 2, getChassisStatus, "", false, "000000")
	e.live()
	return e
}

// live is the same life as a light machine records it, with a stranger beside it.
func (e *Evidence) live() {
	e.machine(13.1, light.PowerOn, "", "", "")
	e.wire(13.5, "r1-u01", "52:54:00:00:00:01", "10.77.1.11", "10.77.1.1")
	e.machine(14, light.Asked, "", "", "discover as firmware").Server = "r1-stranger"
	e.wire(14.5, "r1-stranger", "02:4c:41:01:fe:01", "192.0.2.66", "192.0.2.1") // by a rogue server, no agent
	e.machine(15, light.Hello, "b1", "", "10.77.1.1:8443")
	e.machine(16, light.TaskStart, "b1", "op-1/1/write-image", "")
	e.machine(17, light.WriteDisk, "b1", "op-1/1/write-image", "tiny")
	e.machine(18, light.TaskEnd, "b1", "op-1/1/write-image", "")
	e.machine(30, light.DiskBoot, "", "", "web-1")
	e.machine(103.1, light.PowerOff, "", "", "controller")
	e.machine(110, light.PowerOn, "", "", "")
	e.machine(111, light.Hello, "b2", "", "10.77.1.2:8443")
	e.machine(112, light.TaskStart, "b2", "op-2/1/wipe", "")
	e.machine(113, light.WipeDisk, "b2", "op-2/1/wipe", "")
	e.machine(190, light.TaskEnd, "b2", "op-2/1/wipe", "")
	e.machine(199, light.PowerOff, "", "", "controller")
	e.onWire(map[string]string{"10.77.1.1": "r1-a1", "10.77.1.2": "r1-a2"})
}

func (e *Evidence) machine(t float64, event, boot, task, detail string) *light.Event {
	e.Machines = append(e.Machines, light.Event{Time: at(t), Server: "r1-u01", Event: event, Boot: boot, Task: task, Detail: detail})
	return &e.Machines[len(e.Machines)-1]
}

// between puts the newest event of the machines where its time belongs.
func (e *Evidence) between() {
	slices.SortStableFunc(e.Machines, func(a, b light.Event) int { return a.Time.Compare(b.Time) })
}

func (e *Evidence) wire(t float64, machine, mac, addr, from string) {
	m := e.machine(t, light.Answered, "", "", "ack")
	m.Server, m.MAC, m.Address, m.From = machine, mac, addr, from
}

// drop forgets all events of a kind and a task.
func (e *Evidence) drop(event, task string) {
	e.Machines = slices.DeleteFunc(e.Machines, func(m light.Event) bool { return m.Event == event && m.Task == task })
}

func (e *Evidence) audit(t float64, command, object, operation, agent string, epoch uint64, request string) *metal.AuditEntry {
	a := &metal.AuditEntry{Revision: uint64(len(e.Audit) + 1), Time: at(t), Principal: "ann", Command: command, ObjectID: object,
		OperationID: operation, AgentID: agent, Epoch: epoch, RequestID: request}
	e.Audit = append(e.Audit, a)
	return a
}

func (e *Evidence) step(t float64, operation, agent string, epoch uint64, step string) {
	e.audit(t, "report_step", "srv-1", operation, agent, epoch, "").Step = step
}

func (e *Evidence) command(t float64, agent int, cmd uint8, data string, on bool, answer string) {
	e.Commands = append(e.Commands, virtualbmc.Command{Server: "r1-u01", Time: at(t), From: fmt.Sprintf("10.78.1.%d:4000", agent), NetFn: netFnChassis,
		Cmd: cmd, Data: data, On: on, OK: true, Answer: answer})
	slices.SortStableFunc(e.Commands, func(a, b virtualbmc.Command) int { return a.Time.Compare(b.Time) })
}

// insert puts the newest audit entry where its time belongs.
func (e *Evidence) insert() {
	slices.SortStableFunc(e.Audit, func(a, b *metal.AuditEntry) int { return a.Time.Compare(b.Time) })
	for i, a := range e.Audit {
		a.Revision = uint64(i + 1)
	}
}

// Each way to be wrong is found by its own invariant, and a good run by none.
func TestEachInvariantFindsItsViolation(t *testing.T) {
	if v := All(good()); len(v) != 0 {
		t.Fatalf("a good run: %v", v)
	}
	for _, tt := range []struct {
		invariant, name string
		change          func(*Evidence)
		also            []string // invariants that cannot but see it, too
	}{
		{"I1", "an acknowledged destroy is gone", func(e *Evidence) { e.Audit[8].RequestID = "other" }, nil},
		{"I1", "an acknowledged create was refused", func(e *Evidence) { e.Audit[14].Outcome = metal.CodeNoCapacity }, nil},
		{"I1", "an answer from a state that was lost", func(e *Evidence) { e.Calls[0].Revision = 99 }, nil},
		{"I2", "a name leads to two servers", func(e *Evidence) {
			e.Calls = append(e.Calls, history.Call{ID: 4, Kind: history.Get, Name: "web-2", Begin: 7, End: 8, Outcome: history.OK, Servers: []history.Server{{ID: "srv-9", Rental: "web-2"}}})
		}, nil},
		{"I3", "a replica differs", func(e *Evidence) { e.Replicas = append(e.Replicas, Replica{"cp3", 10, "bb"}) }, nil},
		{"I4", "the former holder still acts", func(e *Evidence) { e.command(45, 1, chassisControl, "00", true, "") }, nil},
		{"I4", "an epoch decreases", func(e *Evidence) {
			e.command(44, 2, chassisControl, "00", true, "")
			e.command(45, 1, chassisControl, "01", false, "")
		}, []string{"I4", "I5"}},
		{"I4", "an agent that never had a lease", func(e *Evidence) { e.command(30, 2, setBootOptions, "05", true, "") }, []string{"I5"}},
		{"I4", "a report from under an older epoch", func(e *Evidence) { e.step(60, "op-1", "agt-1", 1, "write-image/done"); e.insert() }, nil},
		{"I5", "an act after the operation's end", func(e *Evidence) { e.command(90, 2, chassisControl, "00", true, "") }, nil},
		{"I5", "an act before the operation was assigned", func(e *Evidence) { e.command(10.5, 1, chassisControl, "01", false, "") }, nil},
		{"I5", "a stranger", func(e *Evidence) { e.command(50, 77, chassisControl, "00", true, "") }, nil},
		{"I5", "an act before the step's start was recorded", func(e *Evidence) { e.command(11.2, 1, chassisControl, "01", false, "") }, nil},
		{"I5", "a ramdisk was answered with nothing assigned", func(e *Evidence) {
			e.machine(250, light.Hello, "b3", "", "10.77.1.2:8443")
		}, nil},
		{"I5", "a task after its operation's end", func(e *Evidence) {
			e.machine(150, light.TaskStart, "b2", "op-1/1/configure", "")
			e.between()
		}, nil},
		{"I6", "an unknown MAC was answered", func(e *Evidence) {
			e.DHCP = append(e.DHCP, DHCPAnswer{"r1-a1", "52:54:00:ff:ff:ff", "10.77.1.99", "line"})
		}, nil},
		{"I6", "one address for two MACs", func(e *Evidence) {
			e.Servers = append(e.Servers, &metal.Server{ID: "srv-2", Name: "r1-u02", RackID: "rack-1", MACs: []string{"52:54:00:00:00:02"}, Address: netip.MustParseAddr("10.77.1.11")})
		}, nil},
		{"I6", "another's address", func(e *Evidence) { e.DHCP[0].Address = "10.77.1.12" }, nil},
		{"I6", "a stranger was answered on the wire", func(e *Evidence) {
			e.wire(20, "r1-stranger", "02:4c:41:01:fe:01", "10.77.1.50", "10.77.1.2")
			e.onWire(map[string]string{"10.77.1.2": "r1-a2"})
		}, nil},
		{"I6", "a machine was given another's address on the wire", func(e *Evidence) {
			e.wire(20, "r1-u01", "52:54:00:00:00:01", "10.77.1.12", "10.77.1.2")
			e.onWire(map[string]string{"10.77.1.2": "r1-a2"})
		}, nil},
		{"I7", "two tenants", func(e *Evidence) { e.audit(85, "create_server", "srv-1", "op-9", "", 0, "q-9"); e.insert() }, nil},
		{"I7", "a tenant before the former machine was off", func(e *Evidence) {
			e.audit(102, "create_server", "srv-1", "op-9", "", 0, "q-9")
			e.insert()
		}, []string{"I9"}},
		{"I8", "an open operation past its deadline", func(e *Evidence) {
			e.Healed = false
			e.Operations[2].State, e.Operations[2].Steps = metal.OperationRunning, []metal.StepStatus{{Step: metal.StepPowerOff}}
			e.Operations[2].Deadline = at(310)
		}, nil},
		{"I8", "half of the time and no alarm", func(e *Evidence) {
			e.Healed = false
			e.Operations[2].State, e.Operations[2].Steps = metal.OperationRunning, []metal.StepStatus{{Step: metal.StepBootRamdisk}}
			e.Operations[2].Deadline = at(500)
		}, nil},
		{"I8", "a step that took long in silence", func(e *Evidence) { e.Audit[11].Time = at(194) }, nil},
		{"I8", "a step that ran out of time in silence", func(e *Evidence) {
			e.audit(321, "assign_operation", "srv-1", "op-3", "agt-2", 2, "")
			e.audit(441, "expire_step", "srv-1", "op-3", "", 0, "").Step = string(metal.StepPowerOff)
		}, nil},
		{"I9", "not read as off", func(e *Evidence) { e.Commands[len(e.Commands)-1].Answer = "010000" }, nil},
		{"I9", "available and never read as off", func(e *Evidence) {
			e.Audit, e.Calls, e.Operations = e.Audit[:14], e.Calls[:2], e.Operations[:2]
			e.Servers[0].State, e.Servers[0].Rental = metal.StateAvailable, nil
			e.Commands = e.Commands[:5]
		}, nil},
		{"I9", "said to be off before it was read", func(e *Evidence) {
			e.Audit[11].Time = at(103.9)
		}, nil},
		{"I9", "read as off and was not", func(e *Evidence) { e.drop(light.PowerOff, "") }, nil},
		{"I10", "a tenant's disk was not wiped", func(e *Evidence) {
			e.drop(light.WipeDisk, "op-2/1/wipe")
			e.machine(310, light.WriteDisk, "b3", "op-3/1/write-image", "tiny")
		}, nil},
		{"I10", "a wipe that failed", func(e *Evidence) {
			e.Machines[len(e.Machines)-2].Detail = "WIPE_FAILED"
			e.machine(310, light.WriteDisk, "b3", "op-3/1/write-image", "tiny")
		}, nil},
		{"I10", "a tenant's system runs again after its release", func(e *Evidence) {
			e.machine(108, light.DiskBoot, "", "", "web-1")
			e.between()
		}, nil},
		{"I10", "a wiped disk boots", func(e *Evidence) { e.machine(205, light.DiskBoot, "", "", "web-1") }, nil},
		{"I10", "available and not wiped", func(e *Evidence) {
			e.drop(light.WipeDisk, "op-2/1/wipe")
			e.Audit, e.Calls, e.Operations = e.Audit[:14], e.Calls[:2], e.Operations[:2]
			e.Servers[0].State, e.Servers[0].Rental = metal.StateAvailable, nil
		}, nil},
		{"I12", "an agent of another rack", func(e *Evidence) {
			e.command(50, 1, getChassisStatus, "", true, "010000")
			e.Commands[2].From = "10.78.2.1:4000"
		}, nil},
		{"I12", "a report of an agent of another rack", func(e *Evidence) { e.Audit[4].Principal = "agent:agt-3" }, nil},
		{"I14", "a request that ran twice", func(e *Evidence) { e.audit(350, "set_power", "srv-1", "op-8", "", 0, "q-1") }, nil},
		{"I14", "two operations of one request", func(e *Evidence) { e.Operations[1].RequestID = "q-1" }, nil},
		{"I14", "a retry with another answer", func(e *Evidence) {
			c := e.Calls[2]
			c.ID, c.Begin, c.End, c.Operation = 4, 7, 8, "op-8"
			e.Calls = append(e.Calls, c)
		}, nil},
		{"I15", "an operation that does not end", func(e *Evidence) { e.Operations[0].State = metal.OperationPending }, nil},
		{"I15", "a failure without a reason", func(e *Evidence) { e.Operations[2].Failure = nil }, nil},
		{"twice", "on while on", func(e *Evidence) { e.Commands[1].On = true }, nil},
		{"twice", "off while off", func(e *Evidence) { e.Commands[4].On = false }, nil},
		{"twice", "asked twice to shut down", func(e *Evidence) { e.command(102.5, 2, chassisControl, "05", true, "") }, nil},
		{"twice", "a power cycle", func(e *Evidence) { e.Commands[4].Data = "02" }, nil},
		{"twice", "a task twice in a boot", func(e *Evidence) { e.Consoles["r1-u01"] += "bmc: task started task=op-1/1/write-image\n" }, nil},
		{"twice", "a task twice in a light machine's boot", func(e *Evidence) {
			e.machine(20, light.TaskStart, "b1", "op-1/1/write-image", "")
			e.between()
		}, nil},
		{"twice", "a task granted to a second boot, with no off between", func(e *Evidence) {
			e.machine(20, light.TaskStart, "b1a", "op-1/1/write-image", "")
			e.between()
		}, nil},
	} {
		t.Run(tt.invariant+" "+tt.name, func(t *testing.T) {
			e := good()
			tt.change(e)
			found := false
			for _, v := range All(e) {
				found = found || v.Invariant == tt.invariant
				if v.Invariant != tt.invariant && !slices.Contains(tt.also, v.Invariant) {
					t.Errorf("also found %s", v)
				}
				if v.Invariant != "I2" && len(v.Lines) == 0 {
					t.Errorf("no evidence with %s", v)
				}
			}
			if !found {
				t.Error("not found")
			}
		})
	}
}

// A check says how much it looked at, and nothing when there was nothing: it then
// neither holds nor satisfies who demands it.
func TestNothingIsNoEvidence(t *testing.T) {
	for _, v := range Judge(&Evidence{Healed: true}) {
		if v.Looked() != 0 || !strings.Contains(Report{v}.String(), "NOT LOOKED AT") || Report.Demand(Report{v}, v.Name) == nil {
			t.Errorf("with no evidence: %s", Report{v})
		}
	}
	r := Judge(good())
	for _, v := range r {
		if v.Looked() == 0 || !strings.Contains(Report{v}.String(), "holds") {
			t.Errorf("of a good run: %s", Report{v})
		}
		if err := r.Demand(v.Name); err != nil {
			t.Error(err)
		}
	}
	if err := r.Demand("I6/questions of strangers", "I5/acts of controllers"); err != nil {
		t.Error(err)
	}
	if r.Demand("I6/nonsense") == nil || r.Demand("I99") == nil {
		t.Error("what nobody looks at is demanded in vain")
	}
}

// Where the audit does not reach back, I1 holds later calls to it all the same.
func TestTrimmedAudit(t *testing.T) {
	e := good()
	e.Audit = e.Audit[8:] // from web-1's destroy on
	e.Calls[1].Begin, e.Calls[2].Begin = int64(101*time.Second), int64(290*time.Second)
	v := Judge(e, "I1")[0]
	if len(v.Violations) > 0 || v.Looked() != 2 || len(v.Notes) != 1 {
		t.Errorf("%s", Report{v})
	}
	e.Audit = e.Audit[:len(e.Audit)-1] // web-2's create is lost
	if v := Judge(e, "I1")[0]; len(v.Violations) != 1 {
		t.Errorf("%s", Report{v})
	}
}

// A firmware that nobody answers goes on to the disk by itself: that is no agent's
// doing, and is counted.
func TestFirmwareFallsThrough(t *testing.T) {
	for detail, want := range map[string]int{"next device: no loader: tftp ipxe.efi from 10.77.1.2: no answer": 0, "next device: the loader left": 1} {
		e := good()
		e.machine(107, light.NoBoot, "", "", detail)
		e.machine(108, light.DiskBoot, "", "", "web-1")
		e.between()
		if got := Judge(e, "I10")[0].Violations; len(got) != want {
			t.Errorf("%s: %v", detail, got)
		}
	}
}
