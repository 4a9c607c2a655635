package client

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

// mute takes connections and says nothing, like a process that is stopped.
func mute(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var taken []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			taken = append(taken, c)
			mu.Unlock()
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
		for _, c := range taken {
			c.Close()
		}
	})
	return l.Addr().String()
}

// A node that takes the call and never answers costs one bound, not the call;
// the next node gets the same request ID.
func TestHungNode(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	hung := &node{answer: func(int) error { <-release; return nil }}
	good := &node{answer: func(int) error { return nil }}
	for name, first := range map[string]string{"it answers no call": start(t, hung), "it answers no connection": mute(t)} {
		t.Run(name, func(t *testing.T) {
			good.calls, hung.calls = nil, nil
			c := dial(t, Config{Addresses: []string{first, start(t, good)}, answerWait: 200 * time.Millisecond})
			for range 2 { // the second goes to the good one at once
				if _, err := c.Servers.CreateServer(t.Context(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
					t.Fatal(err)
				}
			}
			hung.mu.Lock()
			defer hung.mu.Unlock()
			if len(good.calls) != 2 || len(hung.calls) > 1 {
				t.Fatalf("the good node got %v, the hung one %v", good.calls, hung.calls)
			}
			if len(hung.calls) == 1 && hung.calls[0] != good.calls[0] {
				t.Errorf("request IDs %v and %v", hung.calls, good.calls)
			}
		})
	}
}

// What takes longer than one bound is done all the same: the bound grows.
func TestSlowCallIsNotCutForEver(t *testing.T) {
	slow := func(int) error { time.Sleep(500 * time.Millisecond); return nil }
	a, b := &node{answer: slow}, &node{answer: slow}
	c := dial(t, Config{Addresses: []string{start(t, a), start(t, b)}, Patience: 20 * time.Second, answerWait: 150 * time.Millisecond})
	if _, err := c.Servers.CreateServer(t.Context(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
}

// The caller's own deadline is an end, not a reason to ask elsewhere.
func TestOwnDeadline(t *testing.T) {
	a, b := mute(t), mute(t)
	c := dial(t, Config{Addresses: []string{a, b}})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := c.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: "web-1"})
	if metal.CodeOf(err) != metal.CodeDeadline {
		t.Fatalf("got %v", err)
	}
}

// A message that is used again is another request, with another effect.
func TestRequestUsedAgain(t *testing.T) {
	n := &node{answer: func(int) error { return nil }}
	c := dial(t, Config{Addresses: []string{start(t, n)}})
	req := &bmcv1.CreateServerRequest{Name: "web-1"}
	for range 2 {
		if _, err := c.Servers.CreateServer(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if req.GetRequestId() != "" || n.calls[0] == n.calls[1] {
		t.Errorf("the message carries %q, the calls %v", req.GetRequestId(), n.calls)
	}
	req.RequestId = "0190a0f0-0000-7000-8000-000000000000"
	if _, err := c.Servers.CreateServer(t.Context(), req); err != nil || n.calls[2] != req.GetRequestId() {
		t.Errorf("the caller's ID became %q: %v", n.calls[2], err)
	}
}

// reader answers writes with a revision, and reads only when it has it.
type reader struct {
	bmcv1.UnimplementedServersServer
	has   uint64
	asked []uint64
}

func (r *reader) CreateServer(context.Context, *bmcv1.CreateServerRequest) (*bmcv1.Operation, error) {
	return &bmcv1.Operation{ResourceVersion: 7, Server: &bmcv1.Server{ResourceVersion: 9}}, nil
}

func (r *reader) GetServer(_ context.Context, req *bmcv1.GetServerRequest) (*bmcv1.Server, error) {
	r.asked = append(r.asked, req.GetMinRevision())
	if req.GetMinRevision() > r.has {
		return nil, refused(metal.CodeDeadline)
	}
	return &bmcv1.Server{ResourceVersion: 3}, nil
}

func serve(t *testing.T, register func(*grpc.Server)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

// Reads carry the revision of what was written; a node that is behind is left.
func TestReadYourWrites(t *testing.T) {
	behind, ahead := &reader{has: 8}, &reader{has: 9}
	var addrs []string
	for _, r := range []*reader{behind, ahead} {
		addrs = append(addrs, serve(t, func(s *grpc.Server) { bmcv1.RegisterServersServer(s, r) }))
	}
	c := dial(t, Config{Addresses: addrs})
	if _, err := c.Servers.GetServer(t.Context(), &bmcv1.GetServerRequest{Ref: "a", AllowStale: true}); err != nil || c.Revision() != 3 {
		t.Fatalf("revision %d: %v", c.Revision(), err)
	}
	if _, err := c.Servers.CreateServer(t.Context(), &bmcv1.CreateServerRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Servers.GetServer(t.Context(), &bmcv1.GetServerRequest{Ref: "a", AllowStale: true}); err != nil {
		t.Fatal(err)
	}
	if len(behind.asked) != 2 || behind.asked[0] != 0 || behind.asked[1] != 9 || len(ahead.asked) != 1 || ahead.asked[0] != 9 {
		t.Errorf("asked for %v and %v", behind.asked, ahead.asked)
	}
	if _, err := c.Servers.GetServer(t.Context(), &bmcv1.GetServerRequest{Ref: "a", MinRevision: 2}); err != nil || ahead.asked[1] != 2 {
		t.Errorf("the caller's own bound became %v: %v", ahead.asked, err)
	}
	if _, err := c.Servers.GetServer(t.Context(), &bmcv1.GetServerRequest{Ref: "a"}); err != nil || ahead.asked[2] != 0 {
		t.Errorf("a read that may not be stale asks for revision %v: %v", ahead.asked, err)
	}
}

// A refusal that carries no reason of ours is shown as it is.
func TestForeignStatus(t *testing.T) {
	n := &node{answer: func(int) error { return status.Error(codes.ResourceExhausted, "too large") }}
	c := dial(t, Config{Addresses: []string{start(t, n), closedPort(t)}})
	_, err := c.Servers.CreateServer(t.Context(), &bmcv1.CreateServerRequest{})
	if metal.CodeOf(err) != metal.CodeInternal || len(n.calls) != 1 {
		t.Errorf("%d calls, %v", len(n.calls), err)
	}
}

// timekeeper notes whether calls come with a deadline.
type timekeeper struct {
	bmcv1.UnimplementedServersServer
	has []bool
}

func (k *timekeeper) GetServer(ctx context.Context, _ *bmcv1.GetServerRequest) (*bmcv1.Server, error) {
	_, ok := ctx.Deadline()
	k.has = append(k.has, ok)
	return &bmcv1.Server{}, nil
}

// The caller's deadline goes with the call; the bound of an attempt is the client's own.
func TestOnlyTheCallersDeadlineTravels(t *testing.T) {
	k := &timekeeper{}
	addr := serve(t, func(s *grpc.Server) { bmcv1.RegisterServersServer(s, k) })
	bounded, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, addrs := range [][]string{{addr}, {addr, closedPort(t)}} {
		k.has = nil
		c := dial(t, Config{Addresses: addrs})
		for _, ctx := range []context.Context{t.Context(), bounded} {
			if _, err := c.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: "a"}); err != nil {
				t.Fatal(err)
			}
		}
		if len(k.has) != 2 || k.has[0] || !k.has[1] {
			t.Errorf("%d nodes: calls without and with a deadline came as %v", len(addrs), k.has)
		}
	}
}

// A call without a deadline has the client's own, however many nodes there are.
func TestCallTimeout(t *testing.T) {
	for _, addrs := range [][]string{{mute(t)}, {mute(t), mute(t)}} {
		c := dial(t, Config{Addresses: addrs, CallTimeout: 100 * time.Millisecond})
		_, err := c.Servers.GetServer(t.Context(), &bmcv1.GetServerRequest{Ref: "web-1"})
		if metal.CodeOf(err) != metal.CodeDeadline {
			t.Errorf("%d nodes: got %v", len(addrs), err)
		}
	}
}
