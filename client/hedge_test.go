package client

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	bmcv1 "bmc/api/bmc/v1"
)

// A first address that takes connections and says nothing costs a call a fraction
// of a second, not the bound of an answer, and no word to the user; a stream, too.
func TestBlackHoleFirst(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	for name, first := range map[string]string{
		"no connection": mute(t),
		"no answer":     start(t, &node{answer: func(int) error { <-release; return nil }}),
	} {
		t.Run(name, func(t *testing.T) {
			good := &node{answer: func(int) error { return nil },
				watch: func(s bmcv1.Operations_WatchOperationServer, _ int) error {
					return s.Send(&bmcv1.Operation{Id: "op-1"})
				}}
			c := dial(t, Config{Addresses: []string{first, start(t, good)}, OnRetry: func(why string) { t.Errorf("said %q", why) }})
			began := time.Now()
			op, err := c.Servers.CreateServer(t.Context(), &bmcv1.CreateServerRequest{Name: "web-1"})
			if err != nil || op.GetId() != "op-1" {
				t.Fatalf("%v: %v", op, err)
			}
			if d := time.Since(began); d < hedgeAfter || d > connectWait {
				t.Errorf("it took %v", d)
			}
		})
	}
	good := &node{watch: func(s bmcv1.Operations_WatchOperationServer, _ int) error {
		return s.Send(&bmcv1.Operation{Id: "op-1"})
	}}
	c := dial(t, Config{Addresses: []string{mute(t), closedPort(t), start(t, good)}})
	began := time.Now()
	s, err := c.Operations.WatchOperation(t.Context(), &bmcv1.WatchOperationRequest{Id: "op-1"})
	if err != nil {
		t.Fatal(err)
	}
	if op, err := s.Recv(); err != nil || op.GetId() != "op-1" {
		t.Errorf("%v: %v", op, err)
	}
	if d := time.Since(began); d > connectWait {
		t.Errorf("the stream took %v", d)
	}
}

// While one node says nothing and the other knows no leader yet, the other is asked
// until it does.
func TestElectionBesideABlackHole(t *testing.T) {
	good := &node{answer: func(call int) error {
		if call < 4 {
			return refused("NO_LEADER")
		}
		return nil
	}}
	c := dial(t, Config{Addresses: []string{mute(t), start(t, good)}, answerWait: time.Minute})
	if _, err := c.Servers.CreateServer(t.Context(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
}

// A cluster that is merely slow is not asked everything twice.
func TestSlowClusterIsSparedTheSecondCall(t *testing.T) {
	var calls atomic.Int32
	answer := func(int) error { calls.Add(1); time.Sleep(40 * time.Millisecond); return nil }
	a, b := &node{answer: answer}, &node{answer: answer}
	c := dial(t, Config{Addresses: []string{start(t, a), start(t, b)}, hedgeAfter: 10 * time.Millisecond})
	for range 20 {
		if _, err := c.Servers.CreateServer(t.Context(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := calls.Load(); n > 30 {
		t.Errorf("%d calls for 20", n)
	}
}

// A mutation that a node has taken is not sent to another one as soon as a read is.
func TestMutationsAreGivenTime(t *testing.T) {
	var calls atomic.Int32
	answer := func(int) error { calls.Add(1); time.Sleep(100 * time.Millisecond); return nil }
	c := dial(t, Config{Addresses: []string{start(t, &node{answer: answer}), start(t, &node{answer: answer})}, hedgeAfter: 50 * time.Millisecond})
	if _, err := c.Servers.CreateServer(t.Context(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil || calls.Load() != 1 {
		t.Errorf("%d calls: %v", calls.Load(), err)
	}
}

// hander takes a while to hand on leadership.
type hander struct {
	bmcv1.UnimplementedClusterServer
	calls *atomic.Int32
}

func (h hander) TransferLeader(context.Context, *bmcv1.TransferLeaderRequest) (*bmcv1.TransferLeaderResponse, error) {
	h.calls.Add(1)
	time.Sleep(100 * time.Millisecond)
	return &bmcv1.TransferLeaderResponse{}, nil
}

// What has no request ID runs at one node at a time.
func TestOnce(t *testing.T) {
	var calls atomic.Int32
	var addrs []string
	for range 2 {
		addrs = append(addrs, serve(t, func(s *grpc.Server) { bmcv1.RegisterClusterServer(s, hander{calls: &calls}) }))
	}
	c := dial(t, Config{Addresses: addrs, hedgeAfter: time.Millisecond})
	if _, err := c.Cluster.TransferLeader(t.Context(), &bmcv1.TransferLeaderRequest{}); err != nil || calls.Load() != 1 {
		t.Errorf("%d calls: %v", calls.Load(), err)
	}
}

// old answers stale reads as of a revision.
type old struct {
	bmcv1.UnimplementedInventoryServer
	age string
}

func (o old) ListRacks(ctx context.Context, r *bmcv1.ListRacksRequest) (*bmcv1.ListRacksResponse, error) {
	if r.GetAllowStale() {
		_ = grpc.SetHeader(ctx, metadata.Pairs(mdStaleAge, o.age, mdStaleRevision, "41"))
	}
	return &bmcv1.ListRacksResponse{}, nil
}

// Every read of a client that may be stale asks for that, and the client knows how
// old the answers were.
func TestStaleness(t *testing.T) {
	for age, want := range map[string]Staleness{"1m0s": {Revision: 41, Age: time.Minute}, "never": {Revision: 41, Never: true}} {
		c := dial(t, Config{Addresses: []string{serve(t, func(s *grpc.Server) { bmcv1.RegisterInventoryServer(s, old{age: age}) })}})
		for _, allowed := range []bool{false, true} {
			if allowed {
				c.AllowStale()
			}
			if _, err := c.Inventory.ListRacks(t.Context(), &bmcv1.ListRacksRequest{}); err != nil {
				t.Fatal(err)
			}
			if got, ok := c.Stale(); ok != allowed || ok && got != want {
				t.Errorf("%s: %+v %v, want %+v", age, got, ok, want)
			}
		}
	}
}
