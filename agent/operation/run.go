package operation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bmc/agent/boot"
	"bmc/agent/oob"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/mutant"
	"bmc/metal"
)

// run is one attempt of an operation.
type run struct {
	deps      Deps
	log       *slog.Logger
	path      string
	operation string
	attempt   uint32
	server    string
	assigned  *agentv1.Assignment

	journal  *Journal
	ramdisk  Ramdisk
	past     past
	turn     *turn  // at the rack's gate; nil: none
	toldBoot string // the boot of the ramdisk that the control plane knows
	finished chan struct{}

	mu      sync.Mutex
	epoch   uint64
	cancel  context.CancelCauseFunc // nil until main runs
	stopped error                   // set: nothing new may start
	ended   bool                    // the control plane knows the end
	step    metal.Step              // that is under way, or was last
}

// errLeaseLost says that the rack's lease ended in the middle of an act. The
// step observes and goes on once it is held again.
var errLeaseLost = errors.New("the rack's lease was lost")

// errUntold is a report that was refused, or could not be made: no step's
// failure, but the end of this run.
type errUntold struct{ error }

func (e *errUntold) Unwrap() error { return e.error }

// errJournal ends a run without a word of failure: another one reads what has
// been written and goes on.
var errJournal = errors.New("the journal cannot be written")

func newRun(deps Deps, path string, a *agentv1.Assignment) *run {
	r := &run{
		deps: deps, path: path, operation: a.GetOperationId(), attempt: a.GetAttempt(), server: a.GetServerId(),
		assigned: proto.CloneOf(a), epoch: a.GetEpoch(), finished: make(chan struct{}),
	}
	r.log = r.logger()
	return r
}

// renew takes a newer epoch. False: the run needs a successor, because it is
// stopping, or because another agent has reported since, or a backup was restored.
func (r *run) renew(a *agentv1.Assignment) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.GetReportedEpoch() > r.epoch || generation(a.GetEpoch()) > generation(r.epoch) {
		return false
	}
	r.epoch = max(r.epoch, a.GetEpoch())
	return r.stopped == nil
}

func (r *run) currentEpoch() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch
}

func (r *run) stop(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped == nil {
		r.stopped = why
	}
	if r.cancel != nil {
		r.cancel(why)
	}
}

func (r *run) isFinished() bool {
	select {
	case <-r.finished:
		return true
	default:
		return false
	}
}

func (r *run) isEnded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

func (r *run) isWithdrawn() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Is(r.stopped, errWithdrawn)
}

func (r *run) main(parent context.Context) {
	defer close(r.finished)
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	r.mu.Lock()
	r.cancel = cancel
	stopped := r.stopped
	r.mu.Unlock()
	if stopped != nil {
		return
	}
	err := r.execute(ctx)
	r.mu.Lock()
	if r.stopped == nil {
		r.stopped = errors.New("run is over")
	}
	r.mu.Unlock()
	switch {
	case err == nil:
		r.log.Info("operation ended")
	case ctx.Err() != nil:
		r.log.Info("operation stopped", "err", context.Cause(ctx))
	default:
		r.log.Warn("operation stopped", "err", err)
		if errors.Is(err, errJournal) {
			r.tell(cannotWrite(err))
		}
	}
}

// execute runs what is left of the plan. A nil error: the operation has ended,
// well or not, and the control plane knows.
func (r *run) execute(ctx context.Context) error {
	journal, records, err := r.openJournal()
	if err != nil {
		return fmt.Errorf("open journal: %w", errors.Join(errJournal, err))
	}
	defer func() { _ = journal.Close() }() // every record was synced
	r.journal, r.past = journal, replay(records)
	r.past.sequence = max(r.past.sequence, r.assigned.GetSequence())
	if err := r.takeOver(); err != nil {
		return err
	}
	if r.past.ended {
		r.setEnded()
		return nil
	}
	if err := r.openRamdisk(); err != nil {
		return err
	}
	attending := r.attend(ctx)
	defer attending()
	defer func() {
		if r.isEnded() {
			r.ramdisk.Close()
		} else {
			r.ramdisk.Detach()
		}
	}()
	r.log.Info("operation runs", "epoch", r.currentEpoch(), "kind", r.assigned.GetKind(), "resumed", len(records) > 0)
	for _, step := range metal.Plan(metal.OperationKind(r.assigned.GetKind())) {
		if slices.Contains(r.assigned.GetDoneSteps(), string(step)) {
			continue
		}
		r.at(step)
		failed, err := r.runStep(ctx, step)
		if err != nil {
			return err
		}
		if failed {
			break
		}
	}
	if err := r.append(Record{Kind: RecordEnded}); err != nil {
		return err
	}
	r.setEnded()
	return nil
}

// openJournal writes a new one's header, which a full disk refuses and a hung one
// does not finish.
func (r *run) openJournal() (*Journal, []Record, error) {
	end := r.deps.health.begin(r)
	if r.deps.opening != nil {
		r.deps.opening()
	}
	journal, records, err := OpenJournal(r.path)
	end(ofDisk(err))
	return journal, records, err
}

func (r *run) setEnded() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
}

func (r *run) openRamdisk() error {
	spec, ok := r.deps.Server(r.server)
	if !ok {
		return fmt.Errorf("server %s is not known", r.server)
	}
	b := boot.Binding{
		Operation: r.operation, Attempt: r.attempt, Server: r.server, Name: spec.GetName(),
		Serial: spec.GetSerial(), UUID: spec.GetUuid(), ConsoleTTY: spec.GetConsoleTty(), Unproven: r.unproven(),
		BootID: r.assigned.GetBootId(),
	}
	if len(spec.GetMacs()) > 0 {
		b.MAC = spec.GetMacs()[0]
	}
	r.ramdisk = r.deps.Ramdisks.Open(b, r.past.boots, func(e boot.Event) error {
		return r.append(Record{Kind: RecordBoot, Boot: &e})
	})
	r.toldBoot = r.assigned.GetBootId()
	return nil
}

// runStep runs one step unless the journal has its outcome, and reports it.
func (r *run) runStep(ctx context.Context, step metal.Step) (failed bool, err error) {
	if rep := r.past.done[step]; rep != nil {
		err := r.report(ctx, rep)
		if metal.CodeOf(err) == metal.CodeConflict {
			return false, nil // known, but the answer was lost in a restart
		}
		return false, err
	}
	if rep := r.past.failed; rep != nil {
		return true, r.report(ctx, rep)
	}
	rep := &agentv1.ReportStepRequest{Step: string(step), Phase: "done"}
	err = r.mayBegin(step)
	if err == nil && step == metal.StepBootRamdisk {
		defer r.leave()
		if err := r.enter(ctx, step); err != nil {
			return false, err
		}
	}
	if err == nil {
		if mutant.On("act-before-word") {
			_ = r.do(ctx, step, rep) // what comes of it is found again below
		}
		if err := r.report(ctx, &agentv1.ReportStepRequest{Step: string(step), Phase: "started", Recovery: r.rungs(step)}); err != nil {
			return false, err
		}
		if err := r.append(Record{Kind: RecordBegun, Step: step}); err != nil {
			return false, err
		}
		err = errLeaseLost
	}
	for errors.Is(err, errLeaseLost) && ctx.Err() == nil {
		err = r.do(ctx, step, rep)
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if untold := new(errUntold); errors.Is(err, errJournal) || errors.As(err, &untold) {
		return false, err
	}
	rep.Recovery = r.rungs(step)
	kind := RecordDone
	if err != nil {
		kind = RecordFailed
		rep.Phase, rep.Reason, rep.Message = "failed", string(metal.CodeOf(err)), sentence(err)
		if f, ok := r.ramdisk.(interface{ Found() *agentv1.Hardware }); ok && metal.CodeOf(err) == metal.CodeIdentityChanged {
			rep.Found = f.Found()
		}
		r.log.Warn("step failed", "step", step, "err", err)
	}
	payload, merr := proto.Marshal(rep)
	if merr != nil {
		return false, merr
	}
	if err := r.append(Record{Kind: kind, Step: step, Report: payload}); err != nil {
		return false, err
	}
	return kind == RecordFailed, r.report(ctx, rep)
}

// mayBegin refuses a server's first wipe without the operator's word. The
// control plane would refuse even its start.
func (r *run) mayBegin(step metal.Step) error {
	if step == metal.StepWipe && metal.OperationKind(r.assigned.GetKind()) == metal.KindEnroll && !r.assigned.GetEnroll().GetWipe() {
		return metal.Errorf(metal.CodeWipeRefused, "the first wipe of this server needs the operator's word; nothing was written to its disks")
	}
	return nil
}

// sentence is what people may read of an error: a *metal.Error's message
// without its cause.
func sentence(err error) string {
	var e *metal.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "internal error on the rack's agent"
}

// at notes which step is under way.
func (r *run) at(step metal.Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.step = step
}

// append journals a record and takes note of it. One that names no step gets
// the one under way.
func (r *run) append(rec Record) error {
	rec.At = r.deps.Now().UTC()
	if rec.Step == "" {
		r.mu.Lock()
		rec.Step = r.step
		r.mu.Unlock()
	}
	wrote := r.deps.health.begin(r)
	err := r.crashPoint(rec, false)
	if err == nil {
		err = r.journal.Append(rec)
	}
	wrote(err)
	if err == nil {
		err = r.crashPoint(rec, true)
	}
	if err != nil {
		return &metal.Error{Code: metal.CodeInternal, Message: "the agent cannot write its journal", Err: errors.Join(errJournal, err)}
	}
	if rec.Kind != RecordBoot { // package boot keeps those, from its own goroutines
		r.past.add(rec)
	}
	return nil
}

func (r *run) crashPoint(rec Record, written bool) error {
	when := "before"
	if written {
		when = "after"
	}
	if err := hitJournal(metal.OperationKind(r.assigned.GetKind()), rec, when); err != nil {
		return err
	}
	if r.deps.crash == nil {
		return nil
	}
	return r.deps.crash(rec, written)
}

// report sends an edge under the newest epoch until it is recorded. A refusal
// ends the run: the operation is another's, or over.
func (r *run) report(ctx context.Context, rep *agentv1.ReportStepRequest) error {
	for {
		rep.OperationId, rep.Attempt, rep.Epoch = r.operation, r.attempt, r.currentEpoch()
		rep.Sequence = r.past.sequence + 1
		rep.At = timestamppb.New(r.deps.Now())
		if err := r.append(Record{Kind: RecordReport, Step: metal.Step(rep.Step), Text: rep.Phase, Sequence: rep.Sequence, Epoch: rep.Epoch}); err != nil {
			return err
		}
		err := r.deps.Reporter.Report(ctx, rep)
		if err == nil {
			r.log.Info("step "+rep.Phase, "step", rep.Step, "epoch", rep.Epoch)
			if rep.BootId != "" {
				r.toldBoot = rep.BootId
			}
			return nil
		}
		if metal.CodeOf(err) != metal.CodeStaleEpoch || r.currentEpoch() == rep.Epoch {
			return &errUntold{err}
		}
	}
}

// recovery records a rung of the ladder before it is climbed.
func (r *run) recovery(step metal.Step, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	r.log.Warn("recovery", "step", step, "rung", text)
	return r.append(Record{Kind: RecordRecovery, Step: step, Text: text})
}

// intent records that an act is about to happen.
func (r *run) intent(step metal.Step, act string) error {
	return r.append(Record{Kind: RecordIntent, Step: step, Act: act})
}

// begun says whether, and when, an act's intent was recorded.
func (r *run) begun(step metal.Step, act string) (time.Time, bool) {
	at, ok := r.past.intents[string(step)+"/"+act]
	return at, ok
}

// guarded runs f under the rack's lease; f's context ends with the lease.
func (r *run) guarded(ctx context.Context, f func(context.Context) error) error {
	held, release, err := r.deps.Lease.Hold(ctx, r.server, r.currentEpoch)
	if err != nil {
		return err
	}
	defer release()
	err = f(held)
	if err != nil && ctx.Err() == nil && (held.Err() != nil || errors.Is(err, oob.ErrLease)) {
		return errLeaseLost
	}
	return err
}

func (r *run) spec() (*agentv1.ServerSpec, error) {
	spec, ok := r.deps.Server(r.server)
	if !ok {
		return nil, metal.Errorf(metal.CodeInternal, "server %s is not known to the rack's agent", r.server)
	}
	return spec, nil
}
