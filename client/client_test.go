package client

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

// node answers create calls as its function says and keeps their request IDs.
type node struct {
	bmcv1.UnimplementedServersServer
	bmcv1.UnimplementedOperationsServer
	answer func(call int) error
	leader string // when set, where it says that it has forwarded the call to

	mu    sync.Mutex
	calls []string
	watch func(bmcv1.Operations_WatchOperationServer, int) error
	seen  int
}

func (n *node) CreateServer(ctx context.Context, r *bmcv1.CreateServerRequest) (*bmcv1.Operation, error) {
	n.mu.Lock()
	n.calls = append(n.calls, r.GetRequestId())
	call := len(n.calls)
	n.mu.Unlock()
	if err := n.answer(call); err != nil {
		return nil, err
	}
	if n.leader != "" {
		_ = grpc.SetHeader(ctx, metadata.Pairs(mdLeader, n.leader))
	}
	return &bmcv1.Operation{Id: "op-1"}, nil
}

func (n *node) WatchOperation(_ *bmcv1.WatchOperationRequest, s bmcv1.Operations_WatchOperationServer) error {
	n.mu.Lock()
	n.seen++
	call := n.seen
	n.mu.Unlock()
	return n.watch(s, call)
}

func start(t *testing.T, n *node) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	bmcv1.RegisterServersServer(s, n)
	bmcv1.RegisterOperationsServer(s, n)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

// closedPort is an address that refuses connections.
func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

func dial(t *testing.T, cfg Config) *Client {
	cfg.Dial = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func refused(code metal.Code) error { return rpcerr.Encode(metal.Errorf(code, "no"), "") }

func TestFailover(t *testing.T) {
	tests := []struct {
		name   string
		first  func(call int) error // nil: the first node's port is closed
		second func(call int) error
		want   metal.Code
		calls  int // that reach the second node
	}{
		{"the first is down", nil, func(int) error { return nil }, "", 1},
		{"the first knows no leader", func(int) error { return refused(metal.CodeNoLeader) }, func(int) error { return nil }, "", 1},
		{"the outcome is unknown", func(int) error { return refused(metal.CodeUnknownOutcome) }, func(int) error { return nil }, "", 1},
		{"a refusal is not tried elsewhere", func(int) error { return refused(metal.CodeNameTaken) }, func(int) error { return nil }, metal.CodeNameTaken, 0},
		{"no leader at first", func(int) error { return refused(metal.CodeNoLeader) }, func(call int) error {
			if call < 3 {
				return refused(metal.CodeNoLeader)
			}
			return nil
		}, "", 3},
		{"no leader at all", func(int) error { return refused(metal.CodeNoLeader) }, func(int) error { return refused(metal.CodeNoLeader) }, metal.CodeNoLeader, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			first, second := &node{answer: tt.first}, &node{answer: tt.second}
			addrs := []string{closedPort(t), start(t, second)}
			if tt.first != nil {
				addrs[0] = start(t, first)
			}
			noted := 0
			patience := 20 * time.Second // ample: it is not waited for
			if tt.calls < 0 {
				patience = 200 * time.Millisecond
			}
			c := dial(t, Config{Addresses: addrs, Patience: patience, OnRetry: func(string) { noted++ }})
			_, err := c.Servers.CreateServer(t.Context(), &bmcv1.CreateServerRequest{Name: "web-1"})
			if metal.CodeOf(err) != tt.want {
				t.Fatalf("got %v, want reason %q", err, tt.want)
			}
			if tt.calls >= 0 && len(second.calls) != tt.calls {
				t.Errorf("the second node got %d calls, want %d", len(second.calls), tt.calls)
			}
			ids := map[string]bool{}
			for _, id := range append(first.calls, second.calls...) {
				ids[id] = true
			}
			if len(ids) != 1 || ids[""] {
				t.Errorf("the tries carried the request IDs %v, want one and the same", ids)
			}
			if noted > 1 {
				t.Errorf("told %d times that it tries again", noted)
			}
		})
	}
}

func TestNobodyAnswers(t *testing.T) {
	a, b := closedPort(t), closedPort(t)
	c := dial(t, Config{Addresses: []string{a, b}, Patience: 200 * time.Millisecond})
	_, err := c.Servers.GetServer(t.Context(), &bmcv1.GetServerRequest{Ref: "web-1"})
	if !errors.Is(err, ErrUnreachable) || metal.CodeOf(err) != metal.CodeNoLeader {
		t.Fatalf("got %v, want ErrUnreachable", err)
	}
	var e *metal.Error
	if !errors.As(err, &e) || e.Message != "no control-plane node answered (tried "+a+", "+b+"): it refuses connections" {
		t.Errorf("the message is %q", e.Message)
	}
}

func TestWatchOperationGoesOn(t *testing.T) {
	n := &node{}
	n.watch = func(s bmcv1.Operations_WatchOperationServer, call int) error {
		if call == 1 {
			if err := s.Send(&bmcv1.Operation{Id: "op-1", State: "running"}); err != nil {
				return err
			}
			return status.Error(codes.Unavailable, "the node goes away")
		}
		return s.Send(&bmcv1.Operation{Id: "op-1", State: "succeeded"})
	}
	c := dial(t, Config{Addresses: []string{start(t, n)}, Patience: 2 * time.Second})
	var states []string
	last, err := c.WatchOperation(t.Context(), "op-1", func(op *bmcv1.Operation) error {
		states = append(states, op.GetState())
		return nil
	})
	if err != nil || last.GetState() != "succeeded" || len(states) != 2 {
		t.Fatalf("got %v, %v, %v", last, states, err)
	}
}

// An operation that says nothing for longer than our patience, and whose stream
// then ends for whatever reason of a node's own, is followed on.
func TestWatchOperationOutlivesCalls(t *testing.T) {
	const patience = 200 * time.Millisecond
	for name, end := range map[string]error{
		"a node goes away":     errBroken,
		"a node's time is up":  status.Error(codes.DeadlineExceeded, "context deadline exceeded"),
		"and it says so":       refused(metal.CodeDeadline),
		"no leader":            refused(metal.CodeNoLeader),
		"the stream just ends": nil,
	} {
		t.Run(name, func(t *testing.T) {
			n := &node{}
			n.watch = func(s bmcv1.Operations_WatchOperationServer, call int) error {
				if call > 2 {
					return s.Send(&bmcv1.Operation{Id: "op-1", State: "succeeded"})
				}
				if err := s.Send(&bmcv1.Operation{Id: "op-1", State: "running"}); err != nil {
					return err
				}
				select {
				case <-time.After(2 * patience):
				case <-s.Context().Done():
				}
				return end
			}
			c := dial(t, Config{Addresses: []string{start(t, n)}, Patience: patience})
			last, err := c.WatchOperation(t.Context(), "op-1", func(*bmcv1.Operation) error { return nil })
			if err != nil || last.GetState() != "succeeded" {
				t.Errorf("got %v, %v", last, err)
			}
		})
	}
}

// A node may give an attempt's bound as its reason before the client notices it;
// the next try has the same request ID.
func TestNodeThatIsLate(t *testing.T) {
	n := &node{answer: func(call int) error {
		if call == 1 {
			return refused(metal.CodeDeadline)
		}
		return nil
	}}
	addr := start(t, n)
	c := dial(t, Config{Addresses: []string{addr, addr}})
	if _, err := c.Servers.CreateServer(t.Context(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	if len(n.calls) != 2 || n.calls[0] != n.calls[1] {
		t.Errorf("request IDs %v", n.calls)
	}
}

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
	}{
		{"no address", Config{}},
		{"no port", Config{Addresses: []string{"cp1"}}},
		{"no certificate", Config{Addresses: []string{"cp1:1"}, CACert: []byte("nonsense")}},
	} {
		if _, err := New(tt.cfg); metal.CodeOf(err) != metal.CodeInvalid {
			t.Errorf("%s: got %v, want a refusal", tt.name, err)
		}
	}
}
