package fsm

import (
	"context"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// Result is what Apply returns to the proposer.
type Result struct {
	Revision    uint64
	Err         *metal.Error // a refused business rule; nil when accepted
	Value       any          // documented at each command; nil when refused
	ID          string       // of what was made or changed
	OperationID string
	Replayed    bool // the request ID was known: nothing was done again
}

// Applied is one object of an ApplyInventory command.
type Applied struct {
	Kind        string // rack, size, server
	Name        string
	ID          string
	Change      string // created, updated, unchanged
	OperationID string // the enrolment that it started
}

// Options of an FSM.
type Options struct {
	// Fatal is called with what must stop the node: a command that cannot be
	// decoded. It must not return. Nil: panic.
	Fatal func(error)
}

// FSM is the replicated state machine.
type FSM struct{}

var _ raft.BatchingFSM = (*FSM)(nil)

// New returns an empty state machine.
func New(o Options) *FSM { panic("todo") }

func (f *FSM) Apply(l *raft.Log) any               { panic("todo") } // *Result
func (f *FSM) ApplyBatch(ls []*raft.Log) []any     { panic("todo") }
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) { panic("todo") }
func (f *FSM) Restore(r io.ReadCloser) error       { panic("todo") }

// View returns the newest state.
func (f *FSM) View() *state.View { panic("todo") }

// CommandIndex is the index of the last command applied or restored.
func (f *FSM) CommandIndex() uint64 { panic("todo") }

// WaitCommandIndex returns when CommandIndex is at least idx.
func (f *FSM) WaitCommandIndex(ctx context.Context, idx uint64) error { panic("todo") }

// Wait returns a View newer than the revision given, or made by a Restore.
func (f *FSM) Wait(ctx context.Context, after uint64) (*state.View, error) { panic("todo") }

// Changed returns a channel that is closed at the next publication; take it
// before reading View.
func (f *FSM) Changed() <-chan struct{} { panic("todo") }

// Encode makes the log entry of a command.
func Encode(c *logpb.Command) ([]byte, error) { panic("todo") }

// Name is the command's name as audit and metrics have it: "create_server".
func Name(c *logpb.Command) string { panic("todo") }

// Plan says what a command would do to a view, without doing it: dry runs.
func Plan(v *state.View, c *logpb.Command) *Result { panic("todo") }

// WriteSnapshot writes a view as a snapshot.
func WriteSnapshot(w io.Writer, v *state.View) error { panic("todo") }

// SnapshotInfo is what a snapshot says of itself.
type SnapshotInfo struct {
	Version      uint32
	ClusterID    string
	Revision     uint64
	Generation   uint64
	FeatureLevel uint32
	Time         time.Time
	StateHash    []byte
	Rows         map[string]uint64 // by table
}

// InspectSnapshot reads a whole snapshot, checks it and says what is in it.
func InspectSnapshot(r io.Reader) (*SnapshotInfo, error) { panic("todo") }

// StepDeadline is how long a step may take.
func StepDeadline(s metal.Step) time.Duration { panic("todo") }
