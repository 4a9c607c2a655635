package controlplane

import (
	"io"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"bmc/fsm"
)

// timed is the state machine with a watch: fsm itself reads no clock.
type timed struct {
	*fsm.FSM
	apply, restore prometheus.Observer
}

var _ raft.BatchingFSM = timed{}

// Apply of one command.
func (t timed) Apply(l *raft.Log) any { return t.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch of all that was committed since the last.
func (t timed) ApplyBatch(ls []*raft.Log) []any {
	began := time.Now()
	out := t.FSM.ApplyBatch(ls)
	t.apply.Observe(time.Since(began).Seconds())
	return out
}

// Restore of a snapshot: until it is over nothing is applied.
func (t timed) Restore(r io.ReadCloser) error {
	began := time.Now()
	err := t.FSM.Restore(r)
	t.restore.Observe(time.Since(began).Seconds())
	return err
}
