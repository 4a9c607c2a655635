package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"bmc/controlplane/consensus"
	"bmc/controlplane/trust"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// recoverWait bounds what a recovery or a restore does after the data are read:
// an election of one and a command or two. A big snapshot is written meanwhile.
const recoverWait = 5 * time.Minute

// generationGap is how much a recovery raises the generation by: the lost nodes
// may have raised it, too, without this one hearing of it.
const generationGap = 16

func errHalfRecovered() error {
	return metal.Errorf(metal.CodeWrongState, "a recovery of this node was interrupted: it must be finished before the node runs").
		WithHint("bmc-controlplane recover --config FILE")
}

// Recovery is what making a cluster of this node alone would keep and lose.
type Recovery struct {
	ClusterID, NodeID, Name, Address string

	Index, Term, Snapshot uint64            // of this node's log
	Members               []RecoveredMember // this node first
	Revision, Generation  uint64            // of the state in it
	NewGeneration         uint64            // what the generation becomes
	Time                  time.Time         // of the last command
	Servers, Operations   int               // operations: those under way
	Racks                 []string          // frozen afterwards
	conf                  Config
	rec                   record
	self                  *logpb.Node
}

// RecoveredMember is one node of the group as this node's log has it.
type RecoveredMember struct {
	ID, Name, Address string
	Voter, Self       bool
}

// PlanRecovery reads a stopped node's data. No byte of them is changed. Errors: BUSY
// while the node runs, WRONG_STATE where there is no need.
func PlanRecovery(c Config) (_ *Recovery, err error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	id, err := c.loadIdentity()
	if err != nil {
		return nil, err
	}
	stores, err := consensus.ReadStores(c.DataDir, c.LogStore, slog.New(slog.DiscardHandler))
	if metal.CodeOf(err) == metal.CodeBusy {
		return nil, metal.Errorf(metal.CodeBusy, "this node runs: a recovery is for a node that is stopped, and for a cluster whose other nodes are lost").
			WithHint("systemctl stop bmc-controlplane")
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stores.Close()) }()
	conf, done := c.solo(id.NodeID, stores, nil)
	defer func() { err = errors.Join(err, done()) }()
	machine, broken := replayable()
	conf.FSM = machine
	found, err := consensus.Survey(conf)
	if err := errors.Join(broken(), err); err != nil {
		return nil, err
	}
	return c.recovery(id, found, machine.View())
}

// replayable is a state machine that says afterwards what it could not apply.
func replayable() (*fsm.FSM, func() error) {
	var why error
	return fsm.New(fsm.Options{Fatal: func(err error) { why = errors.Join(why, err) }}), func() error { return why }
}

func (c *Config) recovery(id *identity, found consensus.Found, v *state.View) (*Recovery, error) {
	meta := v.Meta()
	if meta.ClusterID != id.ClusterID {
		return nil, metal.Errorf(metal.CodeWrongState, "this node has heard nothing of cluster %s yet: recover another one", id.ClusterID).
			WithHint("bmc-controlplane recover --config FILE --dry-run")
	}
	r := &Recovery{ClusterID: id.ClusterID, NodeID: id.NodeID, Name: id.Name, Address: c.Advertise,
		Index: found.Index, Term: found.Term, Snapshot: found.Snapshot, Revision: meta.Revision, Generation: meta.Generation,
		NewGeneration: meta.Generation + generationGap, Time: meta.Time, Servers: v.CountServers(""), Operations: v.CountOpenOperations(),
		conf: *c, rec: id.record}
	for _, m := range found.Members {
		x := RecoveredMember{ID: m.ID, Address: m.Address, Voter: m.Voter, Self: m.ID == id.NodeID}
		if n, ok := v.Node(m.ID); ok {
			x.Name = n.Name
		}
		r.Members = append(r.Members, x)
	}
	slices.SortStableFunc(r.Members, func(a, b RecoveredMember) int {
		switch {
		case a.Self == b.Self:
			return strings.Compare(a.Name, b.Name)
		case a.Self:
			return -1
		}
		return 1
	})
	if len(r.Members) == 1 && r.Members[0].Self && !id.Recovering {
		return nil, metal.Errorf(metal.CodeWrongState, "%s is the only node of its cluster: it needs no other to go on", id.Name).
			WithHint("bmc-controlplane run --config FILE")
	}
	r.Racks = occupied(v)
	r.self = &logpb.Node{Id: id.NodeID, Name: id.Name, Address: c.Advertise, KeyHash: trust.KeyHash(id.cert.Leaf),
		Software: software(), FeatureLevel: fsm.FeatureLevel}
	if n, ok := v.Node(id.NodeID); ok {
		r.self.Joined = n.Joined.UnixNano()
	}
	return r, nil
}

// occupied are the names of the racks with servers, which a restore freezes.
func occupied(v *state.View) []string {
	has := map[string]bool{}
	for srv := range v.Servers(state.ServerFilter{}) {
		has[srv.RackID] = true
	}
	var out []string
	for rack := range v.Racks() {
		if has[rack.ID] {
			out = append(out, rack.Name)
		}
	}
	return out
}

// Do makes this node the whole cluster. Interrupted, it is begun again by
// another PlanRecovery and Do; the node does not run before.
func (r *Recovery) Do(ctx context.Context) error {
	c := &r.conf
	rec := r.rec
	for _, m := range r.Members {
		if !m.Self && !slices.Contains(rec.Lost, m.ID) {
			rec.Lost = append(rec.Lost, m.ID)
		}
	}
	rec.Recovering = true
	if err := c.rewrite(r.rec.Recovering, rec); err != nil {
		return err
	}
	if err := c.takeOver(r.NodeID); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, recoverWait)
	defer cancel()
	err := c.alone(ctx, r.NodeID, false, func(node *consensus.Node) error {
		return system(ctx, node, raiseTo(r.NewGeneration, r.self))
	})
	if err != nil {
		return fmt.Errorf("raise the generation: %w", err)
	}
	rec.Recovering = false
	return c.saveRecord(rec)
}

// rewrite notes that a recovery has begun. It takes the stores' lock, so that
// no running node is written over.
func (c *Config) rewrite(begun bool, rec record) (err error) {
	stores, err := consensus.OpenStores(c.DataDir, c.LogStore, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stores.Close()) }()
	if begun {
		return nil
	}
	return c.saveRecord(rec)
}

func (c *Config) takeOver(nodeID string) (err error) {
	stores, err := consensus.OpenStores(c.DataDir, c.LogStore, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stores.Close()) }()
	conf, done := c.solo(nodeID, stores, nil)
	defer func() { err = errors.Join(err, done()) }()
	machine, broken := replayable()
	conf.FSM = machine
	return errors.Join(consensus.Recover(conf), broken())
}

// raiseTo begins a new generation with this node alone, at the feature level that it
// knows: what the agents knew is compared with the state as well as it can be.
func raiseTo(generation uint64, self *logpb.Node) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{
		AtLeast: generation, Nodes: []*logpb.Node{self}, FeatureLevel: self.GetFeatureLevel()}}}
}
