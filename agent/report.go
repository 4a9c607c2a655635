package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"bmc/agent/operation"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/pause"
	"bmc/metal"
)

const (
	reportLimit    = 10 * time.Second // of one node's answer
	reportPauseMin = 200 * time.Millisecond
	reportPauseMax = 5 * time.Second
	doubtFor       = time.Minute // that a replica is merely behind
	progressEvery  = time.Second
	progressAgain  = 5 * time.Second  // unchanged: a new leader has forgotten it
	progressForget = 15 * time.Second // without a word from the operation
	progressLimit  = 2 * time.Second
)

// reporter sends steps' edges until they are recorded.
type reporter struct {
	nodes *nodes
	log   *slog.Logger
}

// Report implements operation.Reporter: a leader that changes costs time and
// nothing else, since the same report may arrive twice.
func (r *reporter) Report(ctx context.Context, rep *agentv1.ReportStepRequest) error {
	began := time.Now()
	for wait := reportPauseMin; ; wait = min(2*wait, reportPauseMax) {
		err := r.nodes.call(ctx, reportLimit, func(ctx context.Context, c agentv1.ControlClient) error {
			_, err := c.ReportStep(ctx, rep)
			return err
		})
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var refusal *metal.Error
		if errors.As(err, &refusal) && decided(refusal.Code) && (!replicaBehind(refusal.Code) || time.Since(began) > doubtFor) {
			return refusal
		}
		r.log.Debug("report not taken yet", "operation", rep.GetOperationId(), "step", rep.GetStep(), "err", err)
		if pause.For(ctx, wait*3/4+rand.N(wait/2)) != nil {
			return context.Cause(ctx)
		}
	}
}

// progress sends what operations say of themselves, the newest of each once a
// second. It never enters the log, so that a lost one is no harm.
type progress struct {
	mu     sync.Mutex
	latest map[string]*latest // by operation
}

type latest struct {
	operation.Progress
	fresh bool
	at    time.Time // the operation's last word
	sent  time.Time
}

func newProgress() *progress { return &progress{latest: make(map[string]*latest)} }

// note takes an operation's word; it does not block.
func (p *progress) note(n operation.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.latest[n.Operation]
	if l == nil {
		l = &latest{fresh: true}
		p.latest[n.Operation] = l
	}
	l.fresh = l.fresh || l.Progress != n
	l.Progress, l.at = n, time.Now()
}

// due returns what is to be sent now.
func (p *progress) due(now time.Time) []operation.Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []operation.Progress
	for id, l := range p.latest {
		switch {
		case now.Sub(l.at) > progressForget:
			delete(p.latest, id)
		case l.fresh || now.Sub(l.sent) >= progressAgain:
			l.fresh, l.sent = false, now
			out = append(out, l.Progress)
		}
	}
	return out
}

func (p *progress) run(ctx context.Context, n *nodes) {
	for pause.For(ctx, progressEvery) == nil {
		for _, w := range p.due(time.Now()) {
			_ = n.call(ctx, progressLimit, func(ctx context.Context, c agentv1.ControlClient) error { // the next one comes soon
				_, err := c.ReportProgress(ctx, &agentv1.ReportProgressRequest{
					OperationId: w.Operation, Attempt: w.Attempt, Step: string(w.Step), Done: w.Done, Total: w.Total, Message: w.Message,
				})
				return err
			})
		}
	}
}
