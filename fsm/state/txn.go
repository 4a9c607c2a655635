package state

import (
	"time"

	"bmc/metal"
)

// Txn changes a private copy of a View, command by command. Values that its
// readers return are shared: copy before changing, then put. It is for one
// goroutine.
type Txn struct {
	View
	own   *owner
	saved tables // as it was before the command
	noted []Change
	nth   int // events of the command so far
}

// Begin starts a transaction on top of a View; the View stays as it is.
// Dropping the Txn drops its changes.
func (v *View) Begin() *Txn { return &Txn{View: *v, own: &owner{live: true}, saved: v.tables} }

// SetCommand begins a command. It notes its index, which is the revision of all
// that it changes, and returns its time: never before that of an earlier command.
func (x *Txn) SetCommand(index uint64, at time.Time) time.Time {
	x.publish()
	x.saved = x.tables
	clear(x.own.undo) // lets go of what the closures hold
	x.own.undo = x.own.undo[:0]
	if at.After(x.meta.Time) {
		x.meta.Time = at
	}
	x.meta.Revision = index
	return x.meta.Time
}

// Before is the revision before the command.
func (x *Txn) Before() uint64 { return x.saved.meta.Revision }

// SetMeta replaces the part of Meta that commands may change.
func (x *Txn) SetMeta(clusterID string, generation uint64, featureLevel uint32) {
	x.meta.ClusterID, x.meta.Generation, x.meta.FeatureLevel = clusterID, generation, featureLevel
}

// Rollback takes back all that was done since SetCommand, and SetCommand itself.
func (x *Txn) Rollback() {
	for i := len(x.own.undo) - 1; i >= 0; i-- {
		x.own.undo[i]()
	}
	clear(x.own.undo)
	x.own.undo = x.own.undo[:0]
	// Sums, meta, and the trees that the command was the first to write to.
	x.tables = x.saved
	x.noted, x.nth = nil, 0
}

// Commit makes the View. The Txn must not be used afterwards.
func (x *Txn) Commit() *View {
	x.publish()
	x.own.live, x.own.undo = false, nil
	v := x.View
	return &v
}

func (x *Txn) bump(key string, by int) {
	if by == 0 {
		return
	}
	if n := x.count(key) + by; n == 0 {
		x.counts.del(x.own, counter{key: key})
	} else {
		x.counts.put(x.own, counter{key, n})
	}
}

// PutServer inserts or replaces a server and its lines in the indexes.
func (x *Txn) PutServer(s *metal.Server) {
	s.Revision = x.meta.Revision
	old, r := x.servers.putRecord(x.own, s.ID, s)
	x.nameServer(old, r)
	x.indexServer(old, s)
	x.changed(Change{Kind: KindServer, ID: s.ID, ServerID: s.ID})
}

// DeleteServer removes a server with its operations, events and address.
func (x *Txn) DeleteServer(id string) {
	old := x.servers.del(x.own, id)
	if old == nil {
		return
	}
	x.nameServer(old, nil)
	x.indexServer(old, nil)
	if old.Address.IsValid() {
		x.DeleteAddress(old.RackID, old.Address)
	}
	for _, e := range collect(x.serverOps.prefixed(join(id, ""))) {
		x.DeleteOperation(e.id)
	}
	for _, e := range collect(x.serverEvents.prefixed(join(id, ""))) {
		x.deleteEvent(e)
	}
	x.changed(Change{Kind: KindServer, ID: id, ServerID: id, Removed: true})
}

// PutOperation inserts or replaces an operation; of one server the oldest that
// have ended go when there are too many.
func (x *Txn) PutOperation(o *metal.Operation) {
	o.Revision = x.meta.Revision
	old := x.operations.put(x.own, o.ID, o)
	x.indexOperation(old, o)
	x.forgetMemo(o.ServerID, o.ID)
	x.changed(Change{Kind: KindOperation, ID: o.ID, ServerID: o.ServerID})
	for x.count(join("ops", o.ServerID)) > MaxServerOperations {
		if !x.dropOldestOperation(o.ServerID) {
			break
		}
	}
}

func (x *Txn) dropOldestOperation(server string) bool {
	oldest := ""
	for e := range x.serverOps.prefixed(join(server, "")) {
		if o := x.operations.get(e.id); o != nil && o.State.Ended() {
			oldest = e.id
			break
		}
	}
	x.DeleteOperation(oldest)
	return oldest != ""
}

// DeleteOperation removes an operation.
func (x *Txn) DeleteOperation(id string) {
	if old := x.operations.del(x.own, id); old != nil {
		x.indexOperation(old, nil)
		x.forgetMemo(old.ServerID, id)
		x.changed(Change{Kind: KindOperation, ID: id, ServerID: old.ServerID, Removed: true})
	}
}

// PutAddress assigns an address.
func (x *Txn) PutAddress(a *metal.AddressAssignment) {
	a.Revision = x.meta.Revision
	key := addressKey(a.RackID, a.Address)
	x.loans.swap(x.own, nameOf(x.addresses.put(x.own, key, a), loanKey), loanKey(a), key)
}

// PutRack inserts or replaces a rack.
func (x *Txn) PutRack(r *metal.Rack) {
	r.Revision = x.meta.Revision
	old := x.racks.put(x.own, r.ID, r)
	x.rackName.swap(x.own, nameOf(old, func(r *metal.Rack) string { return r.Name }), r.Name, r.ID)
	x.changed(Change{Kind: KindRack, ID: r.ID})
}

// PutSize inserts or replaces a size.
func (x *Txn) PutSize(s *metal.Size) {
	s.Revision = x.meta.Revision
	x.sizes.put(x.own, s.Name, s)
	x.changed(Change{Kind: KindSize, ID: s.Name})
}

// PutModel inserts or replaces what is known of a kind of machine.
func (x *Txn) PutModel(m *metal.Model) {
	m.Revision = x.meta.Revision
	x.models.put(x.own, modelKey(m.Vendor, m.Product), m)
	x.changed(Change{Kind: KindModel, ID: m.Name()})
}

// PutImage inserts or replaces an image.
func (x *Txn) PutImage(i *metal.Image) {
	i.Revision = x.meta.Revision
	old := x.images.put(x.own, join(i.Project, i.ID), i)
	x.indexImage(old, i)
	x.changed(Change{Kind: KindImage, ID: i.ID, Project: i.Project})
}

// DeleteImage removes a project's image.
func (x *Txn) DeleteImage(project, id string) {
	if old := x.images.del(x.own, join(project, id)); old != nil {
		x.indexImage(old, nil)
		x.changed(Change{Kind: KindImage, ID: id, Project: project, Removed: true})
	}
}

// PutProject inserts or replaces a project.
func (x *Txn) PutProject(p *metal.Project) {
	p.Revision = x.meta.Revision
	old := x.projects.put(x.own, p.ID, p)
	x.projectName.swap(x.own, nameOf(old, func(p *metal.Project) string { return p.Name }), p.Name, p.ID)
	x.changed(Change{Kind: KindProject, ID: p.ID, Project: p.ID})
}

// PutKey inserts or replaces an SSH key.
func (x *Txn) PutKey(k *metal.SSHKey) {
	k.Revision = x.meta.Revision
	x.indexKey(x.keys.put(x.own, k.ID, k), k, k.ID)
	x.changed(Change{Kind: KindKey, ID: k.ID, Project: k.Project})
}

// DeleteKey removes an SSH key.
func (x *Txn) DeleteKey(id string) {
	if old := x.keys.del(x.own, id); old != nil {
		x.indexKey(old, nil, id)
		x.changed(Change{Kind: KindKey, ID: id, Project: old.Project, Removed: true})
	}
}

// PutToken inserts or replaces a token.
func (x *Txn) PutToken(t *metal.Token) {
	t.Revision = x.meta.Revision
	x.tokens.put(x.own, t.ID, t)
	x.changed(Change{Kind: KindToken, ID: t.ID})
}

// DeleteToken removes a token.
func (x *Txn) DeleteToken(id string) {
	if x.tokens.del(x.own, id) != nil {
		x.changed(Change{Kind: KindToken, ID: id, Removed: true})
	}
}

// PutAgent inserts or replaces an agent.
func (x *Txn) PutAgent(a *metal.Agent) {
	a.Revision = x.meta.Revision
	old := x.agents.put(x.own, a.ID, a)
	x.agentName.swap(x.own, nameOf(old, func(a *metal.Agent) string { return a.Name }), a.Name, a.ID)
	x.changed(Change{Kind: KindAgent, ID: a.ID})
}

// DeleteAgent removes an agent.
func (x *Txn) DeleteAgent(id string) {
	if old := x.agents.del(x.own, id); old != nil {
		x.agentName.swap(x.own, old.Name, "", id)
		x.changed(Change{Kind: KindAgent, ID: id, Removed: true})
	}
}

// PutNode inserts or replaces a control-plane node.
func (x *Txn) PutNode(n *metal.Node) {
	n.Revision = x.meta.Revision
	old := x.nodes.put(x.own, n.ID, n)
	x.nodeName.swap(x.own, nameOf(old, func(n *metal.Node) string { return n.Name }), n.Name, n.ID)
	x.changed(Change{Kind: KindNode, ID: n.ID})
}

// DeleteNode removes a control-plane node.
func (x *Txn) DeleteNode(id string) {
	if old := x.nodes.del(x.own, id); old != nil {
		x.nodeName.swap(x.own, old.Name, "", id)
		x.changed(Change{Kind: KindNode, ID: id, Removed: true})
	}
}

func nameOf[T any](v *T, name func(*T) string) string {
	if v == nil {
		return ""
	}
	return name(v)
}
