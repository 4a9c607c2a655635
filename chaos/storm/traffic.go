package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/chaos/check"
	"bmc/chaos/history"
	"bmc/chaos/run"
	"bmc/internal/pause"
	"bmc/metal"
)

const (
	askAgain  = time.Second     // after a call whose outcome is unknown, or that was refused
	knowLimit = 2 * time.Minute // until an outcome is known
	lookEvery = time.Second / 2 // a client at its rentals
	enrolFor  = 15 * time.Minute
	// A machine that emulates hundreds of controllers does not let all of them
	// answer in time: who failed tries again so often.
	enrolAgain = 3
)

// enrol applies the inventory without a word per machine.
func enrol(ctx context.Context, w *run.World) error {
	ctx, cancel := context.WithTimeout(ctx, enrolFor)
	defer cancel()
	if _, err := w.Harness.BMC(ctx, "inventory", "apply", "-f", w.Harness.Env("BMC_INVENTORY")); err != nil {
		return err
	}
	for round := 0; ; round++ {
		if err := w.Settle(ctx); err != nil {
			return err
		}
		failed, err := w.API.Servers.ListServers(ctx, &bmcv1.ListServersRequest{PageSize: 5000, State: string(metal.StateFailed)})
		if err != nil || len(failed.GetServers()) == 0 {
			return err
		}
		first := failed.GetServers()[0]
		fmt.Printf("   %d enrolments failed, for one: %s\n", len(failed.GetServers()), first.GetFailure().GetMessage())
		if round == enrolAgain {
			return fmt.Errorf("%d servers are not available", len(failed.GetServers()))
		}
		for _, s := range failed.GetServers() {
			if _, err := w.API.Servers.RetryServer(ctx, &bmcv1.RetryServerRequest{Ref: s.GetName()}); err != nil {
				return err
			}
		}
	}
}

// traffic is what clients do, each with rentals of its own.
type traffic struct {
	world *run.World
	opts  *options
	image string

	mu     sync.Mutex
	counts map[string]int
}

func newTraffic(w *run.World, o *options) *traffic {
	base := o.image
	for i := len(base) - 1; i >= 0; i-- {
		if base[i] == '/' {
			base = base[i+1:]
			break
		}
	}
	return &traffic{world: w, opts: o, image: base[:len(base)-len(".img")], counts: map[string]int{}}
}

func (t *traffic) count(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[what]++
}

// under runs all clients, and the faults beside them, until the clients are done.
func (t *traffic) under(ctx context.Context, f *faults) error {
	ctx, cancel := context.WithTimeout(ctx, t.opts.duration+knowLimit+t.opts.settle)
	defer cancel()
	end := time.Now().Add(t.opts.duration)
	errs := make([]error, t.opts.clients)
	var clients, storm sync.WaitGroup
	stop, stopFaults := context.WithDeadline(ctx, end)
	defer stopFaults()
	if !t.opts.calm {
		for _, do := range []func(context.Context){f.nodes, f.agents} {
			storm.Go(func() { do(stop) })
		}
	}
	for i := range t.opts.clients {
		clients.Go(func() { errs[i] = t.client(ctx, i, end) })
	}
	clients.Wait()
	stopFaults()
	storm.Wait()
	return errors.Join(append(errs, f.err())...)
}

// rental of one client, while it has one.
type rental struct {
	name    string
	state   metal.State // as last seen
	release bool        // its end was accepted, or it is gone
	wish    wish        // what is to happen to it before its end
}

// over says that nothing is waited for any more.
func (r *rental) over() bool {
	return r.release || r.state == metal.StateFailed && r.wish.retried || r.state == metal.StateActive && r.wish.over()
}

// client rents its share of the machines at once, looks at them until they are
// active or failed, gives them back, and begins again until the time is over.
func (t *traffic) client(ctx context.Context, id int, end time.Time) error {
	c, err := t.world.Client(id)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // its calls are over
	rng := rand.New(rand.NewPCG(t.opts.seed, uint64(id)))
	share := max(1, t.opts.light/t.opts.clients)
	for round := 0; time.Now().Before(end); round++ {
		var mine []*rental
		for n := range share {
			r := &rental{name: fmt.Sprintf("c%d-%d-%d", id, round, n), wish: newWish(rng)}
			ok, err := t.create(ctx, c, r)
			if err != nil {
				return err
			}
			if ok {
				mine = append(mine, r)
			}
			if rng.IntN(8) == 0 {
				if err := t.look(ctx, c, rng, mine); err != nil {
					return err
				}
			}
		}
		for t.busy(mine) && time.Now().Before(end) {
			if err := t.look(ctx, c, rng, mine); err != nil {
				return err
			}
			for _, r := range mine {
				if err := t.grant(ctx, c, r); err != nil {
					return err
				}
			}
			if err := pause.For(ctx, lookEvery); err != nil {
				return err
			}
		}
		for _, r := range mine {
			if !r.release {
				if err := t.destroy(ctx, c, r); err != nil {
					return err
				}
			}
		}
		if len(mine) == 0 {
			if err := pause.For(ctx, askAgain); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *traffic) busy(mine []*rental) bool {
	for _, r := range mine {
		if !r.over() {
			return true
		}
	}
	return false
}

// known makes a call until its outcome is known, under one request ID.
func (t *traffic) known(ctx context.Context, do func() (history.Call, error)) (history.Call, error) {
	limit := time.Now().Add(knowLimit)
	for {
		call, err := do()
		if call.Outcome != history.Unknown || ctx.Err() != nil {
			return call, ctx.Err()
		}
		t.count("unknown outcomes, asked again")
		if time.Now().After(limit) {
			return call, fmt.Errorf("no outcome of %s %s within %s: %w", call.Kind, call.Name, knowLimit, err)
		}
		if err := pause.For(ctx, askAgain); err != nil {
			return call, err
		}
	}
}

func (t *traffic) create(ctx context.Context, c *history.Client, r *rental) (bool, error) {
	req := &bmcv1.CreateServerRequest{RequestId: history.NewRequestID(), Name: r.name, Image: t.image, SshKeys: []string{t.world.Key}}
	call, err := t.known(ctx, func() (history.Call, error) { return c.Create(ctx, req) })
	if err != nil {
		return false, err
	}
	if call.Outcome != history.OK {
		t.count("creates refused: " + call.Code)
		return false, nil
	}
	r.wish.operation = call.Operation
	t.count("creates")
	return true, nil
}

func (t *traffic) destroy(ctx context.Context, c *history.Client, r *rental) error {
	for limit := time.Now().Add(t.opts.settle); ; {
		req := &bmcv1.DestroyServerRequest{RequestId: history.NewRequestID(), Ref: r.name}
		call, err := t.known(ctx, func() (history.Call, error) { return c.Destroy(ctx, req) })
		if err != nil {
			return err
		}
		if call.Outcome == history.OK || call.Code == string(metal.CodeNotFound) {
			t.count("destroys")
			r.release = true
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("destroy %s: %s", r.name, call.Code)
		}
		// Its deployment is still under way.
		if err := pause.For(ctx, askAgain); err != nil {
			return err
		}
	}
}

// look reads one rental, or now and then all servers.
func (t *traffic) look(ctx context.Context, c *history.Client, rng *rand.Rand, mine []*rental) error {
	if rng.IntN(4) == 0 || len(mine) == 0 {
		call, err := c.List(ctx)
		if err != nil {
			return ctx.Err()
		}
		states := map[string]string{}
		for _, s := range call.Servers {
			states[s.Rental] = s.State
		}
		for _, r := range mine {
			r.seen(states[r.name])
		}
		return nil
	}
	r := mine[rng.IntN(len(mine))]
	if call, err := c.Get(ctx, r.name); err == nil && len(call.Servers) == 1 {
		r.seen(call.Servers[0].State)
	}
	return ctx.Err()
}

func (r *rental) seen(state string) {
	r.state = metal.State(state)
}

// settle waits for the end of all operations, tries again what failed, gives back what is still rented
// and waits again.
func (t *traffic) settle(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := t.world.Settle(ctx); err != nil {
		return err
	}
	if err := t.retryFailed(ctx); err != nil {
		return err
	}
	c, err := t.world.Client(t.opts.clients)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // its calls are over
	all, err := c.List(ctx)
	if err != nil {
		return err
	}
	for _, s := range all.Servers {
		if s.Rental == "" {
			continue
		}
		if err := t.destroy(ctx, c, &rental{name: s.Rental}); err != nil {
			return err
		}
	}
	if err := t.world.Settle(ctx); err != nil {
		return err
	}
	if err := t.retryFailed(ctx); err != nil {
		return err
	}
	return t.cool(ctx)
}

// retryFailed tries again, once, as an operator does, what failed, and waits for the end.
func (t *traffic) retryFailed(ctx context.Context) error {
	failed, err := t.world.API.Servers.ListServers(ctx, &bmcv1.ListServersRequest{PageSize: 5000, State: string(metal.StateFailed)})
	if err != nil {
		return err
	}
	for _, s := range failed.GetServers() {
		f := s.GetFailure()
		fmt.Printf("   %s failed and is tried again: %s at %s: %s\n", s.GetName(), f.GetReason(), f.GetStep(), f.GetMessage())
		if _, err := t.world.API.Servers.RetryServer(ctx, &bmcv1.RetryServerRequest{Ref: s.GetId()}); err != nil {
			return fmt.Errorf("retry %s: %w", s.GetName(), err)
		}
		t.count("retries by the operator")
	}
	return t.world.Settle(ctx)
}

// cool ends the last rack's waiting, so that the system begins nothing by itself
// while the evidence is collected.
func (t *traffic) cool(ctx context.Context) error {
	rack := fmt.Sprintf("r%d", t.opts.racks)
	r, err := t.world.API.Inventory.SetRackWarm(ctx, &bmcv1.SetRackWarmRequest{Ref: rack, Warm: "none"})
	if err != nil {
		return err
	}
	fmt.Printf("   %d of %d available servers of %s waited in the ramdisk, drawing %d W (%d unknown)\n", r.GetWaiting(), r.GetAvailable(), rack, r.GetWatts(), r.GetUnmetered())
	return run.Until(ctx, "the end of waiting", func(ctx context.Context) (bool, error) {
		r, err := t.world.API.Inventory.GetRack(ctx, &bmcv1.GetRackRequest{Ref: rack})
		if err != nil || r.GetWaiting() > 0 {
			return false, err
		}
		s, err := t.world.API.Cluster.Status(ctx, &bmcv1.StatusRequest{})
		return err == nil && s.GetRunningOperations() == 0, err
	})
}

func (t *traffic) report(e *check.Evidence) {
	fmt.Printf("\n%d calls of clients", len(e.Calls))
	t.mu.Lock()
	defer t.mu.Unlock()
	for what, n := range t.counts {
		fmt.Printf("; %s: %d", what, n)
	}
	fmt.Println()
	kinds, states := map[string]int{}, map[metal.State]int{}
	reasons := map[metal.Code]int{}
	for _, o := range e.Operations {
		kinds[string(o.Kind)+" "+string(o.State)]++
		if o.Failure != nil {
			reasons[o.Failure.Reason]++
		}
	}
	for _, s := range e.Servers {
		states[s.State]++
	}
	adopted := 0
	for _, o := range e.Operations {
		if o.Kind == metal.KindDeploy && o.Adopts() && o.State == metal.OperationSucceeded && len(o.Steps[0].Recovery) == 0 {
			adopted++
		}
	}
	fmt.Printf("deployments that went on with a ramdisk that waited: %d\n", adopted)
	fmt.Printf("operations (of the newest 20 a server): %v\nfailures: %v\nservers at the end: %v\n", kinds, reasons, states)
	grants := 0
	for _, a := range e.Audit {
		if a.Command == "grant_lease" && a.Outcome == "" {
			grants++
		}
	}
	fmt.Printf("leases granted: %d; controllers' commands: %d; machines' events: %d; DHCP answers of agents: %d; strangers asked %d times\n",
		grants, len(e.Commands), len(e.Machines), len(e.DHCP), e.Asked())
}
