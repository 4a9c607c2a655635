package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
	"bmc/metal"
)

// follow waits for operations, showing how they get on, and returns the
// failure of the first that failed.
func (a *app) follow(ctx context.Context, ops []*bmcv1.Operation) ([]*bmcv1.Operation, error) {
	c, err := a.api()
	if err != nil {
		return ops, err
	}
	wctx := ctx
	if a.timeout > 0 {
		var cancel context.CancelFunc
		wctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	b := newBoard(a, len(ops))
	wctx, stop := context.WithCancel(wctx)
	defer stop()
	if b.live {
		ticked := make(chan struct{})
		defer func() { stop(); <-ticked }()
		go func() { defer close(ticked); b.tick(wctx) }()
	}
	ended := make([]*bmcv1.Operation, len(ops))
	errs := make([]error, len(ops))
	var wg sync.WaitGroup
	for i, op := range ops {
		wg.Go(func() { ended[i], errs[i] = followOne(wctx, c, op, b, i) })
	}
	wg.Wait()
	b.clear()
	for i, err := range errs {
		if err != nil {
			return ended, a.unfollowed(ctx, wctx, ops[i], err)
		}
	}
	for _, op := range ended {
		if metal.OperationState(op.GetState()) != metal.OperationSucceeded {
			return ended, operationFailed{op}
		}
	}
	return ended, nil
}

// unfollowed says why an operation is no longer followed; it goes on.
func (a *app) unfollowed(ctx, wctx context.Context, op *bmcv1.Operation, err error) error {
	resume := "bmc operation watch " + op.GetId()
	switch {
	case ctx.Err() != nil:
		a.note("\ndetached; it goes on. To follow it again: %s", resume)
		return ctx.Err()
	case timeIsUp(wctx):
		return errWaitTimeout{what: op.GetKind() + " of " + op.GetTarget(), resume: resume}
	}
	return err
}

// timeIsUp looks at the clock: the node may give up at the deadline before ctx
// has noticed it.
func timeIsUp(ctx context.Context) bool {
	d, ok := ctx.Deadline()
	return ok && !time.Now().Before(d)
}

func followOne(ctx context.Context, c *client.Client, op *bmcv1.Operation, b *board, at int) (*bmcv1.Operation, error) {
	b.update(at, op)
	last, err := c.WatchOperation(ctx, op.GetId(), func(op *bmcv1.Operation) error {
		b.update(at, op)
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

// board shows how operations get on: on a terminal a line that moves for the
// first that is under way, and a line a finished step; else a line an edge.
type board struct {
	w     io.Writer
	live  bool
	quiet bool

	mu    sync.Mutex
	ops   []*bmcv1.Operation // nil: nothing heard yet
	seen  map[string]bool    // the edges that have had their line
	drawn bool
	frame int
	rates []rate
}

// rate is from where the bytes of a step are counted.
type rate struct {
	step string
	from time.Time
	base uint64
}

func newBoard(a *app, n int) *board {
	return &board{w: a.err, live: a.terminal(a.err) && !a.quiet, quiet: a.quiet,
		ops: make([]*bmcv1.Operation, n), rates: make([]rate, n), seen: map[string]bool{}}
}

func (p *board) update(at int, op *bmcv1.Operation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ops[at] = op
	if p.quiet {
		return
	}
	for _, s := range op.GetSteps() {
		key := fmt.Sprint(op.GetId(), op.GetAttempt(), s.GetName(), s.GetState())
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
func (p *board) line(op *bmcv1.Operation, s *bmcv1.Step) {
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

func (p *board) tick(ctx context.Context) {
	t := time.NewTicker(120 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			p.mu.Lock()
			p.frame++
			p.draw()
			p.mu.Unlock()
		}
	}
}

// draw shows the first operation under way; the lock is held.
func (p *board) draw() {
	under, first := 0, -1
	for i, op := range p.ops {
		if op != nil && !metal.OperationState(op.GetState()).Ended() {
			if under++; first < 0 {
				first = i
			}
		}
	}
	p.erase()
	if first < 0 {
		return
	}
	op, text, more := p.ops[first], "waits for its rack's agent", ""
	for _, s := range op.GetSteps() {
		if s.GetState() == string(metal.StepRunning) {
			text = phase(s.GetName()) + p.amount(&p.rates[first], op, s)
		}
	}
	if under > 1 {
		more = fmt.Sprintf(" (and %d more)", under-1)
	}
	spin := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	fmt.Fprintf(p.w, "%c %s: %s%s", spin[p.frame%len(spin)], op.GetTarget(), text, more)
	p.drawn = true
}

// amount says percent, rate and what is left, as far as known.
func (p *board) amount(r *rate, op *bmcv1.Operation, s *bmcv1.Step) string {
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
	if r.step != s.GetName()+g.GetMessage() || g.GetDone() < r.base {
		*r = rate{step: s.GetName() + g.GetMessage(), from: time.Now(), base: g.GetDone()}
	}
	out := fmt.Sprintf(" %d %%", g.GetDone()*100/g.GetTotal())
	if g.GetMessage() != "" {
		out = ", " + g.GetMessage() + out
	}
	if d := time.Since(r.from).Seconds(); d > 1 && g.GetDone() > r.base {
		perSecond := float64(g.GetDone()-r.base) / d
		left := float64(g.GetTotal()-g.GetDone()) / perSecond
		out += fmt.Sprintf(", %s/s, %.0f s left", bytesText(uint64(perSecond)), left)
	}
	return out
}

func (p *board) erase() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

func (p *board) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
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
