package main

import (
	"context"
	"math/rand/v2"
	"slices"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/chaos/history"
	"bmc/metal"
)

// What a tenant may wish for besides a server: of each hundred rentals so many are
// cancelled while they are deployed, restarted, turned off and on again.
const (
	percentCancel  = 10
	percentRestart = 10
	percentPower   = 10
)

// wish is what is to happen to a rental between its create and its end. What failed
// is tried again once, whatever was wished for.
type wish struct {
	cancelAt  metal.Step // of the deployment; "": not
	todo      []string   // once it is active: restart, off, on
	operation string     // under way, as far as is known
	retried   bool
}

func newWish(rng *rand.Rand) wish {
	plan := metal.Plan(metal.KindDeploy)
	n, step := rng.IntN(100), plan[rng.IntN(len(plan))] // always both, for the seed's sake
	switch {
	case n < percentCancel:
		return wish{cancelAt: step}
	case n < percentCancel+percentRestart:
		return wish{todo: []string{history.Restart}}
	case n < percentCancel+percentRestart+percentPower:
		return wish{todo: []string{string(metal.PowerOff), string(metal.PowerOn)}}
	}
	return wish{}
}

func (w *wish) over() bool { return len(w.todo) == 0 && w.operation == "" }

// grant does the next thing that is wished for, when it is its time.
func (t *traffic) grant(ctx context.Context, c *history.Client, r *rental) error {
	w := &r.wish
	if r.release || w.over() && r.state != metal.StateFailed {
		return ctx.Err()
	}
	op, ended, err := t.operation(ctx, c, w.operation)
	if err != nil {
		return err
	}
	switch {
	case w.operation != "" && op == nil:
		return nil // nobody answers at the moment
	case !ended && w.cancelAt != "":
		return t.cancel(ctx, c, r, op)
	case !ended:
		return nil
	}
	if w.operation != "" {
		t.count(op.GetKind() + " " + op.GetState())
		w.operation = ""
		if op.GetState() != string(metal.OperationSucceeded) && r.state == metal.StateActive {
			w.todo = nil // a restart or a power command that failed; the server stays active
		}
	}
	return t.next(ctx, c, r)
}

// operation is one as it is now; nil when nobody answers.
func (t *traffic) operation(ctx context.Context, c *history.Client, id string) (op *bmcv1.Operation, ended bool, err error) {
	if id == "" {
		return nil, true, nil
	}
	call, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	op, err = c.API().Operations.GetOperation(call, &bmcv1.GetOperationRequest{Id: id})
	if err != nil {
		return nil, false, ctx.Err()
	}
	return op, metal.OperationState(op.GetState()).Ended(), nil
}

// cancel ends a deployment that has come to the wished step, or past it.
func (t *traffic) cancel(ctx context.Context, c *history.Client, r *rental, op *bmcv1.Operation) error {
	plan := metal.Plan(metal.KindDeploy)
	if slices.Index(plan, metal.Step(op.GetStep())) < slices.Index(plan, r.wish.cancelAt) {
		return nil
	}
	req := &bmcv1.CancelOperationRequest{RequestId: history.NewRequestID(), Ref: r.name}
	call, err := t.known(ctx, func() (history.Call, error) { return c.Cancel(ctx, req) })
	if err != nil {
		return err
	}
	if call.Outcome != history.OK { // it has ended meanwhile
		t.count("cancels refused: " + call.Code)
		r.wish.cancelAt = ""
		return nil
	}
	if call.Op == string(metal.KindClean) {
		r.release = true
	}
	t.count("cancels at " + op.GetStep())
	return nil
}

// next asks for what comes next: a second try of what failed, or what is still wished for.
func (t *traffic) next(ctx context.Context, c *history.Client, r *rental) error {
	w := &r.wish
	var what string
	var do func() (history.Call, error)
	switch {
	case r.state == metal.StateFailed && !w.retried:
		w.retried = true
		req := &bmcv1.RetryServerRequest{RequestId: history.NewRequestID(), Ref: r.name}
		what, do = "retries", func() (history.Call, error) { return c.Retry(ctx, req) }
	case r.state != metal.StateActive || len(w.todo) == 0:
		return nil
	case w.todo[0] == history.Restart:
		req := &bmcv1.RestartServerRequest{RequestId: history.NewRequestID(), Ref: r.name}
		what, do = "restarts", func() (history.Call, error) { return c.Restart(ctx, req) }
	default:
		req := &bmcv1.SetPowerRequest{RequestId: history.NewRequestID(), Ref: r.name, Wanted: w.todo[0]}
		what, do = "power "+w.todo[0], func() (history.Call, error) { return c.Power(ctx, req) }
	}
	call, err := t.known(ctx, do)
	if err != nil {
		return err
	}
	if call.Outcome != history.OK {
		t.count(what + " refused: " + call.Code)
		return nil
	}
	t.count(what)
	if what != "retries" {
		w.todo = w.todo[1:]
	}
	w.operation = call.Operation
	return nil
}
