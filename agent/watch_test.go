package agent

import (
	"context"
	"log/slog"
	"testing"
	"time"

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
	a := &Agent{log: slog.New(slog.DiscardHandler), racks: []*rack{r}, renamed: make(chan struct{}, 1)}
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
