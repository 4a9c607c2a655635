package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	"bmc/agent/boot"
	"bmc/agent/operation"
	agentv1 "bmc/api/agent/v1"
)

// nobody holds no lease and takes no report.
type nobody struct{}

func (nobody) Hold(ctx context.Context, _ string, _ func() uint64) (context.Context, context.CancelFunc, error) {
	<-ctx.Done()
	return nil, nil, ctx.Err()
}

func (nobody) Report(ctx context.Context, _ *agentv1.ReportStepRequest) error {
	<-ctx.Done()
	return ctx.Err()
}

// Two nodes' streams bring an assignment and, later in the log, its withdrawal.
// However they are scheduled, the withdrawal is the last word.
func TestChangesReachOperationsInOrder(t *testing.T) {
	r := openTestRack(t)
	a := &Agent{log: slog.New(slog.DiscardHandler), racks: []*rack{r}, renamed: make(chan struct{}, 1), admission: newAdmission()}
	server := &agentv1.ServerSpec{Id: testServer, Macs: []string{testMAC}}
	var err error
	a.ops, err = operation.NewManager(t.TempDir(), operation.Deps{
		Server: func(string) (*agentv1.ServerSpec, bool) { return server, true },
		Lease:  nobody{}, Reporter: nobody{}, Log: a.log,
		Ramdisks: ramdisks{boot.New(boot.Config{Log: a.log})},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.ops.Close()
	op := &agentv1.Assignment{OperationId: "op-1", Kind: "clean", ServerId: testServer, Attempt: 1, Epoch: 1}
	withdrawn := make(chan struct{})
	err = a.take(r, func() (change, error) {
		c := r.apply(0, &agentv1.RackUpdate{Revision: 1, Assignments: []*agentv1.Assignment{op}})
		go func() {
			defer close(withdrawn)
			_ = a.take(r, func() (change, error) {
				return r.apply(0, &agentv1.RackUpdate{Revision: 2, Withdrawn: []string{op.OperationId}}), nil
			})
		}()
		select {
		case <-withdrawn: // it has overtaken us
		case <-time.After(200 * time.Millisecond):
		}
		return c, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	<-withdrawn
	for range 500 {
		if !a.ops.Busy(testServer) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("an operation that was withdrawn runs")
}

// canned is a node whose stream of a rack has these messages, and breaks then.
type canned struct {
	agentv1.ControlClient
	grpc.ServerStreamingClient[agentv1.RackUpdate]
	messages []*agentv1.RackUpdate
}

func (c *canned) WatchRack(context.Context, *agentv1.WatchRackRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[agentv1.RackUpdate], error) {
	return c, nil
}

func (c *canned) Recv() (*agentv1.RackUpdate, error) {
	if len(c.messages) == 0 {
		return nil, io.EOF
	}
	m := c.messages[0]
	c.messages = c.messages[1:]
	return m, nil
}

// A node that dies between two messages of one change must not leave the agent
// with the first of them: another node, which is behind, would be taken for old
// news when it tells the rest.
func TestChangeInPartsIsTakenWhole(t *testing.T) {
	snapshot := []*agentv1.RackUpdate{{Revision: 1, Reset_: true, Rack: &agentv1.RackSpec{Subnet: "10.77.1.0/24"}}, {Revision: 1, Synced: true}}
	parts := []*agentv1.RackUpdate{
		{Revision: 5, Upserts: []*agentv1.ServerSpec{{Id: testServer, Macs: []string{testMAC}, Address: "10.77.1.11"}}, More: true},
		{Revision: 5, Assignments: []*agentv1.Assignment{{OperationId: "op-1", Kind: "clean", ServerId: testServer, Attempt: 1, Epoch: 1}}},
	}
	for name, tt := range map[string]struct {
		arrive   int
		revision uint64
	}{
		"both":      {2, 5},
		"the first": {1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := openTestRack(t)
			a := &Agent{log: slog.New(slog.DiscardHandler), racks: []*rack{r}, renamed: make(chan struct{}, 1), admission: newAdmission()}
			var err error
			a.ops, err = operation.NewManager(t.TempDir(), operation.Deps{
				Server: r.server, Lease: nobody{}, Reporter: nobody{}, Log: a.log, Ramdisks: ramdisks{boot.New(boot.Config{Log: a.log})},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer a.ops.Close()
			n := &node{addr: "cp1", control: &canned{messages: slices.Concat(snapshot, parts[:tt.arrive])}}
			if synced, err := a.follow(t.Context(), n, r); !synced || !errors.Is(err, io.EOF) {
				t.Fatalf("%t, %v", synced, err)
			}
			_, known := r.server(testServer)
			if r.revision != tt.revision || known != (tt.arrive == 2) || len(r.assigned()) != tt.arrive-1 {
				t.Errorf("revision %d, server known: %t, %d assigned", r.revision, known, len(r.assigned()))
			}
		})
	}
}
