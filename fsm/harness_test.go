package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

const (
	gib    = 1 << 30
	sshKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f ann@laptop"
	prj    = "prj-default"
	rack1  = "rack-1"
	agt1   = "agt-1"
	img1   = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)

var epoch0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// world is one state machine, fed by hand.
type world struct {
	t    testing.TB
	f    *FSM
	idx  uint64
	term uint64 // of the entries
	now  time.Time
	log  [][]byte
	next int
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{t: t, f: New(Options{}), now: epoch0}
}

func (w *world) id(kind string) string {
	w.next++
	return fmt.Sprintf("%s-%06d", kind, w.next)
}

// by gives a command the header that is missing.
func (w *world) by(c *logpb.Command) *logpb.Command {
	if c.Header == nil {
		c.Header = &logpb.Header{}
	}
	if c.Header.Time == 0 {
		w.now = w.now.Add(time.Second)
		c.Header.Time = w.now.UnixNano()
	}
	if c.Header.Principal == "" {
		c.Header.Principal = "ann"
	}
	return c
}

// apply runs one command as raft would.
func (w *world) apply(c *logpb.Command) *Result {
	w.t.Helper()
	b, err := Encode(w.by(c))
	if err != nil {
		w.t.Fatal(err)
	}
	w.idx++
	w.log = append(w.log, b)
	return w.f.Apply(&raft.Log{Index: w.idx, Term: w.term, Type: raft.LogCommand, Data: b}).(*Result)
}

func (w *world) ok(c *logpb.Command) *Result {
	w.t.Helper()
	r := w.apply(c)
	if r.Err != nil {
		w.t.Fatalf("%s: refused: %s %s", Name(c), r.Err.Code, r.Err)
	}
	return r
}

func (w *world) refused(c *logpb.Command, code metal.Code) *metal.Error {
	w.t.Helper()
	before := w.f.View()
	r := w.apply(c)
	if r.Err == nil {
		w.t.Fatalf("%s: accepted, want %s", Name(c), code)
	}
	if r.Err.Code != code {
		w.t.Fatalf("%s: refused with %s (%s), want %s", Name(c), r.Err.Code, r.Err, code)
	}
	if r.Err.Message == "" || r.Value != nil {
		w.t.Fatalf("%s: refusal is %+v", Name(c), r)
	}
	if after := w.f.View(); after.CountRows() != before.CountRows()+1 {
		w.t.Fatalf("%s: a refusal changed more than the audit: %d rows, then %d", Name(c), before.CountRows(), after.CountRows())
	}
	return r.Err
}

func (w *world) server(id string) *metal.Server {
	w.t.Helper()
	s, ok := w.f.View().Server(id)
	if !ok {
		w.t.Fatalf("no server %s", id)
	}
	return s
}

func (w *world) named(name string) *metal.Server {
	w.t.Helper()
	s, err := w.f.View().ResolveServer(prj, true, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) state(id string, want metal.State) {
	w.t.Helper()
	if s := w.server(id); s.State != want {
		w.t.Fatalf("%s is %s (%+v), want %s", s.Name, s.State, s.Failure, want)
	}
}

func digest(s string) []byte { h := sha256.Sum256([]byte(s)); return h[:] }

func cInit() *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_InitCluster{InitCluster: &logpb.InitCluster{ClusterId: "cl-1",
		Project: &logpb.Project{Id: prj, Name: "default"},
		Admin:   &logpb.Token{Id: "tok-admin", Hash: digest("admin"), Kind: "user", Name: "admin", Role: "admin"},
		Node:    &logpb.Node{Id: "node-1", Name: "cp1", Address: "10.0.0.1:7443"}}}}
}

func cInventory(m *logpb.ApplyInventory) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_ApplyInventory{ApplyInventory: m}}
}

func rackInput(id, name string, net int) *logpb.RackInput {
	p := fmt.Sprintf("10.%d.0.", net)
	return &logpb.RackInput{Id: id, Name: name, Subnet: p + "0/16", Gateway: p + "1", RangeFrom: p + "10",
		RangeTo: fmt.Sprintf("10.%d.255.200", net), Dns: []string{p + "1"}}
}

func serverInput(n int) *logpb.ServerInput {
	return &logpb.ServerInput{Id: fmt.Sprintf("srv-%05d", n), OperationId: fmt.Sprintf("op-enroll%05d", n), Name: fmt.Sprintf("r1-u%05d", n),
		Rack: "r1", Macs: []string{mac(n)}, Wipe: true,
		Oob: &logpb.OOB{Protocol: "ipmi", Address: fmt.Sprintf("10.9.%d.%d", n/250, n%250+1), Username: "bmc", Password: []byte("sealed")}}
}

func mac(n int) string { return fmt.Sprintf("52:54:00:%02x:%02x:%02x", n>>16, n>>8&0xff, n&0xff) }

func cToken(id, kind string, racks ...string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{
		Token: &logpb.Token{Id: id, Hash: digest(id), Kind: kind, Name: id, Racks: racks, Expires: epoch0.Add(1000 * time.Hour).UnixNano()}}}}
}

func cJoin(token, id, name string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_JoinAgent{JoinAgent: &logpb.JoinAgent{TokenId: token, TokenHash: digest(token),
		Agent: &logpb.Agent{Id: id, Name: name, Software: "test"}}}}
}

func cGrant(rack, agent string, expected uint64) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_GrantLease{GrantLease: &logpb.GrantLease{RackId: rack, AgentId: agent, ExpectedEpoch: expected}}}
}

func cAssign(o *metal.Operation, agent string, epoch uint64) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_AssignOperation{AssignOperation: &logpb.AssignOperation{
		OperationId: o.ID, Attempt: int64(o.Attempt), AgentId: agent, Epoch: epoch}}}
}

func cReport(m *logpb.ReportStep) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_ReportStep{ReportStep: m}}
}

func ref(id string) *logpb.ServerRef { return &logpb.ServerRef{ServerId: id} }

func cCreate(op, name string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_CreateServer{CreateServer: &logpb.CreateServer{OperationId: op, Project: prj, Name: name}}}
}

func cDestroy(op, id string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_DestroyServer{DestroyServer: &logpb.DestroyServer{Server: ref(id), OperationId: op}}}
}

func cForget(id string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_ForgetServer{ForgetServer: &logpb.ForgetServer{Server: ref(id)}}}
}

func cRetry(op, id string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_RetryServer{RetryServer: &logpb.RetryServer{Server: ref(id), OperationId: op}}}
}

func cImage(id, name string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_CreateImage{CreateImage: &logpb.CreateImage{Image: &logpb.Image{Id: id, Name: name, Project: prj,
		Os: "debian", Arch: "x86_64", SizeBytes: 2 * gib, Firmware: []string{"bios", "uefi"}, User: "debian", Manifest: []byte("{}")}}}}
}

// furnished has a rack with an agent that holds its lease, sizes, an image, a
// key, and n servers being enrolled.
func furnished(t testing.TB, n int) *world {
	t.Helper()
	w := newWorld(t)
	w.ok(cInit())
	w.ok(cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{rackInput(rack1, "r1", 10)},
		Sizes: []*logpb.Size{{Name: "small", MinCpuThreads: 1, MinMemoryBytes: gib}, {Name: "large", MinCpuThreads: 8, MinMemoryBytes: 64 * gib}}}))
	inv := &logpb.ApplyInventory{}
	for i := range n {
		inv.Servers = append(inv.Servers, serverInput(i))
	}
	w.ok(cInventory(inv))
	w.ok(cToken("tok-a", "join-agent", rack1))
	w.ok(cJoin("tok-a", agt1, "a1"))
	w.ok(cGrant(rack1, agt1, 0))
	w.ok(&logpb.Command{Command: &logpb.Command_AddSigningKey{AddSigningKey: &logpb.AddSigningKey{Project: prj, PublicKey: "RWQf6LRCGA9i"}}})
	w.ok(&logpb.Command{Command: &logpb.Command_AddKey{AddKey: &logpb.AddKey{Key: &logpb.SSHKey{Id: "key-1", Name: "ann", Project: prj, PublicKey: sshKey}}}})
	w.ok(cImage(img1, "debian12"))
	return w
}

// available has n servers that are ready to be created on.
func available(t testing.TB, n int) *world {
	t.Helper()
	w := furnished(t, n)
	for i := range n {
		w.finish(fmt.Sprintf("op-enroll%05d", i))
		w.state(fmt.Sprintf("srv-%05d", i), metal.StateAvailable)
	}
	return w
}

// deployed has one active server, web-1.
func deployed(t testing.TB) *world {
	t.Helper()
	w := available(t, 1)
	w.ok(cCreate("op-deploy", "web-1"))
	w.finish("op-deploy")
	w.state("srv-00000", metal.StateActive)
	return w
}

func hardware(s *metal.Server) *logpb.Hardware {
	return &logpb.Hardware{Serial: "SN" + s.ID, Uuid: "4c4c4544-0000-0000-0000-" + s.ID[4:], Vendor: "Acme", Product: "3000", Firmware: "uefi", Arch: "x86_64", CpuThreads: 4,
		MemoryBytes: 8 * gib, Disks: []*logpb.Disk{{Name: "vda", SizeBytes: 20 * gib, Serial: "D" + s.ID}, {Name: "sr0", SizeBytes: gib, Removable: true}},
		Nics: []*logpb.NIC{{Name: "eth0", Mac: s.MACs[0], Link: true}}}
}

// report makes the next report about a step of an operation's current attempt.
func (w *world) report(op, phase string) *logpb.ReportStep {
	w.t.Helper()
	o, ok := w.f.View().Operation(op)
	if !ok {
		w.t.Fatalf("no operation %s", op)
	}
	m := &logpb.ReportStep{OperationId: op, Attempt: int64(o.Attempt), Epoch: o.Epoch, Sequence: o.Sequence + 1, Step: string(o.Current()),
		Phase: phase, AgentId: o.Agent}
	if phase == phaseDone {
		switch o.Current() {
		case metal.StepBootRamdisk:
			if w.f.View().Meta().FeatureLevel >= warmLevel {
				m.BootId, m.Ramdisk = "boot-"+op, "v1"
			}
		case metal.StepInspect:
			m.Hardware = hardware(w.server(o.ServerID))
		case metal.StepWipe:
			m.Wipes = []*logpb.WipeEvidence{{Disk: "D" + o.ServerID, Method: "overwrite", Bytes: 20 * gib, BytesReadBack: 20 * gib}}
		case metal.StepConfigure:
			m.Installed = &logpb.Installed{SshHostKeys: []string{sshKey}, RootDisk: "D" + o.ServerID}
		}
	}
	return m
}

// assign gives an operation to the agent that holds the lease.
func (w *world) assign(op string) {
	w.t.Helper()
	o, ok := w.f.View().Operation(op)
	if !ok {
		w.t.Fatalf("no operation %s", op)
	}
	rack, _ := w.f.View().Rack(w.server(o.ServerID).RackID)
	w.ok(cAssign(o, rack.Lease.Agent, rack.Lease.Epoch))
}

// until runs an operation up to the end of the step before the one given.
func (w *world) until(op string, step metal.Step) {
	w.t.Helper()
	w.assign(op)
	for {
		o, _ := w.f.View().Operation(op)
		if o.State.Ended() || o.Current() == step {
			return
		}
		w.ok(cReport(w.report(op, phaseStarted)))
		w.ok(cReport(w.report(op, phaseDone)))
	}
}

func (w *world) finish(op string) { w.t.Helper(); w.until(op, "") }

// failAt runs an operation up to a step, and fails that.
func (w *world) failAt(op string, step metal.Step, reason metal.Code) {
	w.t.Helper()
	w.until(op, step)
	m := w.report(op, phaseFailed)
	m.Reason, m.Message = string(reason), "it did not work"
	w.ok(cReport(m))
}

// sound checks what must hold of every state.
func sound(v *state.View) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	addrs, macs, rentals, names := map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}
	taken := func(m map[string]string, what, key, id string) {
		if other, is := m[key]; is {
			fail("%s %s belongs to %s and %s", what, key, other, id)
		}
		m[key] = id
	}
	states := map[metal.State]int{}
	rented := 0
	for s := range v.Servers(state.ServerFilter{}) {
		states[s.State]++
		taken(names, "name", s.Name, s.ID)
		if s.State != metal.StateDiscovered { // it has none yet
			taken(addrs, "address", s.RackID+s.Address.String(), s.ID)
		}
		for _, m := range s.MACs {
			taken(macs, "MAC", m, s.ID)
			if got, _ := v.ServerByMAC(m); got != s {
				fail("MAC %s does not lead to %s", m, s.ID)
			}
		}
		if as, ok := v.Address(s.RackID, s.Address); s.State != metal.StateDiscovered && (!ok || as.ServerID != s.ID) {
			fail("%s of %s is not assigned to it", s.Address, s.ID)
		}
		if got, _ := v.ServerByName(s.Name); got != s {
			fail("name %s does not lead to %s", s.Name, s.ID)
		}
		if r := s.Rental; r != nil && !r.Released {
			rented++
			taken(rentals, "rental", r.Project+"/"+r.Name, s.ID)
			if got, _ := v.ServerByRental(r.Project, r.Name); got != s {
				fail("rental %s does not lead to %s", r.Name, s.ID)
			}
		}
		errs = append(errs, soundServer(v, s))
	}
	total := 0
	for _, c := range v.Capacity() {
		total += c.Servers
	}
	if n := v.CountServers(""); n != total || n != len(names) {
		fail("%d servers, %d by capacity, %d by name", n, total, len(names))
	}
	for st, n := range states {
		if v.CountServers(st) != n {
			fail("%d servers are %s, %d counted", n, st, v.CountServers(st))
		}
	}
	counted := 0
	for p := range v.Projects() {
		counted += v.CountRentals(p.ID)
	}
	if counted != rented {
		fail("%d rentals, %d counted", rented, counted)
	}
	errs = append(errs, soundOperations(v))
	if v.Hash() != v.Recompute() {
		fail("the incremental hash is not the recomputed one")
	}
	return errors.Join(errs...)
}

func soundServer(v *state.View, s *metal.Server) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(s.ID+": "+format, args...)) }
	open := 0
	for o := range v.OperationsOf(s.ID) {
		if !o.State.Ended() {
			open++
			if s.Operation != o.ID {
				fail("operation %s is open, the server says %q", o.ID, s.Operation)
			}
		}
	}
	if open > 1 || open == 0 && s.Operation != "" {
		fail("%d operations are open, the server says %q", open, s.Operation)
	}
	switch s.State {
	case metal.StateAvailable:
		on := s.Power.Observed == metal.PowerOn && s.Warm == nil
		if s.Rental != nil || s.Hardware == nil || len(s.Wiped) == 0 || on || s.Failure != nil {
			fail("available: rental %v, hardware %v, wiped %v, power %v, failure %v", s.Rental, s.Hardware != nil, s.Wiped, s.Power, s.Failure)
		}
	case metal.StateActive, metal.StateDeploying:
		if s.Rental == nil || s.Rental.Released {
			fail("%s without a rental", s.State)
		}
	case metal.StateReleasing:
		if s.Rental == nil || !s.Rental.Released {
			fail("releasing with rental %+v", s.Rental)
		}
	case metal.StateCleaning, metal.StateQuarantined, metal.StateEnrolling, metal.StateInspecting, metal.StateRetired:
		if s.Rental != nil {
			fail("%s with rental %+v", s.State, s.Rental)
		}
	case metal.StateFailed:
		if s.Failure == nil || s.Failure.Reason == "" {
			fail("failed without a reason")
		}
	}
	if s.Warm != nil && (s.Rental != nil || s.State != metal.StateAvailable && s.State != metal.StateRetired) {
		fail("%s, rented %t, with warmth %+v", s.State, s.Rental != nil, s.Warm)
	}
	if s.Warm.Waits() && (s.Power.Observed == metal.PowerOff || s.Operation != "") {
		fail("waits in the ramdisk, power %v, operation %q", s.Power, s.Operation)
	}
	_, cold := s.Conditions[metal.ConditionWarmFailed]
	if cold != (s.Warm != nil && s.Warm.Tries > 0 && !s.Warm.Waits()) {
		fail("condition %t with warmth %+v", cold, s.Warm)
	}
	return errors.Join(errs...)
}

func soundOperations(v *state.View) error {
	var errs []error
	n := 0
	for o := range v.Operations("") {
		if _, ok := v.Server(o.ServerID); !ok {
			errs = append(errs, fmt.Errorf("operation %s is of no server", o.ID))
		}
		if !o.State.Ended() {
			n++
		}
		if o.State == metal.OperationRunning && (o.Deadline.IsZero() || o.Agent == "") {
			errs = append(errs, fmt.Errorf("operation %s runs with deadline %v at agent %q", o.ID, o.Deadline, o.Agent))
		}
		if o.State == metal.OperationFailed && (o.Failure == nil || o.Failure.Reason == "") {
			errs = append(errs, fmt.Errorf("operation %s failed without a reason", o.ID))
		}
	}
	if v.CountOpenOperations() != n {
		errs = append(errs, fmt.Errorf("%d operations are open, %d counted", n, v.CountOpenOperations()))
	}
	return errors.Join(errs...)
}

func newReader(b []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(b)) }

func writtenView(t testing.TB, v *state.View) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteSnapshot(&b, v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
