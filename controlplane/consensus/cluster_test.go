package consensus

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// pausable is a state machine whose Apply can be held up.
type pausable struct {
	*fsm.FSM
	mu   sync.Mutex
	gate chan struct{} // closed: run
}

func newPausable() *pausable {
	p := &pausable{FSM: fsm.New(fsm.Options{}), gate: make(chan struct{})}
	close(p.gate)
	return p
}

func (p *pausable) pause() {
	p.mu.Lock()
	p.gate = make(chan struct{})
	p.mu.Unlock()
}

func (p *pausable) resume() {
	p.mu.Lock()
	close(p.gate)
	p.mu.Unlock()
}

func (p *pausable) wait() {
	p.mu.Lock()
	gate := p.gate
	p.mu.Unlock()
	<-gate
}

func (p *pausable) Apply(l *raft.Log) any           { p.wait(); return p.FSM.Apply(l) }
func (p *pausable) ApplyBatch(ls []*raft.Log) []any { p.wait(); return p.FSM.ApplyBatch(ls) }

// member is one node of the in-process cluster.
type member struct {
	*Node
	id      string
	fsm     *pausable
	trans   *raft.InmemTransport
	store   *raft.InmemStore
	snaps   *raft.InmemSnapshotStore
	closed  bool
	stuck   chan struct{} // while set and open, writes of the log wait
	full    bool          // writes of the log fail
	stuckMu sync.Mutex
	lead    chan bool                                     // true when the leader's work starts, false when it ends
	work    atomic.Pointer[func(context.Context, uint64)] // nil: that of lead
}

// cluster is three members over a network whose links can be cut.
type cluster struct {
	t       *testing.T
	members []*member
	mu      sync.Mutex
	cut     map[[2]string]bool
}

func newCluster(t *testing.T, n int) *cluster {
	t.Helper()
	c := &cluster{t: t, cut: map[[2]string]bool{}}
	for i := range n {
		c.members = append(c.members, c.make(fmt.Sprintf("node-%c", 'a'+i)))
	}
	c.wire()
	first := c.members[0]
	if err := Bootstrap(c.config(first)); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.members {
		c.start(m)
	}
	t.Cleanup(c.close)
	c.await("the first leads", first.IsLeader)
	for _, m := range c.members[1:] {
		if err := first.AddNonvoter(c.ctx(10*time.Second), m.id, m.id); err != nil {
			t.Fatal(err)
		}
		if err := first.AddVoter(c.ctx(10*time.Second), m.id, m.id); err != nil {
			t.Fatal(err)
		}
	}
	c.propose(first, &logpb.Command{Command: &logpb.Command_InitCluster{InitCluster: &logpb.InitCluster{
		ClusterId: "cluster-a", Project: &logpb.Project{Id: "prj-default", Name: "default"}}}})
	return c
}

func (c *cluster) make(id string) *member {
	_, trans := raft.NewInmemTransport(raft.ServerAddress(id))
	return &member{id: id, fsm: newPausable(), trans: trans, store: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore(), lead: make(chan bool, 64)}
}

func (c *cluster) config(m *member) Config {
	return Config{ID: m.id, FSM: m.fsm, Logs: &slowStore{LogStore: m.store, m: m}, Stable: m.store, Snapshots: m.snaps, Transport: m.trans,
		Log: slog.New(slog.DiscardHandler),
		Silence: func(on bool) {
			if on {
				c.isolate(m)
			} else {
				c.heal()
			}
		},
		AskLeader: func(ctx context.Context) (uint64, error) {
			_, addr := m.Leader()
			for _, o := range c.members {
				if o.id == addr && c.linked(m.id, o.id) {
					return o.ReadIndex(ctx)
				}
			}
			return 0, errNoLeader(nil)
		},
		Leading: func(ctx context.Context, term uint64) {
			if work := m.work.Load(); work != nil {
				(*work)(ctx, term)
				return
			}
			m.lead <- true
			<-ctx.Done()
			m.lead <- false
		}}
}

func (c *cluster) start(m *member) {
	c.t.Helper()
	n, err := Open(c.config(m))
	if err != nil {
		c.t.Fatal(err)
	}
	m.Node = n
}

func (c *cluster) linked(a, b string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.cut[[2]string{a, b}]
}

// wire connects what is linked and disconnects the rest.
func (c *cluster) wire() {
	for _, a := range c.members {
		for _, b := range c.members {
			switch {
			case a == b:
			case c.linked(a.id, b.id):
				a.trans.Connect(b.trans.LocalAddr(), b.trans)
			default:
				a.trans.Disconnect(b.trans.LocalAddr())
			}
		}
	}
}

func (c *cluster) isolate(m *member) {
	c.mu.Lock()
	for _, o := range c.members {
		c.cut[[2]string{m.id, o.id}], c.cut[[2]string{o.id, m.id}] = true, true
	}
	c.mu.Unlock()
	c.wire()
}

func (c *cluster) heal() {
	c.mu.Lock()
	c.cut = map[[2]string]bool{}
	c.mu.Unlock()
	c.wire()
}

func (c *cluster) close() {
	for _, m := range c.members {
		c.stop(m)
	}
	time.Sleep(time.Minute) // raft's own timeouts to members that are gone
}

func (c *cluster) stop(m *member) {
	if m.closed || m.Node == nil {
		return
	}
	m.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := m.Close(ctx); err != nil {
		c.t.Error(err)
	}
	if err := m.trans.Close(); err != nil {
		c.t.Error(err)
	}
}

func (c *cluster) ctx(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	c.t.Cleanup(cancel)
	return ctx
}

// await polls in the bubble's time, where it costs nothing.
func (c *cluster) await(what string, cond func() bool) {
	c.t.Helper()
	for range 6000 {
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("never: %s", what)
}

// leader waits for one among the members.
func (c *cluster) leader(among ...*member) *member {
	c.t.Helper()
	if len(among) == 0 {
		among = c.members
	}
	var found *member
	c.await("somebody leads", func() bool {
		for _, m := range among {
			if !m.closed && m.IsLeader() {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func (c *cluster) others(m *member) []*member {
	var out []*member
	for _, o := range c.members {
		if o != m {
			out = append(out, o)
		}
	}
	return out
}

func (c *cluster) propose(m *member, cmd *logpb.Command) *fsm.Result {
	c.t.Helper()
	res, err := m.Propose(c.ctx(10*time.Second), system(cmd))
	if err != nil {
		c.t.Fatal(err)
	}
	if res.Err != nil {
		c.t.Fatal(res.Err)
	}
	return res
}

func system(cmd *logpb.Command) *logpb.Command {
	cmd.Header = &logpb.Header{Time: time.Now().UnixNano(), Principal: "system", Role: string(metal.RoleAdmin)}
	return cmd
}

func project(name string) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_CreateProject{CreateProject: &logpb.CreateProject{
		Project: &logpb.Project{Id: "prj-" + name, Name: name}}}}
}

func has(v *state.View, name string) bool {
	_, ok := v.ProjectByName(name)
	return ok
}

func readAll(r io.ReadCloser) ([]byte, error) {
	defer r.Close()
	return io.ReadAll(r)
}
