package rpc

import (
	"slices"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/state"
)

// watcher turns rows and changes into one caller's messages.
type watcher struct {
	id     *identity
	kinds  []string // empty: all
	server string   // ID; "" for all
	send   func(*bmcv1.WatchResponse) error
	// shown holds kind/ID of the servers and operations that the caller has
	// seen: when one stops being its business, it is told "removed" once.
	shown map[string]bool
}

func (w *watcher) wants(kind string) bool { return len(w.kinds) == 0 || slices.Contains(w.kinds, kind) }

// snapshot sends every row that the caller may see; events are no rows.
func (w *watcher) snapshot(v *state.View) error {
	return w.each(v, w.send)
}

// remember notes what a snapshot would have shown, without sending it.
func (w *watcher) remember(v *state.View) {
	_ = w.each(v, func(*bmcv1.WatchResponse) error { return nil })
}

func (w *watcher) each(v *state.View, send func(*bmcv1.WatchResponse) error) error {
	var ids []state.Change
	if w.wants(state.KindRack) && w.server == "" {
		for r := range v.Racks() {
			ids = append(ids, state.Change{Kind: state.KindRack, ID: r.ID})
		}
	}
	if w.wants(state.KindImage) && w.server == "" {
		for i := range v.Images(w.id.scope()) {
			ids = append(ids, state.Change{Kind: state.KindImage, ID: i.ID})
		}
	}
	for s := range v.Servers(state.ServerFilter{Project: w.id.scope()}) {
		if w.wants(state.KindServer) {
			ids = append(ids, state.Change{Kind: state.KindServer, ID: s.ID, ServerID: s.ID})
		}
	}
	if w.wants(state.KindOperation) {
		for op := range v.OpenOperations("") {
			ids = append(ids, state.Change{Kind: state.KindOperation, ID: op.ID, ServerID: op.ServerID})
		}
	}
	for _, c := range ids {
		m := w.row(v, c)
		if m == nil {
			continue
		}
		w.shown[c.Kind+"/"+c.ID] = true
		m.Revision = v.Revision()
		if err := send(m); err != nil {
			return err
		}
	}
	return nil
}

// resync tells the caller to forget what it has, and sends a new snapshot.
func (w *watcher) resync(v *state.View) error {
	w.shown = map[string]bool{}
	if err := w.send(&bmcv1.WatchResponse{Revision: v.Revision(), Resync: true}); err != nil {
		return err
	}
	if err := w.snapshot(v); err != nil {
		return err
	}
	return w.bookmark(v)
}

// bookmark says that everything up to the view's revision was sent.
func (w *watcher) bookmark(v *state.View) error {
	return w.send(&bmcv1.WatchResponse{Revision: v.Revision(), Bookmark: true})
}

// changes sends the rows that changed after a revision, as they are in v, then
// the events, oldest first, then a bookmark when anything was sent.
func (w *watcher) changes(v *state.View, after uint64, changes []state.Change) error {
	sent := map[string]bool{} // a row is sent once, as it is now
	n := 0
	for _, c := range changes {
		key := c.Kind + "/" + c.ID
		if c.Kind == state.KindEvent || sent[key] || !w.wants(c.Kind) {
			continue
		}
		sent[key] = true
		m := w.row(v, c)
		switch {
		case m != nil:
			w.shown[key] = true
		case w.shown[key]:
			delete(w.shown, key)
			m = &bmcv1.WatchResponse{Change: &bmcv1.WatchResponse_Removed{Removed: &bmcv1.Removed{Kind: c.Kind, Id: c.ID}}}
		default:
			continue
		}
		m.Revision = v.Revision()
		n++
		if err := w.send(m); err != nil {
			return err
		}
	}
	if w.wants(state.KindEvent) {
		for e := range v.Events(after, int(^uint32(0)>>1)) {
			if !w.id.mayseeEvent(e) || (w.server != "" && e.ServerID != w.server) {
				continue
			}
			n++
			if err := w.send(&bmcv1.WatchResponse{Revision: v.Revision(), Change: &bmcv1.WatchResponse_Event{Event: toEvent(e)}}); err != nil {
				return err
			}
		}
	}
	if n == 0 {
		return nil
	}
	return w.bookmark(v)
}

// lost says whether a row that is not the caller's to see may have been at a
// revision: it is gone, or the caller's rental of it has ended since.
func (w *watcher) lost(v *state.View, c state.Change, after uint64) bool {
	if w.server != "" && c.ServerID != w.server {
		return false
	}
	switch c.Kind {
	case state.KindServer:
		for e := range v.EventsOf(c.ID) { // newest first
			if e.Revision <= after {
				break
			}
			if w.id.mayseeEvent(e) {
				return true
			}
		}
		return c.Removed
	case state.KindImage:
		return c.Removed && (w.id.operates() || c.Project == w.id.scope())
	case state.KindOperation, state.KindRack:
		return c.Removed
	}
	return false // of what no watch shows
}

// row is the message of a changed row, nil when it is gone or none of the
// caller's business.
func (w *watcher) row(v *state.View, c state.Change) *bmcv1.WatchResponse {
	if w.server != "" && c.ServerID != w.server {
		return nil
	}
	switch c.Kind {
	case state.KindServer:
		if s, ok := v.Server(c.ID); ok && w.id.visible(s) {
			return &bmcv1.WatchResponse{Change: &bmcv1.WatchResponse_Server{Server: toServer(v, s, w.id.operates())}}
		}
	case state.KindOperation:
		if op, ok := v.Operation(c.ID); ok && mayseeOperation(w.id, op) {
			return &bmcv1.WatchResponse{Change: &bmcv1.WatchResponse_Operation{Operation: toOperation(v, op)}}
		}
	case state.KindRack:
		if r, ok := v.Rack(c.ID); ok {
			n := rackCounts(v)[r.ID]
			return &bmcv1.WatchResponse{Change: &bmcv1.WatchResponse_Rack{Rack: toRack(v, r, n[0], n[1])}}
		}
	case state.KindImage:
		for i := range v.Images(w.id.scope()) {
			if i.ID == c.ID {
				return &bmcv1.WatchResponse{Change: &bmcv1.WatchResponse_Image{Image: toImage(v, i, false)}}
			}
		}
	}
	return nil
}
