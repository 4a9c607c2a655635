package state

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"bmc/metal"
)

// View is one immutable state. Its methods may be called by anybody at any
// time; what they return is shared and must not be changed.
type View struct{ tables }

// Hash is a state hash.
type Hash [32]byte

func (l lanes) bytes() Hash {
	var h Hash
	for i, n := range l {
		binary.LittleEndian.PutUint64(h[8*i:], n)
	}
	return h
}

// New returns the empty state.
func New() *View { return &View{newTables()} }

// Revision is the index of the last command.
func (t *tables) Revision() uint64 { return t.meta.Revision }

// Meta returns what concerns the whole state.
func (t *tables) Meta() Meta { return t.meta }

// ServerFilter narrows Servers; zero fields match everything.
type ServerFilter struct {
	RackID   string
	State    metal.State
	Size     string
	Project  string // ID: only its rentals
	Rented   bool   // only what somebody rents, released rentals included
	Selector metal.Selector
	After    string // server name: only what sorts after it
}

func (f *ServerFilter) match(s *metal.Server) bool {
	switch {
	case f.RackID != "" && s.RackID != f.RackID,
		f.State != "" && s.State != f.State,
		f.Size != "" && s.Size != f.Size,
		f.Rented && s.Rental == nil,
		f.Project != "" && (s.Rental == nil || s.Rental.Project != f.Project):
		return false
	}
	return f.Selector.Matches(s.Labels)
}

// Server returns the server with this ID.
func (t *tables) Server(id string) (*metal.Server, bool) {
	v := t.server(id)
	return v, v != nil
}

func (t *tables) server(id string) *metal.Server { return t.servers.get(id) }

// ServerByName returns the server with this inventory name.
func (t *tables) ServerByName(name string) (*metal.Server, bool) {
	v := t.serverByName(name)
	return v, v != nil
}

func (t *tables) serverByName(name string) (found *metal.Server) {
	t.serverName.tree.AscendGreaterOrEqual(namedServer{name: name}, func(n namedServer) bool {
		if n.name == name {
			found = n.row.val
		}
		return false
	})
	return found
}

// ServerByMAC returns the server with this NIC.
func (t *tables) ServerByMAC(mac string) (*metal.Server, bool) {
	v := t.serverByMAC(mac)
	return v, v != nil
}

func (t *tables) serverByMAC(mac string) *metal.Server { return t.server(t.serverMAC.one(mac)) }

// ServerByOOB returns the server of a rack behind this management controller.
func (t *tables) ServerByOOB(rack, address string) (*metal.Server, bool) {
	v := t.serverByOOB(rack, address)
	return v, v != nil
}

func (t *tables) serverByOOB(rack, address string) *metal.Server {
	return t.server(t.serverOOB.one(join(rack, address)))
}

// ServerByAddress returns the server that holds an address of a rack.
func (t *tables) ServerByAddress(rack string, a netip.Addr) (*metal.Server, bool) {
	v := t.serverByAddress(rack, a)
	return v, v != nil
}

func (t *tables) serverByAddress(rack string, a netip.Addr) *metal.Server {
	if as := t.address(rack, a); as != nil {
		return t.server(as.ServerID)
	}
	return nil
}

// ServerByRental returns the server that a project rents under this name, or
// nil. Released rentals do not count: their names are free.
func (t *tables) ServerByRental(project, name string) (*metal.Server, bool) {
	v := t.serverByRental(project, name)
	return v, v != nil
}

func (t *tables) serverByRental(project, name string) *metal.Server {
	for e := range t.rentalName.prefixed(join(project, name)) {
		if e.key != join(project, name) {
			break
		}
		if s := t.server(e.id); s != nil && s.Rental != nil && !s.Rental.Released {
			return s
		}
	}
	return nil
}

// Servers yields what matches, by server name.
func (t *tables) Servers(f ServerFilter) iter.Seq[*metal.Server] {
	return func(yield func(*metal.Server) bool) {
		for r := range t.ServerRows(f) {
			if !yield(r.Server) {
				return
			}
		}
	}
}

// Operation returns the operation with this ID.
func (t *tables) Operation(id string) (*metal.Operation, bool) {
	v := t.operation(id)
	return v, v != nil
}

func (t *tables) operation(id string) *metal.Operation { return t.operations.get(id) }

func (t *tables) operationsBy(lines iter.Seq[entry]) iter.Seq[*metal.Operation] {
	return func(yield func(*metal.Operation) bool) {
		for e := range lines {
			if o := t.operation(e.id); o != nil && !yield(o) {
				return
			}
		}
	}
}

// OperationsOf yields a server's operations, newest first.
func (t *tables) OperationsOf(serverID string) iter.Seq[*metal.Operation] {
	return t.operationsBy(t.serverOps.backwards(join(serverID, "")))
}

// LastOperation returns a server's newest operation.
func (t *tables) LastOperation(serverID string) (*metal.Operation, bool) {
	v := t.lastOperation(serverID)
	return v, v != nil
}

func (t *tables) lastOperation(serverID string) *metal.Operation {
	for o := range t.OperationsOf(serverID) {
		return o
	}
	return nil
}

// OpenOperations yields the operations that have not ended, oldest first; of
// one rack, or of all for "".
func (t *tables) OpenOperations(rackID string) iter.Seq[*metal.Operation] {
	return func(yield func(*metal.Operation) bool) {
		for o := range t.operationsBy(t.openOps.prefixed("")) {
			if s := t.server(o.ServerID); rackID != "" && (s == nil || s.RackID != rackID) {
				continue
			}
			if !yield(o) {
				return
			}
		}
	}
}

// Operations yields all operations, newest first; with before, those that
// follow the one with that ID in this order.
func (t *tables) Operations(before string) iter.Seq[*metal.Operation] {
	if before == "" {
		return t.operationsBy(t.createdOps.backwards(""))
	}
	o := t.operation(before)
	if o == nil {
		return func(func(*metal.Operation) bool) {}
	}
	pivot := entry{createdKey(o), o.ID}
	return t.operationsBy(func(yield func(entry) bool) {
		t.createdOps.stable().DescendLessOrEqual(pivot, func(e entry) bool { return e == pivot || yield(e) })
	})
}

// Events yields events after (revision, index), oldest first. Of one server
// the newest MaxServerEvents exist.
func (t *tables) Events(afterRevision uint64, afterIndex int) iter.Seq[*metal.Event] {
	return t.events.from(be(afterRevision) + be(uint64(afterIndex+1)))
}

// EventsOf yields a server's events, newest first; those of no server for "".
func (t *tables) EventsOf(serverID string) iter.Seq[*metal.Event] {
	return func(yield func(*metal.Event) bool) {
		for e := range t.serverEvents.backwards(join(serverID, "")) {
			if v := t.events.get(e.id); v != nil && !yield(v) {
				return
			}
		}
	}
}

// Audit yields the audit's entries after a revision, oldest first.
func (t *tables) Audit(afterRevision uint64) iter.Seq[*metal.AuditEntry] {
	return t.audit.from(be(afterRevision + 1))
}

// Request returns what is remembered of a principal's request ID.
func (t *tables) Request(principal, id string) (*Request, bool) {
	v := t.request(principal, id)
	return v, v != nil
}

func (t *tables) request(principal, id string) *Request { return t.requests.get(join(id, principal)) }
