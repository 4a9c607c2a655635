package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

// script plays one stream after another and keeps what was asked.
type script struct {
	bmcv1.UnimplementedEventsServer
	streams []func(bmcv1.Events_WatchServer) error

	mu    sync.Mutex
	asked []string
}

func (s *script) Watch(r *bmcv1.WatchRequest, out bmcv1.Events_WatchServer) error {
	s.mu.Lock()
	n := len(s.asked)
	s.asked = append(s.asked, fmt.Sprintf("%d/%v", r.GetAfterRevision(), r.GetNoSnapshot()))
	s.mu.Unlock()
	if n >= len(s.streams) {
		return refused(metal.CodeDenied)
	}
	return s.streams[n](out)
}

var errBroken = status.Error(codes.Unavailable, "the node goes away")

func row(rev uint64, id string) *bmcv1.WatchResponse {
	return &bmcv1.WatchResponse{Revision: rev, Change: &bmcv1.WatchResponse_Server{Server: &bmcv1.Server{Id: id}}}
}

func event(rev uint64, index uint32) *bmcv1.WatchResponse {
	return &bmcv1.WatchResponse{Revision: rev, Change: &bmcv1.WatchResponse_Event{Event: &bmcv1.Event{Revision: rev, Index: index}}}
}

func mark(rev uint64) *bmcv1.WatchResponse {
	return &bmcv1.WatchResponse{Revision: rev, Bookmark: true}
}

func resync(rev uint64) *bmcv1.WatchResponse {
	return &bmcv1.WatchResponse{Revision: rev, Resync: true}
}

// then sends messages and ends the stream with an error.
func then(err error, messages ...*bmcv1.WatchResponse) func(bmcv1.Events_WatchServer) error {
	return func(out bmcv1.Events_WatchServer) error {
		for _, m := range messages {
			if err := out.Send(m); err != nil {
				return err
			}
		}
		return err
	}
}

// text is a message as a test names it.
func text(m *bmcv1.WatchResponse) string {
	switch {
	case m.GetResync():
		return "resync"
	case m.GetBookmark():
		return fmt.Sprintf("mark %d", m.GetRevision())
	case m.GetServer() != nil:
		return fmt.Sprintf("%s@%d", m.GetServer().GetId(), m.GetRevision())
	case m.GetEvent() != nil:
		return fmt.Sprintf("event %d.%d", m.GetEvent().GetRevision(), m.GetEvent().GetIndex())
	}
	return m.String()
}

// What the consumer is shown when streams break at every kind of place.
func TestWatchAcrossBreaks(t *testing.T) {
	gone := errBroken
	type streams = []func(bmcv1.Events_WatchServer) error
	tests := []struct {
		name    string
		req     *bmcv1.WatchRequest
		streams streams
		shown   []string
		asked   []string
	}{
		{"after a bookmark: nothing twice", &bmcv1.WatchRequest{},
			streams{then(gone, row(5, "a"), mark(5)), then(nil, mark(5), row(6, "b"), mark(6))},
			[]string{"a@5", "mark 5", "mark 5", "b@6", "mark 6"}, []string{"0/false", "5/false", "6/false"}},
		{"within a group: it comes once, whole", &bmcv1.WatchRequest{},
			streams{then(gone, mark(5), row(6, "a"), event(6, 0)), then(nil, row(7, "a"), event(6, 0), event(7, 0), mark(7))},
			[]string{"mark 5", "a@7", "event 6.0", "event 7.0", "mark 7"}, []string{"0/false", "5/false", "7/false"}},
		{"within the snapshot: it is taken back", &bmcv1.WatchRequest{},
			streams{then(gone, row(5, "a"), row(5, "b")), then(nil, row(6, "b"), mark(6))},
			[]string{"a@5", "b@5", "resync", "b@6", "mark 6"}, []string{"0/false", "0/false", "6/false"}},
		{"before anything came", &bmcv1.WatchRequest{},
			streams{then(gone), then(nil, row(6, "b"), mark(6))},
			[]string{"b@6", "mark 6"}, []string{"0/false", "0/false", "6/false"}},
		{"within a resync", &bmcv1.WatchRequest{AfterRevision: 3, NoSnapshot: true},
			streams{then(gone, resync(9), row(9, "a")), then(nil, row(10, "c"), mark(10))},
			[]string{"resync", "a@9", "resync", "c@10", "mark 10"}, []string{"3/true", "0/false", "10/false"}},
		{"a restore lowers the revision", &bmcv1.WatchRequest{},
			streams{then(gone, mark(50), resync(20), row(20, "a"), mark(20)), then(nil, mark(20))},
			[]string{"mark 50", "resync", "a@20", "mark 20", "mark 20"}, []string{"0/false", "20/false", "20/false"}},
		{"resuming as asked", &bmcv1.WatchRequest{AfterRevision: 3},
			streams{then(gone, row(4, "a")), then(nil, row(4, "a"), mark(4))},
			[]string{"a@4", "mark 4"}, []string{"3/false", "3/false", "4/false"}},
		{"from now on", &bmcv1.WatchRequest{NoSnapshot: true},
			streams{then(gone, mark(5)), then(nil, row(6, "a"), mark(6))},
			[]string{"mark 5", "a@6", "mark 6"}, []string{"0/true", "5/true", "6/true"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &script{streams: tt.streams}
			c := dial(t, Config{Addresses: []string{serve(t, func(g *grpc.Server) { bmcv1.RegisterEventsServer(g, s) })}})
			var shown []string
			err := c.Watch(t.Context(), tt.req, func(m *bmcv1.WatchResponse) error {
				shown = append(shown, text(m))
				return nil
			})
			if metal.CodeOf(err) != metal.CodeDenied {
				t.Fatalf("it ended with %v", err)
			}
			if !slices.Equal(shown, tt.shown) {
				t.Errorf("shown %q, want %q", shown, tt.shown)
			}
			if !slices.Equal(s.asked, tt.asked) {
				t.Errorf("asked %q, want %q", s.asked, tt.asked)
			}
		})
	}
}

// A stream on which nothing is said is given up, and another node is asked.
func TestSilentStream(t *testing.T) {
	opened := 0
	var told []string
	open := func(ctx context.Context) (receiver[bmcv1.WatchResponse], error) {
		opened++
		if opened == 1 {
			return &recorded{ctx: ctx, messages: []*bmcv1.WatchResponse{mark(1)}}, nil
		}
		return &recorded{ctx: ctx, messages: []*bmcv1.WatchResponse{mark(2)}}, nil
	}
	enough := errors.New("enough")
	err := follow(t.Context(), time.Second, 50*time.Millisecond, open, func(m *bmcv1.WatchResponse) error {
		if told = append(told, text(m)); len(told) == 2 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || opened != 2 {
		t.Errorf("opened %d times, told %q, %v", opened, told, err)
	}
}

// recorded says its messages and then nothing until its context ends.
type recorded struct {
	ctx      context.Context
	messages []*bmcv1.WatchResponse
}

func (r *recorded) Recv() (*bmcv1.WatchResponse, error) {
	if len(r.messages) == 0 {
		<-r.ctx.Done()
		return nil, r.ctx.Err()
	}
	m := r.messages[0]
	r.messages = r.messages[1:]
	return m, nil
}
