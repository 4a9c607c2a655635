package operation

import (
	"context"
	"slices"
	"sync"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// gates let one enrolment of a rack at a time power a machine on and see who
// comes to boot: two servers whose controllers are swapped would else each see
// their own machine, powered on by the other's operation.
type gates struct {
	mu    sync.Mutex
	queue map[string][]*turn // by rack; the first holds the gate
}

// turn is a place in a gate's queue.
type turn struct {
	gates *gates
	rack  string
	ready chan struct{} // closed once the gate is held
}

func newGates() *gates { return &gates{queue: make(map[string][]*turn)} }

// queueUp takes the last place.
func (g *gates) queueUp(rack string) *turn {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := &turn{gates: g, rack: rack, ready: make(chan struct{})}
	g.queue[rack] = append(g.queue[rack], t)
	if len(g.queue[rack]) == 1 {
		close(t.ready)
	}
	return t
}

// leave gives the place up, and the gate to the next if it was held.
func (t *turn) leave() {
	g := t.gates
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.queue[t.rack]
	i := slices.Index(q, t)
	if i < 0 {
		return
	}
	q = slices.Delete(q, i, i+1)
	if g.queue[t.rack] = q; len(q) == 0 {
		delete(g.queue, t.rack)
	} else if i == 0 {
		close(q[0].ready)
	}
}

// unproven says whether the operation has yet to prove that the server's
// controller is its own.
func (r *run) unproven() bool {
	return metal.OperationKind(r.assigned.GetKind()) == metal.KindEnroll
}

// enter waits for the rack's gate. Until it is held, a boot of our machine is
// none of our doing, and the ramdisk is not for it. The control plane hears of
// the wait, which costs the step nothing of its time.
func (r *run) enter(ctx context.Context, step metal.Step) error {
	if !r.unproven() || r.turn != nil || r.ramdisk.Alive() {
		return nil
	}
	r.ramdisk.Admit(false)
	r.turn = r.deps.gates.queueUp(r.deps.Strange.Rack(r.server))
	for {
		select { // a gate that is free is no wait
		case <-r.turn.ready:
			return nil
		default:
		}
		err := r.report(ctx, &agentv1.ReportStepRequest{
			Step: string(step), Phase: "waiting",
			Message: "waits for its turn: the rack's machines prove one after the other who they are",
		})
		if err == nil {
			err = r.awaitTurn(ctx)
		}
		if err != nil || r.ramdisk.Alive() {
			r.leave()
			return err
		}
	}
}

// awaitTurn returns when the gate is held, when the machine of an earlier start
// has said hello, or when the control plane is to hear of the wait again.
func (r *run) awaitTurn(ctx context.Context) error {
	again := time.NewTimer(r.deps.Timing.WaitReport)
	defer again.Stop()
	for {
		changed := r.ramdisk.Changed()
		if r.ramdisk.Alive() {
			return nil
		}
		select {
		case <-r.turn.ready:
			return nil
		case <-again.C:
			return nil
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leave lets the next one in, if we hold the gate or wait for it.
func (r *run) leave() {
	if r.turn != nil {
		r.turn.leave()
		r.turn = nil
	}
}
