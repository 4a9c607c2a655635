// Package membership knows, by gossip (SWIM, hashicorp/memberlist), which nodes
// and agents are alive and where they are. It is a hint: who may act is decided
// in Raft, and a gossiped address counts only after TLS has proved who is there.
package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// The kinds of member.
const (
	KindNode  = "node"
	KindAgent = "agent"
)

// Member is what one process says of itself. Encoded it must fit into 512 bytes.
type Member struct {
	Kind    string   `json:"k"`
	ID      string   `json:"i"`
	Name    string   `json:"n"`
	Address string   `json:"a,omitempty"` // host:port of its TLS port; nodes only
	Racks   []string `json:"r,omitempty"` // names; agents only
	Version string   `json:"v,omitempty"`
}

// Config of one member.
type Config struct {
	Bind  string // host:port for gossip, UDP and TCP
	Key   []byte // 32 bytes, AES-256, the cluster's
	Self  Member
	Seeds func() []string // host:port of gossip ports to try while alone; may be nil
	Log   *slog.Logger

	// Timing for tests; 0: memberlist's LAN defaults and 10 s.
	ProbeInterval time.Duration
	RejoinEvery   time.Duration
}

// Membership is one member's view of the others.
type Membership struct {
	cfg  Config
	list *memberlist.Memberlist

	mu      sync.Mutex
	members map[string]Member // by ID, living ones, without self
	changed chan struct{}

	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once
	closed error
}

// Open starts gossiping. It goes on looking for seeds until Close, so that a
// split that memberlist has given up on (it forgets the dead) heals.
func Open(cfg Config) (*Membership, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.RejoinEvery == 0 {
		cfg.RejoinEvery = 10 * time.Second
	}
	m := &Membership{cfg: cfg, members: map[string]Member{}, changed: make(chan struct{})}
	conf, err := m.config()
	if err != nil {
		return nil, err
	}
	if m.list, err = memberlist.Create(conf); err != nil {
		return nil, fmt.Errorf("start gossip on %s: %w", cfg.Bind, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.wg.Go(func() { m.rejoin(ctx) })
	return m, nil
}

func (m *Membership) config() (*memberlist.Config, error) {
	host, port, err := net.SplitHostPort(m.cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("gossip address: %w", err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("gossip port: %w", err)
	}
	meta, err := json.Marshal(m.cfg.Self)
	if err != nil {
		return nil, fmt.Errorf("encode member: %w", err)
	}
	if len(meta) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("what %s says of itself has %d bytes, gossip carries %d", m.cfg.Self.Name, len(meta), memberlist.MetaMaxSize)
	}
	conf := memberlist.DefaultLANConfig()
	conf.Name = m.cfg.Self.ID
	conf.BindAddr, conf.BindPort, conf.AdvertisePort = host, int(n), int(n)
	conf.SecretKey = m.cfg.Key
	conf.Delegate = delegate{meta: meta}
	conf.Events = events{m}
	conf.Logger = log.New(logWriter{m.cfg.Log}, "", 0)
	if m.cfg.ProbeInterval > 0 {
		conf.ProbeInterval, conf.ProbeTimeout = m.cfg.ProbeInterval, m.cfg.ProbeInterval/2
		conf.GossipInterval = m.cfg.ProbeInterval / 5
	}
	return conf, nil
}

// rejoin looks for seeds at once, then while some of them are not members.
func (m *Membership) rejoin(ctx context.Context) {
	t := time.NewTicker(m.cfg.RejoinEvery)
	defer t.Stop()
	for {
		if missing := m.missing(); len(missing) > 0 {
			if _, err := m.list.Join(missing); err != nil {
				m.cfg.Log.Debug("gossip seeds do not answer", "seeds", missing, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// missing returns the seeds that no living member has as its gossip address.
func (m *Membership) missing() []string {
	if m.cfg.Seeds == nil {
		return nil
	}
	alive := map[string]bool{}
	for _, n := range m.list.Members() {
		alive[n.Address()] = true
	}
	return slices.DeleteFunc(slices.Clone(m.cfg.Seeds()), func(s string) bool { return alive[s] })
}

// Members returns the living members but oneself, by ID.
func (m *Membership) Members() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Member, 0, len(m.members))
	for _, v := range m.members {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Alive says whether gossip has heard of a node or agent lately; of oneself it
// is always true.
func (m *Membership) Alive(id string) bool {
	if id == m.cfg.Self.ID {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.members[id]
	return ok
}

// Changed returns a channel that is closed at the next change; take it before
// reading Members.
func (m *Membership) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *Membership) set(id string, v *Member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v == nil {
		delete(m.members, id)
	} else {
		m.members[id] = *v
	}
	close(m.changed)
	m.changed = make(chan struct{})
}

// Close says goodbye to the others, within a second, and stops. Closing again
// answers the same.
func (m *Membership) Close() error {
	m.once.Do(func() {
		m.cancel()
		m.wg.Wait()
		err := m.list.Leave(time.Second)
		m.closed = errors.Join(err, m.list.Shutdown())
	})
	return m.closed
}

// events turns memberlist's notifications into the table of members. It is
// called with memberlist's lock held, so it must not call back.
type events struct{ m *Membership }

func (e events) NotifyJoin(n *memberlist.Node)   { e.update(n) }
func (e events) NotifyUpdate(n *memberlist.Node) { e.update(n) }

func (e events) NotifyLeave(n *memberlist.Node) {
	if n.Name == e.m.cfg.Self.ID {
		return
	}
	e.m.cfg.Log.Info("member is gone", "member", n.Name)
	e.m.set(n.Name, nil)
}

func (e events) update(n *memberlist.Node) {
	if n.Name == e.m.cfg.Self.ID {
		return
	}
	var v Member
	if err := json.Unmarshal(n.Meta, &v); err != nil || v.ID != n.Name {
		e.m.cfg.Log.Warn("member says what it may not", "member", n.Name, "err", err)
		return
	}
	e.m.cfg.Log.Info("member is alive", "member", v.ID, "kind", v.Kind, "name", v.Name)
	e.m.set(v.ID, &v)
}

// delegate hands out the member's own description; nothing else is gossiped.
type delegate struct{ meta []byte }

func (d delegate) NodeMeta(limit int) []byte       { return d.meta[:min(len(d.meta), limit)] }
func (delegate) NotifyMsg([]byte)                  {}
func (delegate) GetBroadcasts(int, int) [][]byte   { return nil }
func (delegate) LocalState(bool) []byte            { return nil }
func (delegate) MergeRemoteState(_ []byte, _ bool) {}

// logWriter passes memberlist's lines on by their level.
type logWriter struct{ log *slog.Logger }

var _ io.Writer = logWriter{}

func (w logWriter) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	level := slog.LevelDebug
	for prefix, l := range map[string]slog.Level{"[WARN] ": slog.LevelInfo, "[ERR] ": slog.LevelWarn, "[INFO] ": slog.LevelDebug, "[DEBUG] ": slog.LevelDebug} {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			line, level = strings.TrimPrefix(rest, "memberlist: "), l
			break
		}
	}
	w.log.Log(context.Background(), level, "gossip", "line", line)
	return len(p), nil
}
