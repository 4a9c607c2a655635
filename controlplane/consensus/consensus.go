// Package consensus runs one member of the cluster's Raft group: it opens the
// log, proposes commands, and answers when a read may be believed.
package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"bmc/fsm/state"
	"bmc/metal"
)

// StateMachine is what consensus needs of fsm.FSM.
type StateMachine interface {
	raft.FSM
	View() *state.View
	CommandIndex() uint64
	WaitCommandIndex(ctx context.Context, idx uint64) error
	Wait(ctx context.Context, after uint64) (*state.View, error)
}

// Timing of elections. Zero fields get the defaults for one site.
type Timing struct {
	Election time.Duration // without a heartbeat for one to two of these a follower stands; 1 s
	Lease    time.Duration // a leader that hears no quorum for this long steps down; half of Election
	Enqueue  time.Duration // how long a command may wait for raft's ear; 2 s
}

// Config of a Node.
type Config struct {
	ID        string // of the node
	FSM       StateMachine
	Logs      raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	Transport Transport // its LocalAddr is what others reach
	Timing    Timing
	// AskLeader answers the leader's ReadIndex to this follower.
	AskLeader func(ctx context.Context) (uint64, error)
	// Streams below Transport, and AskGone, which asks the node at an address for its
	// LeaderGone, replace a leader whose process has died without waiting for the
	// election timeout. Nil: that is waited for.
	Streams *Streams
	AskGone func(ctx context.Context, addr, leader string, term uint64) (Word, error)
	// Leading runs while this node leads in a term, after its barrier; it must
	// return soon after ctx ends. Nil: nothing runs.
	Leading func(ctx context.Context, term uint64)
	// Silence cuts this node off from the others, or takes that back, while its
	// log store hangs. Nil: nothing is cut, and a hanging leader stays one.
	Silence func(bool)
	// Fatal stops the process at once; it must not return. Nil: panic.
	Fatal func(error)
	Log   *slog.Logger // nil: nothing is logged
}

// maxBatch is how many commands share a write of the log.
const maxBatch = 256

// Node is one running member.
type Node struct {
	id    string
	fsm   StateMachine
	raft  *raft.Raft
	logs  raft.LogStore
	snaps raft.SnapshotStore
	conf  Config
	log   *slog.Logger

	ready    atomic.Uint64 // term whose barrier has passed here; 0: none
	scan     scanned
	here     *shared // ReadIndex of this node
	there    *shared // the leader's
	witness  *witness
	store    *guard
	silent   atomic.Bool           // the log store hangs
	diverged atomic.Bool           // the replicas' states differ and no majority says which is right
	stood    atomic.Uint64         // how often because the leader's process was gone
	closed   chan struct{}         // by Close
	wg       sync.WaitGroup        // hasten, watchStore, watchLeader, letGo
	cancel   context.CancelFunc    // ends watchLeadership and all of wg but letGo
	leaders  chan raft.Observation // capacity 1: another leader, or none, is known
	done     chan struct{}         // closed when watchLeadership has ended
	change   chan struct{}         // closed and replaced at each change of leadership
	mu       sync.Mutex            // guards change
	voting   sync.Mutex            // held by who adds voters, or needs that none is added
}

// Open starts the member. Close must be called.
func Open(c Config) (*Node, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Leading == nil {
		c.Leading = func(context.Context, uint64) {}
	}
	if c.AskLeader == nil {
		c.AskLeader = func(context.Context) (uint64, error) { return 0, errNoLeader(nil) }
	}
	if c.Silence == nil {
		c.Silence = func(bool) {}
	}
	if c.Fatal == nil {
		c.Fatal = func(err error) { panic(err) }
	}
	c.Timing.fill()
	store := &guard{LogStore: c.Logs}
	seen := newWitness(c.Transport)
	r, err := raft.NewRaft(raftConfig(c), c.FSM, store, &votes{c.Stable, c.Fatal}, c.Snapshots, seen)
	if err != nil {
		return nil, fmt.Errorf("start raft: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &Node{id: c.ID, fsm: c.FSM, raft: r, logs: c.Logs, snaps: c.Snapshots, conf: c, log: c.Log,
		witness: seen, store: store, closed: make(chan struct{}), cancel: cancel, done: make(chan struct{}), change: make(chan struct{}),
		leaders: make(chan raft.Observation, 1)}
	r.RegisterObserver(raft.NewObserver(n.leaders, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	n.here = newShared(2*c.Timing.Election, n.readIndex)
	n.there = newShared(2*c.Timing.Election, c.AskLeader)
	go n.watchLeadership(ctx)
	n.wg.Go(func() { n.hasten(ctx) })
	n.wg.Go(func() { n.watchStore(ctx) })
	n.wg.Go(func() { n.watchLeader(ctx) })
	return n, nil
}

func (t *Timing) fill() {
	if t.Election == 0 {
		t.Election = time.Second
	}
	if t.Lease == 0 {
		t.Lease = t.Election / 2
	}
	if t.Enqueue == 0 {
		t.Enqueue = 2 * time.Second
	}
}

func raftConfig(c Config) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.ID)
	rc.HeartbeatTimeout = c.Timing.Election
	rc.ElectionTimeout = c.Timing.Election
	rc.LeaderLeaseTimeout = c.Timing.Lease
	// Commands that wait together share a write to the disk and a message to
	// each follower.
	rc.BatchApplyCh = true
	rc.MaxAppendEntries = maxBatch
	// A restart applies again what came after the newest snapshot: a minute of
	// writes at most, since raft waits for one to two intervals.
	rc.SnapshotInterval = 30 * time.Second
	rc.NoLegacyTelemetry = true
	rc.Logger = newHCLog(c.Log)
	return rc
}

// Bootstrap writes the first configuration, this node alone, into empty stores.
// It is done once in a cluster's life, before Open.
func Bootstrap(c Config) error {
	c.Timing.fill()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	err := raft.BootstrapCluster(raftConfig(c), c.Logs, c.Stable, c.Snapshots, c.Transport, raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(c.ID), Address: c.Transport.LocalAddr()}}})
	if err != nil {
		return fmt.Errorf("bootstrap raft: %w", err)
	}
	return nil
}

// Close hands leadership on if this node has it, and stops. The stores and the
// transport stay the caller's to close.
func (n *Node) Close(ctx context.Context) error {
	close(n.closed)
	n.cancel()
	n.here.close()
	n.there.close()
	n.wg.Wait()
	select {
	case <-n.done:
	case <-ctx.Done():
		n.log.Warn("leader's work has not ended in time")
	}
	if n.raft.State() == raft.Leader && n.otherVoters() {
		handOn, cancel := context.WithTimeout(ctx, 3*n.conf.Timing.Election)
		if err := n.await(handOn, n.raft.LeadershipTransfer()); err != nil {
			n.log.Warn("leadership was not handed on", "err", err)
		}
		cancel()
	}
	n.flush(ctx)
	if err := n.await(ctx, n.raft.Shutdown()); err != nil {
		return fmt.Errorf("stop raft: %w", err)
	}
	return nil
}

// flush waits until raft has taken what is in its queues. When it stops, it
// answers what it has taken, and never what is still queued: who awaits that would
// leave a goroutine behind. The queues keep their order, so that an answer to what
// is put there last says so. Which answer is no matter.
func (n *Node) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*n.conf.Timing.Election)
	defer cancel()
	for _, last := range []raft.Future{n.raft.VerifyLeader(), n.raft.Barrier(n.conf.Timing.Enqueue)} {
		if err := n.await(ctx, last); err != nil {
			n.log.Debug("raft stops", "node", n.id, "err", err)
		}
	}
}

func (n *Node) otherVoters() bool {
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter && s.ID != raft.ServerID(n.id) {
			return true
		}
	}
	return false
}

// await bounds a wait that raft does not bound. The goroutine ends with the
// future, which raft answers at the latest when it loses leadership or stops.
func (n *Node) await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// IsLeader says whether this node leads and has seen its term's barrier pass,
// so that its state holds every acknowledged command.
func (n *Node) IsLeader() bool { return n.LeaderTerm() != 0 }

// LeaderTerm is the term in which this node leads, its barrier passed; 0: it does not
// lead. Who looks twice and finds the same term knows that nobody else has led
// in between.
func (n *Node) LeaderTerm() uint64 {
	term := n.ready.Load()
	if term != 0 && !n.silent.Load() && n.raft.State() == raft.Leader && n.raft.CurrentTerm() == term {
		return term
	}
	return 0
}

// Leader answers empty strings when none is known.
func (n *Node) Leader() (id, addr string) {
	a, i := n.raft.LeaderWithID()
	if n.silent.Load() && string(i) == n.id {
		return "", ""
	}
	return string(i), string(a)
}

// Changed returns a channel that is closed when this node leads or leads no longer,
// or follows another than before.
func (n *Node) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.change
}

// StaleView is this replica as it stands.
func (n *Node) StaleView() *state.View { return n.fsm.View() }

// WaitView returns a View whose revision is above after, or ctx's error.
func (n *Node) WaitView(ctx context.Context, after uint64) (*state.View, error) {
	return n.fsm.Wait(ctx, after)
}

func errNoLeader(cause error) *metal.Error {
	return &metal.Error{Code: metal.CodeNoLeader, Message: "this node is not the leader", Hint: "bmc cluster peers", Err: cause}
}

// wasNotDone says whether raft promises that the command is in no log.
func wasNotDone(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrEnqueueTimeout) ||
		errors.Is(err, raft.ErrLeadershipTransferInProgress)
}
