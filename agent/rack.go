package agent

import (
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"bmc/agent/boot"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/mutant"
	"bmc/metal"
	"bmc/netboot"
)

// rack is what the agent knows of one rack: the newest of what the nodes say,
// and, before any has said something, what the last run wrote down.
type rack struct {
	conf  RackConfig
	path  string        // of the file that keeps the boot decisions
	dirty chan struct{} // of one slot: the file is behind
	boots *boot.Service
	// strangers are machines that nobody knows; nil: none is answered.
	strangers *boot.Discovery
	turn      sync.Mutex // of changes: each reaches the operations before the next is applied

	mu          sync.RWMutex
	revision    uint64
	spec        *agentv1.RackSpec
	servers     map[string]*agentv1.ServerSpec
	byMAC       map[string]*agentv1.ServerSpec // by the boot NIC
	byAddr      map[netip.Addr]*agentv1.ServerSpec
	assignments map[string]*agentv1.Assignment
	live        map[string]bool     // nodes whose stream has synced
	agents      []*agentv1.Endpoint // of this rack, as the leader last said; we may be among them
	lease       *lease              // of this rack; nil: never held
	heard       map[string]heard    // by agent: see standing.go
	asking      asking              // machines that are left to another agent, and ask here
	answering   time.Time           // since when the DHCP server runs; zero: it does not
	before      *knowledge          // while the rack is frozen: see frozen.go
	bookmarked  time.Time           // when a revision alone was last written
	past        time.Time           // since when the only nodes that answer know less than we do
	now         func() time.Time
}

// change is what an update means for operations.
type change struct {
	assigned  []*agentv1.Assignment
	withdrawn []string
	reset     bool // assigned is complete
}

// openRack loads what the last run knew, so that its machines boot even when no
// node ever answers.
func openRack(conf RackConfig, path string, boots *boot.Service) (*rack, error) {
	r := &rack{conf: conf, path: path, dirty: make(chan struct{}, 1), boots: boots, live: make(map[string]bool), now: time.Now}
	saved := &agentv1.RackUpdate{}
	data, err := os.ReadFile(path)
	if err == nil {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, saved)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	_, err = r.replace("", saved)
	r.agents = saved.GetAgents()
	return r, err
}

// pastFor is how long nodes that know less than we do are not believed, when
// no other answers. A node in the middle of a restore, or one that was cut off,
// looks like a cluster that has really lost its newest revisions.
const pastFor = time.Minute

// Snapshots that are not taken.
var (
	errOlder = errors.New("another node knows more")
	errPast  = errors.New("this node knows less than this agent does")
)

// replace takes a snapshot; the lock is not held. One that is older than what
// is known is refused: with errOlder while another node is connected, whose
// changes are taken; with errPast else, for some time. A higher generation is
// newer than any revision.
func (r *rack) replace(from string, m *agentv1.RackUpdate) (change, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	had, has := r.spec.GetGeneration(), m.GetRack().GetGeneration()
	older := has < had || has == had && m.GetRevision() < r.revision
	others := len(r.live)
	if r.live[from] {
		others--
	}
	if from != "" {
		r.live[from] = true
	}
	switch {
	case older && others > 0:
		return change{}, errOlder
	case older && r.past.IsZero():
		r.past = r.now()
		return change{}, errPast
	case older && r.now().Sub(r.past) < pastFor:
		return change{}, errPast
	}
	r.past = time.Time{}
	r.freeze(m.GetRack())
	r.revision, r.spec = m.GetRevision(), m.GetRack()
	r.servers, r.assignments = make(map[string]*agentv1.ServerSpec), make(map[string]*agentv1.Assignment)
	for _, s := range m.GetUpserts() {
		r.servers[s.GetId()] = s
	}
	for _, a := range m.GetAssignments() {
		r.assignments[a.GetOperationId()] = a
	}
	r.index()
	return change{assigned: r.assignable(m.GetAssignments()), reset: true}, nil
}

// bookmarkSaved is how far the file may be behind in revisions that changed nothing
// here: with them it is known that an agent was not cut off (see fsm's reconcileRack).
const bookmarkSaved = 5 * time.Minute

// tells says whether an update holds more than its revision.
func tells(m *agentv1.RackUpdate) bool {
	return m.GetRack() != nil || len(m.GetUpserts())+len(m.GetRemoved())+len(m.GetAssignments())+len(m.GetWithdrawn()) > 0
}

// apply takes a change from a stream that is in a generation; what is older than
// what is known is no news. A former generation's revisions may be higher.
func (r *rack) apply(generation uint64, m *agentv1.RackUpdate) change {
	r.mu.Lock()
	defer r.mu.Unlock()
	if generation < r.spec.GetGeneration() || m.GetRevision() < r.revision {
		return change{}
	}
	if r.revision = m.GetRevision(); tells(m) {
		r.behind()
	} else if now := r.now(); now.Sub(r.bookmarked) >= bookmarkSaved {
		r.bookmarked = now
		r.behind()
	}
	thawed := false
	if m.GetRack() != nil {
		was := r.before != nil
		r.freeze(m.GetRack())
		r.spec, thawed = m.GetRack(), was && r.before == nil
	}
	for _, id := range m.GetRemoved() {
		delete(r.servers, id)
	}
	for _, s := range m.GetUpserts() {
		r.servers[s.GetId()] = s
	}
	for _, id := range m.GetWithdrawn() {
		delete(r.assignments, id)
	}
	for _, a := range m.GetAssignments() {
		r.assignments[a.GetOperationId()] = a
	}
	if m.GetRack() != nil || len(m.GetRemoved())+len(m.GetUpserts()) > 0 {
		r.index()
	}
	c := change{assigned: r.assignable(m.GetAssignments()), withdrawn: m.GetWithdrawn()}
	if thawed { // what was held back may go on
		c.assigned = slices.Collect(maps.Values(r.assignments))
	}
	return c
}

// index rebuilds the look-ups; the lock is held.
func (r *rack) index() {
	r.byMAC, r.byAddr = make(map[string]*agentv1.ServerSpec), make(map[netip.Addr]*agentv1.ServerSpec)
	_, servers := r.answers()
	for _, s := range servers {
		addr, err := netip.ParseAddr(s.GetAddress())
		if err != nil || len(s.GetMacs()) == 0 {
			continue
		}
		r.byMAC[strings.ToLower(s.GetMacs()[0])] = s
		r.byAddr[addr] = s
	}
	r.behind()
}

// setAgents takes the leader's word of who serves this rack. A new leader has not heard
// all of them yet: while its word is partial, those that were known before stay, the
// holder first (""; whom the list begins with).
func (r *rack) setAgents(agents []*agentv1.Endpoint, partial bool, holder string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if partial {
		agents = slices.Clone(agents)
		for _, known := range r.agents {
			if !slices.ContainsFunc(agents, func(e *agentv1.Endpoint) bool { return e.GetAgentId() == known.GetAgentId() }) {
				agents = append(agents, known)
			}
		}
		if i := slices.IndexFunc(agents, func(e *agentv1.Endpoint) bool { return e.GetAgentId() == holder }); i > 0 {
			first := agents[i]
			agents = slices.Insert(slices.Delete(agents, i, i+1), 0, first)
		}
	}
	if !slices.EqualFunc(r.agents, agents, func(a, b *agentv1.Endpoint) bool { return proto.Equal(a, b) }) {
		r.agents = agents
		r.behind()
	}
}

// behind has the file written.
func (r *rack) behind() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

// gone says that a node's stream has ended.
func (r *rack) gone(from string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, from)
}

// save writes the boot decisions, without the controllers' credentials.
func (r *rack) save() error {
	r.mu.RLock()
	if r.before != nil { // the file holds it
		r.mu.RUnlock()
		return nil
	}
	m := &agentv1.RackUpdate{Revision: r.revision, Rack: r.spec, Agents: r.agents}
	for _, s := range r.servers {
		s = proto.CloneOf(s)
		s.Oob = nil
		m.Upserts = append(m.Upserts, s)
	}
	r.mu.RUnlock()
	slices.SortFunc(m.Upserts, func(a, b *agentv1.ServerSpec) int { return strings.Compare(a.GetId(), b.GetId()) })
	data, err := protojson.MarshalOptions{Multiline: true}.Marshal(m)
	if err != nil {
		return err
	}
	return writeFile(r.path, data)
}

func (r *rack) server(id string) (*agentv1.ServerSpec, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s, ok := r.servers[id]
	return s, ok
}

// byPort finds the server with a MAC among all that are known of it, or nil.
func (r *rack) byPort(mac string) *agentv1.ServerSpec {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, s := range r.servers {
		if slices.ContainsFunc(s.GetMacs(), func(m string) bool { return strings.EqualFold(m, mac) }) {
			return s
		}
	}
	return nil
}

func (r *rack) all() []*agentv1.ServerSpec {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]*agentv1.ServerSpec, 0, len(r.servers))
	for _, s := range r.servers {
		out = append(out, s)
	}
	return out
}

func (r *rack) assigned() []*agentv1.Assignment {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.assignable(slices.Collect(maps.Values(r.assignments)))
}

// Lookup implements netboot.Directory.
func (r *rack) Lookup(mac string) (netboot.Machine, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s := r.byMAC[mac]
	if s == nil && mutant.On("answer-unknown") {
		for _, s = range r.servers {
			break
		}
		if s != nil {
			s = proto.CloneOf(s)
			s.Macs = []string{mac}
		}
	}
	if s == nil {
		return r.stranger(mac)
	}
	return r.machine(s)
}

// LookupAddr implements netboot.Directory.
func (r *rack) LookupAddr(addr netip.Addr) (netboot.Machine, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.byAddr[addr] == nil {
		return r.strangerAt(addr)
	}
	return r.machine(r.byAddr[addr])
}

// subnet is the rack's network; zero while no node has told it.
func (r *rack) subnet() netip.Prefix {
	r.mu.RLock()
	defer r.mu.RUnlock()
	spec, _ := r.answers()
	p, err := netip.ParsePrefix(spec.GetSubnet())
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// machine is a server as network boot sees it; the lock is held.
func (r *rack) machine(s *agentv1.ServerSpec) (netboot.Machine, bool) {
	if s == nil {
		return netboot.Machine{}, false
	}
	rackSpec, _ := r.answers()
	subnet, err := netip.ParsePrefix(rackSpec.GetSubnet())
	if err != nil {
		return netboot.Machine{}, false
	}
	addr, err := netip.ParseAddr(s.GetAddress())
	if err != nil {
		return netboot.Machine{}, false
	}
	mac := strings.ToLower(s.GetMacs()[0])
	m := netboot.Machine{
		ServerID: s.GetId(), MAC: mac, Hostname: s.GetHostname(), Addr: netip.PrefixFrom(addr, subnet.Bits()),
		Domain: rackSpec.GetDomain(), LeaseTime: rackSpec.GetLeaseTime().AsDuration(),
		Boot: r.bootSpec(s, mac), Authoritative: len(r.live) > 0 && r.before == nil,
	}
	if gw, err := netip.ParseAddr(rackSpec.GetGateway()); err == nil {
		m.Gateway = gw
	}
	for _, text := range rackSpec.GetDns() {
		if ip, err := netip.ParseAddr(text); err == nil {
			m.DNS = append(m.DNS, ip)
		}
	}
	return m, true
}

// bootSpec is what a machine shall boot; the lock is held. Only the agent that
// runs an operation knows whether it wants the ramdisk: while one may be under
// way, the others send the machine to the lease's holder. One that ran it, and has
// lost the lease since, has no say: the boot may be its successor's doing.
//
// Every other machine boots its disk, as far as is known here. Who does not hold the
// lease may be cut off, and know a machine as rented that has been released since: it
// leaves the answer to an agent that knows better, and to others for a moment when
// it has heard of none. So rented servers boot with everybody cut off, too.
func (r *rack) bootSpec(s *agentv1.ServerSpec, mac string) netboot.BootSpec {
	wanted, here := r.boots.Wanted(mac)
	b := netboot.BootSpec{Ramdisk: wanted && here, ConsoleTTY: s.GetConsoleTty()}
	b.Silent = (wanted || s.GetBootRamdisk()) && !b.Ramdisk
	if b.Ramdisk {
		return b
	}
	other, held := r.better()
	if b.Late = !held && other == nil; other != nil {
		b.Silent, b.Elsewhere = true, httpOf(other)
		b.Spare, b.Disk = r.spare(other, s, mac)
		return b
	}
	if len(r.agents) == 0 {
		return b
	}
	if operates(s) {
		if holder := httpOf(r.agents[0]); holder.Addr() != r.conf.addr() {
			b.Elsewhere = holder
		}
	}
	return b
}

// httpOf is where an agent serves machines; zero: it has not said.
func httpOf(e *agentv1.Endpoint) netip.AddrPort {
	addr, err := netip.ParseAddr(e.GetAddress())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr, uint16(e.GetHttpPort()))
}

// idle says whether a server certainly has no operation under way, as nodes say that
// are connected now. Those of a rack that was restored from a backup do not know.
func (r *rack) idle(serverID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.servers[serverID]
	if s == nil || len(r.live) == 0 || r.before != nil || r.spec.GetFrozen() || operates(s) {
		return false
	}
	for _, a := range r.assignments {
		if a.GetServerId() == serverID {
			return false
		}
	}
	return true
}

// operates says whether a server's network boot may be the doing of an operation.
func operates(s *agentv1.ServerSpec) bool {
	switch metal.State(s.GetState()) {
	case metal.StateEnrolling, metal.StateInspecting, metal.StateDeploying, metal.StateReleasing, metal.StateCleaning:
		return true
	case metal.StateAvailable: // the system's own
		return s.GetBootRamdisk()
	}
	return false
}
