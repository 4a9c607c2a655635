package state

// Kinds of changes.
const (
	KindServer    = "server"
	KindOperation = "operation"
	KindEvent     = "event"
	KindImage     = "image"
	KindRack      = "rack"
	KindSize      = "size"
	KindKey       = "key"
	KindProject   = "project"
	KindToken     = "token"
	KindAgent     = "agent"
	KindNode      = "node"
	KindModel     = "model"
)

// Change says that a row changed. Watchers read the row from a View; it may be
// gone by then, and a later change says so.
type Change struct {
	Revision uint64
	Kind     string
	ID       string // empty for events: read them with Events or EventsOf
	ServerID string // that it concerns; may be empty
	Project  string // images, keys: the owner's ID
	Removed  bool
}

// change is one line of the ring: a pointer, since a Txn copies whole nodes.
type change struct {
	seq uint64
	*Change
}

// Changes returns what changed after a revision, oldest first; several changes
// of one row by one command are one Change. ok is false when the ring does not
// reach back that far, or a restore came between: start over from a snapshot.
func (t *tables) Changes(after uint64) (changes []Change, ok bool) {
	if after < t.floor || after > t.meta.Revision {
		return nil, false
	}
	t.changes.tree.Descend(func(c change) bool {
		if c.Revision <= after {
			return false
		}
		changes = append(changes, *c.Change)
		return true
	})
	for i, j := 0, len(changes)-1; i < j; i, j = i+1, j-1 {
		changes[i], changes[j] = changes[j], changes[i]
	}
	return changes, true
}

// changed notes a change for the ring. Within one command the last word on a
// row counts.
func (x *Txn) changed(c Change) {
	c.Revision = x.meta.Revision
	for i := len(x.noted) - 1; i >= 0 && i >= len(x.noted)-16; i-- {
		if n := &x.noted[i]; n.Kind == c.Kind && n.ID == c.ID && n.ServerID == c.ServerID {
			n.Removed = c.Removed
			return
		}
	}
	x.noted = append(x.noted, c)
}

// publish ends a command: its changes go to the ring.
func (x *Txn) publish() {
	x.nth = 0
	if len(x.noted) == 0 {
		return
	}
	defer func() { x.noted = nil }()
	ring := x.changes.write(x.own)
	for i := range x.noted {
		x.seq++
		ring.ReplaceOrInsert(change{x.seq, &x.noted[i]})
	}
	for ring.Len() > MaxChanges {
		old, _ := ring.DeleteMin()
		x.floor = old.Revision
	}
}

// ForgetChanges empties the ring: every watcher starts over.
func (x *Txn) ForgetChanges() {
	x.noted = nil
	x.changes.write(x.own).Clear(false)
	x.floor = x.meta.Revision
}
