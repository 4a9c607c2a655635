package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

// follow waits for operations, showing how they get on, and returns the
// failure of the first that failed.
func (a *app) follow(ctx context.Context, ops []*bmcv1.Operation) ([]*bmcv1.Operation, error) {
	wctx := ctx
	if a.timeout > 0 {
		var cancel context.CancelFunc
		wctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	ended := make([]*bmcv1.Operation, len(ops))
	var first error
	for i, op := range ops {
		end, err := a.followOne(wctx, op)
		ended[i] = end
		if err != nil {
			resume := fmt.Sprintf("bmc operation watch %s", op.GetId())
			switch {
			case ctx.Err() != nil:
				a.note("\ndetached; it goes on. To follow it again: %s", resume)
				return ended, ctx.Err()
			case wctx.Err() != nil:
				return ended, errWaitTimeout{what: op.GetKind() + " of " + op.GetTarget(), resume: resume}
			}
			return ended, err
		}
		if metal.OperationState(end.GetState()) != metal.OperationSucceeded && first == nil {
			first = operationFailed{end}
		}
	}
	return ended, first
}

func (a *app) followOne(ctx context.Context, op *bmcv1.Operation) (*bmcv1.Operation, error) {
	c, err := a.api()
	if err != nil {
		return op, err
	}
	p := &progress{w: a.err, live: a.terminal(a.err) && !a.quiet, quiet: a.quiet, color: a.colored(a.err), seen: map[string]bool{}}
	defer p.clear()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.update(op)
	if p.live {
		ticked := make(chan struct{})
		defer func() { cancel(); <-ticked }()
		go func() { defer close(ticked); p.tick(ctx) }()
	}
	last, err := c.WatchOperation(ctx, op.GetId(), func(op *bmcv1.Operation) error {
		p.update(op)
		return nil
	})
	if last == nil {
		last = op
	}
	return last, err
}

// phases are a step's words for people.
var phases = map[metal.Step]string{
	metal.StepVerifyOOB:   "ask the management controller",
	metal.StepPowerOff:    "power off",
	metal.StepBootRamdisk: "boot the ramdisk",
	metal.StepInspect:     "inspect the hardware",
	metal.StepWipe:        "wipe and read back",
	metal.StepWriteImage:  "write the image and read back",
	metal.StepConfigure:   "configure",
	metal.StepBootDisk:    "boot from disk",
	metal.StepReady:       "wait for the system",
	metal.StepSetPower:    "switch the power",
	metal.StepStop:        "stop",
	metal.StepStart:       "start",
	metal.StepPowerOffEnd: "leave it off",
}

func phase(step string) string {
	if p, ok := phases[metal.Step(step)]; ok {
		return p
	}
	return step
}

// progress draws one operation: a line that moves on a terminal, else one line
// a phase.
type progress struct {
	w     io.Writer
	live  bool
	quiet bool
	color bool

	mu    sync.Mutex
	op    *bmcv1.Operation
	seen  map[string]bool
	drawn bool
	frame int

	rateFrom time.Time
	rateBase uint64
	rateStep string
}

func (p *progress) lock() func() {
	p.mu.Lock()
	return p.mu.Unlock
}

func (p *progress) update(op *bmcv1.Operation) {
	defer p.lock()()
	p.op = op
	if p.quiet {
		return
	}
	for _, s := range op.GetSteps() {
		key := fmt.Sprint(op.GetAttempt(), s.GetName(), s.GetState())
		if p.seen[key] || s.GetState() == string(metal.StepPending) {
			continue
		}
		p.seen[key] = true
		p.line(op, s)
	}
	if p.live {
		p.draw()
	}
}

// line prints a step's end (live) or each of its edges (a log).
func (p *progress) line(op *bmcv1.Operation, s *bmcv1.Step) {
	took := ""
	if s.GetStarted() != nil && s.GetEnded() != nil {
		took = fmt.Sprintf(" (%.1f s)", s.GetEnded().AsTime().Sub(s.GetStarted().AsTime()).Seconds())
	}
	word := map[string]string{"running": "started", "done": "done", "failed": "failed"}[s.GetState()]
	if p.live {
		if word == "started" {
			return
		}
		p.erase()
		mark := "✓"
		if word == "failed" {
			mark = "✗"
		}
		fmt.Fprintf(p.w, "%s %s: %s%s\n", mark, op.GetTarget(), phase(s.GetName()), took)
		return
	}
	fmt.Fprintf(p.w, "%s %s: %s: %s%s\n", time.Now().UTC().Format(time.RFC3339), op.GetTarget(), phase(s.GetName()), word, took)
}

func (p *progress) tick(ctx context.Context) {
	t := time.NewTicker(120 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			unlock := p.lock()
			p.frame++
			p.draw()
			unlock()
		}
	}
}

func (p *progress) draw() {
	op := p.op
	if op == nil || metal.OperationState(op.GetState()).Ended() {
		return
	}
	text := "waits for its rack's agent"
	for _, s := range op.GetSteps() {
		if s.GetState() == string(metal.StepRunning) {
			text = phase(s.GetName()) + p.amount(op, s)
		}
	}
	p.erase()
	spin := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	fmt.Fprintf(p.w, "%c %s: %s", spin[p.frame%len(spin)], op.GetTarget(), text)
	p.drawn = true
}

// amount says percent, rate and what is left, as far as known.
func (p *progress) amount(op *bmcv1.Operation, s *bmcv1.Step) string {
	elapsed := ""
	if s.GetStarted() != nil {
		elapsed = fmt.Sprintf(" %.0f s", max(0, time.Since(s.GetStarted().AsTime()).Seconds()))
	}
	g := op.GetProgress()
	if g.GetTotal() == 0 {
		if g.GetMessage() != "" {
			return ", " + g.GetMessage() + elapsed
		}
		return elapsed
	}
	if p.rateStep != s.GetName()+g.GetMessage() || g.GetDone() < p.rateBase {
		p.rateStep, p.rateFrom, p.rateBase = s.GetName()+g.GetMessage(), time.Now(), g.GetDone()
	}
	out := fmt.Sprintf(" %d %%", g.GetDone()*100/g.GetTotal())
	if g.GetMessage() != "" {
		out = ", " + g.GetMessage() + out
	}
	if d := time.Since(p.rateFrom).Seconds(); d > 1 && g.GetDone() > p.rateBase {
		rate := float64(g.GetDone()-p.rateBase) / d
		left := float64(g.GetTotal()-g.GetDone()) / rate
		out += fmt.Sprintf(", %s/s, %.0f s left", bytesText(uint64(rate)), left)
	}
	return out
}

func (p *progress) erase() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

func (p *progress) clear() { defer p.lock()(); p.erase() }

// waitServer watches a server until cond holds.
func (a *app) waitServer(ctx context.Context, ref string, what string, cond func(*bmcv1.Server) (bool, error)) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	s, err := c.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: ref})
	if err != nil {
		return err
	}
	wctx := ctx
	if a.timeout > 0 {
		var cancel context.CancelFunc
		wctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	done := errors.New("done")
	err = c.Watch(wctx, &bmcv1.WatchRequest{Kinds: []string{"server"}, Server: s.GetId()}, func(m *bmcv1.WatchResponse) error {
		if m.GetServer() == nil || m.GetServer().GetId() != s.GetId() {
			return nil
		}
		ok, err := cond(m.GetServer())
		if err != nil {
			return err
		}
		if ok {
			return done
		}
		return nil
	})
	switch {
	case errors.Is(err, done):
		return nil
	case wctx.Err() != nil && ctx.Err() == nil:
		return errWaitTimeout{what: fmt.Sprintf("%s to be %s", ref, what), resume: "bmc explain " + ref}
	}
	return err
}

// bytesText is a size in the unit that people would use, decimal.
func bytesText(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + " " + units[i]
}
