package state

import (
	"iter"
	"slices"
	"strings"

	"bmc/metal"
)

// namedServer is a line of the index of servers by name. It leads to the row
// itself: a list of all servers walks this one tree.
type namedServer struct {
	name, id string
	row      *record[metal.Server]
}

// ServerRow is a server with room for what a reader has made of it, such as its
// encoding. The room is of this row and of its operation under way: when one of the
// two changes, the new state has an empty one. It is not part of the state.
type ServerRow struct {
	*metal.Server
	row *record[metal.Server]
}

// Memo returns what SetMemo kept, or nil.
func (r ServerRow) Memo() any {
	if p := r.row.memo.Load(); p != nil {
		return *p
	}
	return nil
}

// SetMemo keeps a value that must never change. Anybody may call it at any time.
func (r ServerRow) SetMemo(v any) { r.row.memo.Store(&v) }

// ServerRow returns a server by ID.
func (t *tables) ServerRow(id string) (ServerRow, bool) {
	r, ok := t.servers.rows.tree.Get(&record[metal.Server]{key: id})
	if !ok {
		return ServerRow{}, false
	}
	return ServerRow{r.val, r}, true
}

// ServerRows yields what matches, by server name.
func (t *tables) ServerRows(f ServerFilter) iter.Seq[ServerRow] {
	if f.Project != "" {
		return t.serversOf(f)
	}
	return func(yield func(ServerRow) bool) {
		t.serverName.stable().AscendGreaterOrEqual(namedServer{name: f.After, id: "\xff"}, func(n namedServer) bool {
			return n.name <= f.After || !f.match(n.row.val) || yield(ServerRow{n.row.val, n.row})
		})
	}
}

// serversOf goes by the project's rentals, which are few, not by the inventory.
func (t *tables) serversOf(f ServerFilter) iter.Seq[ServerRow] {
	return func(yield func(ServerRow) bool) {
		var all []ServerRow
		for e := range t.rentalName.prefixed(join(f.Project, "")) {
			r, ok := t.servers.rows.tree.Get(&record[metal.Server]{key: e.id})
			if ok && r.val.Name > f.After && f.match(r.val) {
				all = append(all, ServerRow{r.val, r})
			}
		}
		slices.SortFunc(all, func(a, b ServerRow) int { return strings.Compare(a.Name, b.Name) })
		for _, r := range all {
			if !yield(r) {
				return
			}
		}
	}
}

// nameServer keeps the index of names; nil for no row before, or after.
func (x *Txn) nameServer(old *metal.Server, r *record[metal.Server]) {
	if old != nil && (r == nil || r.val.Name != old.Name) {
		x.serverName.del(x.own, namedServer{name: old.Name, id: old.ID})
	}
	if r != nil {
		x.serverName.put(x.own, namedServer{r.val.Name, r.key, r})
	}
}

// forgetMemo gives a server whose operation under way has changed a row of its own
// for the new state: readers of older ones may still write to theirs.
func (x *Txn) forgetMemo(serverID, operationID string) {
	r, ok := x.servers.rows.tree.Get(&record[metal.Server]{key: serverID})
	if !ok || r.val.Operation != operationID {
		return
	}
	fresh := &record[metal.Server]{key: r.key, val: r.val, hash: r.hash}
	x.servers.rows.put(x.own, fresh)
	x.nameServer(r.val, fresh)
}
