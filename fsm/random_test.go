package fsm

import (
	"fmt"
	"time"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// chooser is what random tests draw from: rapid, or a plain generator.
type chooser interface {
	n(label string, below int) int
}

// walker makes commands that a busy cluster might see: mostly sensible, some
// stale, some nonsense. What it draws decides everything.
type walker struct {
	c    chooser
	next int
	now  time.Time
	sent []*logpb.Command // with request IDs, to be sent again
}

func (k *walker) pick(label string, below int) int {
	if below <= 0 {
		return 0
	}
	return k.c.n(label, below)
}

func (k *walker) chance(label string, percent int) bool { return k.c.n(label, 100) < percent }

func (k *walker) id(kind string) string {
	k.next++
	return fmt.Sprintf("%s-%06d", kind, k.next)
}

// prelude sets two projects, two racks and two agents up.
func (k *walker) prelude() []*logpb.Command {
	return []*logpb.Command{
		cInit(),
		{Command: &logpb.Command_CreateProject{CreateProject: &logpb.CreateProject{Project: &logpb.Project{Id: "prj-2", Name: "two", MaxServers: 2}}}},
		cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{rackInput(rack1, "r1", 10), rackInput("rack-2", "r2", 11)},
			Sizes: []*logpb.Size{{Name: "small", MinMemoryBytes: gib}, {Name: "large", MinMemoryBytes: 64 * gib}}}),
		cToken("tok-a", "join-agent", rack1, "rack-2"), cJoin("tok-a", agt1, "a1"), cGrant(rack1, agt1, 0), cGrant("rack-2", agt1, 0),
		cToken("tok-b", "join-agent", rack1), cJoin("tok-b", "agt-2", "a2"),
		{Command: &logpb.Command_AddSigningKey{AddSigningKey: &logpb.AddSigningKey{Project: prj, PublicKey: "RWQf6LRCGA9i"}}},
		{Command: &logpb.Command_AddSigningKey{AddSigningKey: &logpb.AddSigningKey{Project: "prj-2", PublicKey: "RWQf6LRCGA9i"}}},
		{Command: &logpb.Command_AddKey{AddKey: &logpb.AddKey{Key: &logpb.SSHKey{Id: "key-1", Name: "ann", Project: prj, PublicKey: sshKey}}}},
		{Command: &logpb.Command_AddKey{AddKey: &logpb.AddKey{Key: &logpb.SSHKey{Id: "key-2", Name: "bob", Project: "prj-2", PublicKey: sshKey}}}},
		cImage(img1, "debian12"), cRackWarm(rack1, 2),
		{Command: &logpb.Command_CreateImage{CreateImage: &logpb.CreateImage{Image: &logpb.Image{Id: img1, Name: "debian12", Project: "prj-2"}}}},
	}
}

// step draws the next command for a view.
func (k *walker) step(v *state.View) *logpb.Command {
	var c *logpb.Command
	switch n := k.pick("command", 100); {
	case n < 10:
		c = k.inventory()
	case n < 55:
		c = k.progress(v)
	case n < 68:
		c = k.create()
	case n < 76:
		c = cDestroy(k.id("op"), k.server(v))
	case n < 81:
		c = cRetry(k.id("op"), k.server(v))
	case n < 95:
		c = k.operator(v)
	case n < 98 && len(k.sent) > 0:
		return k.sent[k.pick("again", len(k.sent))]
	default:
		c = k.rare(v)
	}
	k.now = k.now.Add(time.Duration(k.pick("seconds", 400)-20) * time.Second) // clocks go back, too
	c.Header = &logpb.Header{Time: k.now.UnixNano(), Principal: "ann"}
	if k.chance("with request", 40) {
		k.next++
		c.Header.RequestId, c.Header.RequestMac = uuid7(k.now.Add(time.Duration(k.next)*time.Millisecond)), []byte{byte(k.next)}
		k.sent = append(k.sent, c)
	}
	return c
}

func (k *walker) server(v *state.View) string {
	all := collect(v.Servers(state.ServerFilter{}))
	if len(all) == 0 || k.chance("no server", 3) {
		return "srv-none"
	}
	return all[k.pick("server", len(all))].ID
}

func (k *walker) inventory() *logpb.Command {
	m := &logpb.ApplyInventory{}
	for range 1 + k.pick("servers", 3) {
		in := serverInput(k.pick("machine", 12))
		if k.chance("rack two", 30) {
			in.Rack = "r2"
		}
		in.Wipe = k.chance("wipe", 90)
		if k.chance("other oob", 10) {
			in.Oob.Address = fmt.Sprintf("10.8.0.%d", 1+k.pick("oob", 3))
		}
		if k.chance("with address", 10) {
			in.Address = fmt.Sprintf("10.10.0.%d", 10+k.pick("address", 4))
		}
		in.OperationId = k.id("op")
		m.Servers = append(m.Servers, in)
	}
	return cInventory(m)
}

func (k *walker) create() *logpb.Command {
	m := &logpb.CreateServer{OperationId: k.id("op"), Project: []string{prj, "prj-2"}[k.pick("project", 2)],
		Name: fmt.Sprintf("web-%d", k.pick("name", 4))}
	if k.chance("sized", 30) {
		m.Size = []string{"small", "large"}[k.pick("size", 2)]
	}
	return &logpb.Command{Command: &logpb.Command_CreateServer{CreateServer: m}}
}

// progress drives an open operation on: assigns it, reports its next step,
// fails it, lets it run out of time.
func (k *walker) progress(v *state.View) *logpb.Command {
	open := collect(v.OpenOperations(""))
	if len(open) == 0 {
		return k.create()
	}
	o := open[k.pick("operation", len(open))]
	s, _ := v.Server(o.ServerID)
	rack, _ := v.Rack(s.RackID)
	if o.State == metal.OperationPending || o.Epoch != rack.Lease.Epoch {
		return cAssign(o, rack.Lease.Agent, rack.Lease.Epoch)
	}
	m := &logpb.ReportStep{OperationId: o.ID, Attempt: int64(o.Attempt), Epoch: o.Epoch, Sequence: o.Sequence + 1, Step: string(o.Current()),
		Phase: []string{phaseStarted, phaseDone, phaseDone, phaseDone, phaseDone, phaseFailed}[k.pick("phase", 6)], AgentId: o.Agent, Reason: "NO_NETBOOT"}
	switch k.pick("trouble", 40) {
	case 0:
		m.Sequence = o.Sequence
	case 1:
		m.Epoch--
	case 2:
		m.Step = "ready"
	case 3:
		return &logpb.Command{Command: &logpb.Command_ExpireStep{ExpireStep: &logpb.ExpireStep{OperationId: o.ID, Attempt: int64(o.Attempt), Step: string(o.Current())}}}
	case 4:
		return &logpb.Command{Command: &logpb.Command_MarkLate{MarkLate: &logpb.MarkLate{OperationId: o.ID, Attempt: int64(o.Attempt), Step: string(o.Current())}}}
	case 5:
		return &logpb.Command{Command: &logpb.Command_FailOperation{FailOperation: &logpb.FailOperation{OperationId: o.ID, Attempt: int64(o.Attempt), Reason: "NO_AGENT"}}}
	}
	if m.Phase == phaseDone {
		if m.Step == string(metal.StepBootRamdisk) && !k.chance("no boot", 10) {
			m.BootId, m.Ramdisk = "boot-"+o.ID, "v1"
		}
		m.Hardware = hardware(s)
		if !k.chance("bad wipe", 5) {
			m.Wipes = []*logpb.WipeEvidence{{Disk: "D" + s.ID, Bytes: gib, BytesReadBack: gib}}
		}
	}
	return cReport(m)
}

func (k *walker) operator(v *state.View) *logpb.Command {
	r := ref(k.server(v))
	switch k.pick("verb", 10) {
	case 8, 9:
		return cWarm(r.ServerId, k.id("op"), k.chance("cold", 30))
	case 0:
		return &logpb.Command{Command: &logpb.Command_SetPower{SetPower: &logpb.SetPower{Server: r, OperationId: k.id("op"), Wanted: "off"}}}
	case 1:
		return &logpb.Command{Command: &logpb.Command_RestartServer{RestartServer: &logpb.RestartServer{Server: r, OperationId: k.id("op"), Hard: true}}}
	case 2:
		return &logpb.Command{Command: &logpb.Command_InspectServer{InspectServer: &logpb.InspectServer{Server: r, OperationId: k.id("op")}}}
	case 3:
		return &logpb.Command{Command: &logpb.Command_CleanServer{CleanServer: &logpb.CleanServer{Server: r, OperationId: k.id("op")}}}
	case 4:
		return &logpb.Command{Command: &logpb.Command_ForgetServer{ForgetServer: &logpb.ForgetServer{Server: r}}}
	case 5:
		hold := []string{"protected", "cordoned"}[k.pick("hold", 2)]
		return &logpb.Command{Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Server: r, Hold: hold, On: k.chance("on", 30)}}}
	case 6:
		if k.chance("retire", 20) {
			return &logpb.Command{Command: &logpb.Command_RetireServer{RetireServer: &logpb.RetireServer{Server: r}}}
		}
	}
	ob := &logpb.Observation{ServerId: r.ServerId, Power: []string{"on", "off", "unknown", ""}[k.pick("power", 4)]}
	if s, ok := v.Server(r.ServerId); ok && s.State == metal.StateAvailable {
		ob.Power = "off" // an available machine is off, unless it waits
		if s.Warm.Waits() {
			ob.Power, ob.WarmLost = []string{"on", "off"}[k.pick("warm power", 2)], []string{"", s.Warm.BootID, "boot-none"}[k.pick("lost", 3)]
		}
	}
	if k.chance("condition", 50) {
		ob.Raised, ob.Cleared = []string{"oob_unreachable"}, []string{"agent_lost"}
	} else {
		ob.Cleared = []string{"oob_unreachable"}
	}
	return &logpb.Command{Command: &logpb.Command_Observe{Observe: &logpb.Observe{RackId: rack1, Observations: []*logpb.Observation{ob}}}}
}

func (k *walker) rare(v *state.View) *logpb.Command {
	rack, _ := v.Rack(rack1)
	switch k.pick("rare", 10) {
	case 8:
		return cSilent(&logpb.Silence{RackId: rack1, Epoch: rack.Lease.Epoch, Silent: int64(k.pick("silent", 17))})
	case 9:
		return cCleared(rack1, rack.Lease.Epoch)
	case 0:
		return cGrant(rack1, []string{agt1, "agt-2"}[k.pick("agent", 2)], rack.Lease.Epoch)
	case 1:
		return &logpb.Command{Command: &logpb.Command_DeleteImage{DeleteImage: &logpb.DeleteImage{Project: "prj-2", ImageId: img1}}}
	case 2:
		return &logpb.Command{Command: &logpb.Command_CreateImage{CreateImage: &logpb.CreateImage{Image: &logpb.Image{Id: img1, Name: "debian12", Project: "prj-2"}}}}
	case 3:
		if k.chance("generation", 10) {
			return &logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{}}}
		}
	}
	if k.chance("model", 5) {
		return k.model()
	}
	if c := k.levelTwo(v); c != nil {
		return c
	}
	token := k.id("tok")
	k.next++
	return cToken(token, "join-agent", rack1)
}

// model draws an operator's word on a model.
func (k *walker) model() *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_SetModelKexec{SetModelKexec: &logpb.SetModelKexec{Vendor: "Acme", Product: "3000", On: k.chance("kexec on", 50)}}}
}

// levelTwo draws from what came with feature level 2.
func (k *walker) levelTwo(v *state.View) *logpb.Command {
	switch k.pick("level two", 5) {
	case 0:
		for o := range v.OpenOperations("") {
			if k.chance("cancel this", 40) {
				return cCancel(o.ID, o.ServerID, k.id("op"))
			}
		}
	case 1:
		return &logpb.Command{Command: &logpb.Command_QuarantineServer{QuarantineServer: &logpb.QuarantineServer{Server: ref(k.server(v))}}}
	case 2:
		return &logpb.Command{Command: &logpb.Command_ThawRack{ThawRack: &logpb.ThawRack{RackId: rack1}}}
	case 3:
		m := &logpb.ReconcileRack{RackId: rack1, AgentId: agt1, Generation: v.Meta().Generation}
		for s := range v.Servers(state.ServerFilter{RackID: rack1}) {
			st := []string{"available", "active", "deploying", "quarantined", string(s.State)}[k.pick("known", 5)]
			m.Servers = append(m.Servers, &logpb.KnownServer{ServerId: s.ID, Name: s.Name, State: st, Hostname: "web-1", Revision: 1 << 40})
		}
		return &logpb.Command{Command: &logpb.Command_ReconcileRack{ReconcileRack: m}}
	case 4:
		if k.chance("freeze by hand", 20) {
			return cFreeze("a drill", rack1)
		}
		return cThaw(rack1)
	}
	return nil
}
