package rpc

import (
	"context"
	"slices"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/grpc"
)

// bookmarkEvery is how often a quiet watch says up to where it is complete.
const bookmarkEvery = 15 * time.Second

type events struct {
	bmcv1.UnimplementedEventsServer
	*API
}

// maysee says whether an event is the caller's business.
func (id *identity) mayseeEvent(e *metal.Event) bool {
	return id.operates() || (id.project != "" && e.Project == id.project)
}

func (s *events) ListEvents(ctx context.Context, req *bmcv1.ListEventsRequest) (*bmcv1.ListEventsResponse, error) {
	size, err := pageSize(req.GetPageSize(), maxPage)
	if err != nil {
		return nil, err
	}
	token, more, err := parsePageToken("events", req.GetPageToken())
	if err != nil {
		return nil, err
	}
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	serverID := ""
	if req.GetServer() != "" {
		srv, err := s.resolve(ctx, v, req.GetServer())
		if err != nil {
			return nil, err
		}
		serverID = srv.ID
	}
	since := time.Time{}
	if req.GetSince() != nil {
		since = req.GetSince().AsTime()
	}
	after := -1
	if more {
		after = token.Index
	}
	resp := &bmcv1.ListEventsResponse{Revision: v.Revision()}
	for _, e := range s.selected(v, serverID, token.Rev, after) {
		if e.Time.Before(since) || !caller(ctx).mayseeEvent(e) {
			continue
		}
		if len(resp.Events) == size {
			last := resp.Events[size-1]
			resp.NextPageToken = pageToken{List: "events", Rev: last.GetRevision(), Index: int(last.GetIndex())}.encode()
			break
		}
		resp.Events = append(resp.Events, toEvent(e))
	}
	return resp, nil
}

// selected returns the events after (rev, index), oldest first.
func (s *events) selected(v *state.View, serverID string, rev uint64, index int) []*metal.Event {
	var out []*metal.Event
	if serverID == "" {
		return slices.Collect(v.Events(rev, index))
	}
	for e := range v.EventsOf(serverID) { // newest first, at most 100
		if e.Revision < rev || (e.Revision == rev && e.Index <= index) {
			break
		}
		out = append(out, e)
	}
	slices.Reverse(out)
	return out
}

// watchKinds are what a watch may ask for.
var watchKinds = []string{state.KindServer, state.KindOperation, state.KindEvent, state.KindImage, state.KindRack}

// Watch streams from this node's replica. It begins with a linearizable read,
// so that what the caller has just done is in it.
func (s *events) Watch(req *bmcv1.WatchRequest, stream grpc.ServerStreamingServer[bmcv1.WatchResponse]) error {
	ctx := stream.Context()
	for _, k := range req.GetKinds() {
		if !slices.Contains(watchKinds, k) {
			return metal.Invalid("kinds", "%q is none of server, operation, event, image, rack", k)
		}
	}
	v, err := s.linearizable(ctx)
	if err != nil {
		return err
	}
	w := &watcher{id: caller(ctx), kinds: req.GetKinds(), send: stream.Send, shown: map[string]bool{}}
	if req.GetServer() != "" {
		srv, err := s.resolve(ctx, v, req.GetServer())
		if err != nil {
			return err
		}
		w.server = srv.ID
	}
	if v, err = s.begin(ctx, w, v, req); err != nil {
		return err
	}
	return s.deltas(ctx, w, v)
}

// begin sends what the caller lacks: nothing, the deltas since its revision, or
// a snapshot; then a bookmark.
func (s *events) begin(ctx context.Context, w *watcher, v *state.View, req *bmcv1.WatchRequest) (*state.View, error) {
	after := req.GetAfterRevision()
	if after > v.Revision() { // of a node that is ahead, or of a state that was replaced
		wait, cancel := context.WithTimeout(ctx, s.LeaderWait)
		defer cancel()
		for after > v.Revision() && wait.Err() == nil {
			if nv, err := s.Proposer.WaitView(wait, v.Revision()); err == nil {
				v = nv
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	switch {
	case after == 0 && req.GetNoSnapshot():
		w.remember(v)
	case after == 0:
		if err := w.snapshot(v); err != nil {
			return nil, err
		}
	default:
		changes, ok := v.Changes(after)
		if after > v.Revision() || !ok {
			if err := w.resync(v); err != nil {
				return nil, err
			}
			break
		}
		w.remember(v)
		for _, c := range changes {
			if w.lost(v, c, after) {
				w.shown[c.Kind+"/"+c.ID] = true
			}
		}
		if err := w.changes(v, after, changes); err != nil {
			return nil, err
		}
	}
	return v, w.bookmark(v)
}

func (s *events) deltas(ctx context.Context, w *watcher, v *state.View) error {
	views, stop := s.follow(ctx, v.Revision())
	defer stop()
	tick := time.NewTicker(bookmarkEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if err := w.bookmark(v); err != nil {
				return err
			}
		case nv, ok := <-views:
			if !ok {
				return ctx.Err()
			}
			changes, inRing := nv.Changes(v.Revision())
			var err error
			if inRing {
				err = w.changes(nv, v.Revision(), changes)
			} else {
				err = w.resync(nv)
			}
			if err != nil {
				return err
			}
			v = nv
		}
	}
}
