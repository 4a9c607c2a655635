package operation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"bmc/metal"
)

const (
	healthLook = 5 * time.Second
	// hungAfter is how long a write may take; a busy disk takes a second.
	hungAfter = 10 * time.Second
	// unfitFor is how long a journal counts as broken after a write of it failed, even
	// if a trial succeeds: longer than another agent needs to get the rack's lease.
	unfitFor = 30 * time.Second
	// trialSize is a page, so that it needs a block of its own.
	trialSize = 4096
)

// health knows whether journals can be written. An agent whose disk is full, or does
// not answer, can begin nothing: who asks it for that should hear why, and another
// agent of the rack should have the lease.
type health struct {
	now  func() time.Time
	log  *slog.Logger
	hung time.Duration

	mu     sync.Mutex
	writes map[*write]bool
	err    error     // of the newest write that failed, unless a later one succeeded
	at     time.Time // when
}

// write is one that is under way.
type write struct {
	run   *run // nil: a trial
	began time.Time
}

func newHealth(log *slog.Logger, now func() time.Time) *health {
	return &health{now: now, log: log, hung: hungAfter, writes: make(map[*write]bool)}
}

// begin notes a write; the returned function notes its end.
func (h *health) begin(r *run) (end func(error)) {
	w := &write{r, h.now()}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writes[w] = true
	return func(err error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.writes, w)
		h.note(err)
	}
}

// note takes a write's outcome; the lock is held.
func (h *health) note(err error) {
	switch {
	case err != nil:
		if h.err == nil {
			h.log.Error("the journal cannot be written: operations are left to another agent of the rack, if there is one", "err", err)
		}
		h.err, h.at = err, h.now()
	case h.err != nil && h.now().Sub(h.at) >= unfitFor:
		h.log.Info("the journal can be written again")
		h.err = nil
	}
}

// ofDisk is the error of opening a journal where it is the disk's; nil: what is wrong
// is the journal's content.
func ofDisk(err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return err
	}
	return nil
}

// trouble says in words what is wrong; "": nothing.
func (h *health) trouble() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.writes {
		if took := h.now().Sub(w.began); took >= h.hung {
			return hangs
		}
	}
	if h.err != nil {
		return cannotWrite(h.err)
	}
	return ""
}

func (h *health) writing() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.writes) > 0
}

const hangs = "the rack's agent waits for its disk, which does not finish a write of the journal"

// cannotWrite leaves paths out.
func cannotWrite(err error) string {
	text := "the rack's agent cannot write its journal"
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		text += ": " + errno.Error()
	}
	return text
}

// run tries a write from time to time while writes fail, and tells of those that
// hang, until ctx ends.
func (h *health) run(ctx context.Context, dir string) {
	t := time.NewTicker(healthLook)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		h.look(dir)
	}
}

func (h *health) look(dir string) {
	h.mu.Lock()
	broken, under := h.err != nil, len(h.writes) > 0
	var hung []*run
	for w := range h.writes {
		if w.run != nil && h.now().Sub(w.began) >= h.hung {
			hung = append(hung, w.run)
		}
	}
	h.mu.Unlock()
	for _, r := range hung {
		r.tell(hangs)
	}
	if broken && !under {
		end := h.begin(nil)
		end(trial(filepath.Join(dir, "trial")))
	}
}

// trial writes a journal that nobody reads.
func trial(path string) (err error) {
	rec := Record{Kind: "trial", Text: strings.Repeat(".", trialSize)}
	if err := hitJournal("", rec, "before"); err != nil {
		return err
	}
	j, _, err := OpenJournal(path)
	if err != nil {
		return fmt.Errorf("a trial: %w", err)
	}
	return errors.Join(j.Append(rec), j.Close(), os.Remove(path))
}

// tell has people read why an operation does not go on, unless it is another
// agent's by now.
func (r *run) tell(message string) {
	if r.isWithdrawn() {
		return
	}
	r.mu.Lock()
	step := r.step
	r.mu.Unlock()
	if step == "" { // it has not come to one
		plan := metal.Plan(metal.OperationKind(r.assigned.GetKind()))
		if n := len(r.assigned.GetDoneSteps()); n < len(plan) {
			step = plan[n]
		}
	}
	r.deps.Progress(Progress{Operation: r.operation, Attempt: r.attempt, Step: step, Message: message})
}
