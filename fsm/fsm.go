package fsm

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
)

// Options of an FSM.
type Options struct {
	// Fatal is called with what must stop the node: a command that cannot be
	// decoded, because going on without it would make this replica differ from
	// the others. It must not return. Nil: panic.
	Fatal func(error)
	// Applied, when set, is called after each command with its name and outcome.
	// For metrics; it must not touch the state.
	Applied func(command string, r *Result)
}

// FSM adapts the state machine to raft. Only raft's goroutine calls Apply,
// ApplyBatch, Snapshot and Restore; everything else is for anybody.
type FSM struct {
	fatal   func(error)
	applied func(string, *Result)

	mu       sync.Mutex
	view     *state.View
	restores int           // how often the state was replaced as a whole
	marks    []HashMark    // newest last
	changed  chan struct{} // closed at the next publication
}

var _ raft.BatchingFSM = (*FSM)(nil)

// New returns an empty state machine.
func New(o Options) *FSM {
	f := &FSM{fatal: o.Fatal, applied: o.Applied, view: state.New(), changed: make(chan struct{})}
	if f.fatal == nil {
		f.fatal = func(err error) { panic(err) }
	}
	if f.applied == nil {
		f.applied = func(string, *Result) {}
	}
	return f
}

// Apply runs one command; the answer is a *Result.
func (f *FSM) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch runs commands and then publishes one View.
func (f *FSM) ApplyBatch(ls []*raft.Log) []any {
	results := make([]any, len(ls))
	var x *state.Txn
	var marks []HashMark
	for i, l := range ls {
		if l.Type != raft.LogCommand {
			continue
		}
		c, err := Decode(l.Data)
		if err != nil {
			f.fatal(fmt.Errorf("log entry %d cannot be applied, this node must stop: %w", l.Index, err))
			return results
		}
		if x == nil {
			x = f.View().Begin()
		}
		from := x.Revision()
		r := apply(x, l.Index, l.Term, l.Data, c)
		if from/markEvery != x.Revision()/markEvery {
			marks = append(marks, HashMark{x.Revision(), x.Hash()})
		}
		f.applied(Name(c), r)
		results[i] = r
	}
	if x != nil {
		f.publish(x.Commit(), false, marks...)
	}
	return results
}

func (f *FSM) publish(v *state.View, restored bool, marks ...HashMark) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.view = v
	if restored {
		f.restores++
		f.marks = nil
	}
	f.marks = append(f.marks, marks...)
	f.marks = f.marks[max(0, len(f.marks)-keptMarks):]
	close(f.changed)
	f.changed = make(chan struct{})
}

// Snapshot takes the newest View; writing it happens while Apply goes on.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) { return snapshot{f.View()}, nil }

// Restore replaces the state by a snapshot's, after all of it has been checked.
// Every watcher starts over.
func (f *FSM) Restore(r io.ReadCloser) error {
	v, _, err := readSnapshot(r)
	if closeErr := r.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	f.publish(v, true)
	return nil
}

// View returns the newest state.
func (f *FSM) View() *state.View {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.view
}

// CommandIndex is the index of the last command applied, or held by the last
// snapshot restored. Raft's own entries never reach the state machine, so this
// may stay below raft's commit index for ever.
func (f *FSM) CommandIndex() uint64 { return f.View().Revision() }

// WaitCommandIndex returns when CommandIndex is at least idx, or with the
// context's error.
func (f *FSM) WaitCommandIndex(ctx context.Context, idx uint64) error {
	for {
		changed := f.Changed()
		if f.CommandIndex() >= idx {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Wait returns the View as soon as its revision is above after, or the state
// was restored while waiting.
func (f *FSM) Wait(ctx context.Context, after uint64) (*state.View, error) {
	_, restores, _ := f.now()
	for {
		v, n, changed := f.now()
		if v.Revision() > after || n != restores {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *FSM) now() (*state.View, int, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.view, f.restores, f.changed
}

// Changed returns a channel that is closed at the next publication; take it
// before reading View.
func (f *FSM) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// Plan says what a command would do to a view, without doing it: for dry runs.
// The request ID is not looked at.
func Plan(v *state.View, c *logpb.Command) *Result {
	c = clone(c)
	c.Header.RequestId, c.Header.RequestMac = "", nil
	if c.Header.Time == 0 {
		c.Header.Time = logpb.Nanos(v.Meta().Time)
	}
	_, r := run(v, v.Revision()+1, nil, c)
	return r
}

// Advance applies a command to a state outside any log, as if it were at an
// index, and gives the state after it: for a backup that is to be changed before
// it is restored.
func Advance(v *state.View, index uint64, c *logpb.Command) (*state.View, *Result, error) {
	raw, err := Encode(c)
	if err != nil {
		return nil, nil, err
	}
	next, r := run(v, index, raw, c)
	return next, r, nil
}

// SnapshotInfo is what a snapshot says of itself.
type SnapshotInfo struct {
	Version      uint32
	ClusterID    string
	Revision     uint64
	Generation   uint64
	FeatureLevel uint32
	Time         time.Time // of the last command in it
	StateHash    []byte
	Rows         map[string]uint64 // by table
}
