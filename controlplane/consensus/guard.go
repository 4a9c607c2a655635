package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// shortestHang keeps a node with a short election timeout from giving up over
// one slow sync.
const shortestHang = 3 * time.Second

// guard watches the log store. Raft sends heartbeats while its main loop waits
// for the disk, so a leader whose disk hangs would lead for ever and commit
// nothing (hashicorp/raft#503).
type guard struct {
	raft.LogStore
	began atomic.Int64 // Unix nanoseconds; 0: no write is under way
}

// StoreLogs implements raft.LogStore. A leader whose write fails steps down by
// raft's own doing.
func (g *guard) StoreLogs(logs []*raft.Log) error {
	g.began.Store(time.Now().UnixNano())
	defer g.began.Store(0)
	if err := hitStore(logs, "before"); err != nil {
		return err
	}
	if err := g.LogStore.StoreLogs(logs); err != nil {
		return fmt.Errorf("write the raft log: %w", err)
	}
	return hitStore(logs, "after")
}

// StoreLog implements raft.LogStore.
func (g *guard) StoreLog(log *raft.Log) error { return g.StoreLogs([]*raft.Log{log}) }

// IsMonotonic implements raft.MonotonicLogStore: after a snapshot from elsewhere,
// raft empties a log that can have no hole.
func (g *guard) IsMonotonic() bool {
	m, ok := g.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// hung is how long the write under way has lasted.
func (g *guard) hung() time.Duration {
	began := g.began.Load()
	if began == 0 {
		return 0
	}
	return time.Since(time.Unix(0, began))
}

// votes is raft's stable store. Raft panics when it cannot write its term; a
// full disk is worth a sentence.
type votes struct {
	raft.StableStore
	fatal func(error)
}

func (v *votes) Set(key, val []byte) error {
	return v.check(v.StableStore.Set(key, val))
}

func (v *votes) SetUint64(key []byte, val uint64) error {
	return v.check(v.StableStore.SetUint64(key, val))
}

func (v *votes) check(err error) error {
	if err != nil && errors.Is(err, syscall.ENOSPC) {
		v.fatal(fmt.Errorf("the disk is full: this node cannot vote and stops; make room in data_dir and start it again: %w", err))
	}
	return err
}

// watchStore falls silent while the log store hangs: others elect a leader, and
// clients are sent to them. When the disk comes back the node follows again.
func (n *Node) watchStore(ctx context.Context) {
	limit := max(3*n.conf.Timing.Election, shortestHang)
	tick := time.NewTicker(n.conf.Timing.Election / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		hangs := n.store.hung() > limit
		if hangs == n.silent.Load() {
			continue
		}
		n.silent.Store(hangs)
		if hangs {
			n.log.Error("the log store hangs: this node gives up leadership until it answers", "node", n.id, "for", limit)
		} else {
			n.log.Warn("the log store answers again", "node", n.id)
		}
		n.conf.Silence(hangs)
		n.announce()
	}
}

// Hung says whether the log store hangs.
func (n *Node) Hung() bool { return n.silent.Load() }
