// Package membership gossips who is alive: nodes of the control plane and rack
// agents. What it says is a hint, never a proof: who may act is decided by
// leases in Raft, and who somebody is by TLS.
package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Kinds of members.
const (
	KindNode  = "node"
	KindAgent = "agent"
)

// Member is what gossip says of one member.
type Member struct {
	Kind    string   `json:"k"` // KindNode or KindAgent
	ID      string   `json:"i"`
	Name    string   `json:"n"`
	Address string   `json:"a,omitempty"` // host:port of its TLS port; may be empty for agents
	Racks   []string `json:"r,omitempty"` // names; left out when they do not fit
	Version string   `json:"v,omitempty"`
	Gossip  string   `json:"-"` // host:port that it gossips from
}

// Config of a Membership.
type Config struct {
	Self      Member
	Bind      string // IP:port for UDP and TCP
	Advertise string // IP:port that others reach; "": Bind
	Key       []byte // 16, 24 or 32 bytes, the cluster's gossip key
	// Seeds are asked again and again for host:port addresses to join; those
	// that are alive already are skipped. It heals what gossip alone does not:
	// a split that lasted longer than the dead are remembered.
	Seeds       func() []string
	RejoinEvery time.Duration // between looks at the seeds; 0: 10 s
	Log         *slog.Logger  // nil: nothing is logged
	// tune changes memberlist's own settings; tests of splits.
	tune func(*memberlist.Config) error
}

// Membership is this process's view of the others. Close must be called.
type Membership struct {
	ml      *memberlist.Memberlist
	conf    Config
	log     *slog.Logger
	cancel  context.CancelFunc
	done    chan struct{} // closed when join has ended
	once    sync.Once
	closed  error // of Close
	mu      sync.Mutex
	alive   map[string]Member // by ID, without oneself
	changed chan struct{}     // closed and replaced at each change
}

// Open starts gossiping. It does not wait for anybody to answer.
func Open(c Config) (*Membership, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.RejoinEvery == 0 {
		c.RejoinEvery = 10 * time.Second
	}
	if c.Seeds == nil {
		c.Seeds = func() []string { return nil }
	}
	if len(c.Key) == 0 {
		return nil, errors.New("gossip needs a key: it is never in the clear")
	}
	l := &Membership{conf: c, log: c.Log, done: make(chan struct{}), alive: map[string]Member{}, changed: make(chan struct{})}
	mc, err := l.config()
	if err != nil {
		return nil, err
	}
	if l.ml, err = memberlist.Create(mc); err != nil {
		return nil, fmt.Errorf("start gossip on %s: %w", c.Bind, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go l.join(ctx)
	return l, nil
}

func (l *Membership) config() (*memberlist.Config, error) {
	mc := memberlist.DefaultLANConfig()
	mc.Name = l.conf.Self.ID
	mc.SecretKey = l.conf.Key
	mc.Delegate = delegate{l}
	mc.Events = events{l}
	mc.Logger = newLogger(l.log)
	mc.MsgpackUseNewTimeFormat = true
	// A restarted machine may come back at another address at once.
	mc.DeadNodeReclaimTime = 5 * time.Second
	var err error
	if mc.BindAddr, mc.BindPort, err = split(l.conf.Bind); err != nil {
		return nil, err
	}
	mc.AdvertisePort = mc.BindPort
	if l.conf.Advertise != "" {
		if mc.AdvertiseAddr, mc.AdvertisePort, err = split(l.conf.Advertise); err != nil {
			return nil, err
		}
	}
	if l.conf.tune != nil {
		return mc, l.conf.tune(mc)
	}
	return mc, nil
}

func split(hostPort string) (string, int, error) {
	host, port, err := net.SplitHostPort(hostPort)
	n, convErr := strconv.ParseUint(port, 10, 16)
	if err != nil || convErr != nil {
		return "", 0, fmt.Errorf("gossip address %q is no IP:port", hostPort)
	}
	return host, int(n), nil
}

// join asks the seeds until Close.
func (l *Membership) join(ctx context.Context) {
	defer close(l.done)
	wait := time.Second // the first answers come soon
	for {
		for _, seed := range l.missing(l.conf.Seeds()) { // one by one: a dial cannot be interrupted, and Close waits for it
			if ctx.Err() != nil {
				return
			}
			if _, err := l.ml.Join([]string{seed}); err != nil {
				l.log.Debug("gossip seed does not answer", "addr", seed, "err", err)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		wait = min(2*wait, l.conf.RejoinEvery)
	}
}

func (l *Membership) missing(seeds []string) []string {
	known := map[string]bool{l.conf.Bind: true, l.conf.Advertise: true}
	for _, m := range l.Members() {
		known[m.Gossip] = true
	}
	var out []string
	for _, s := range seeds {
		if s != "" && !known[s] && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// Members are the others that are alive, by kind and name.
func (l *Membership) Members() []Member {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Member, 0, len(l.alive))
	for _, m := range l.alive {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int {
		return strings.Compare(a.Kind+"/"+a.Name+"/"+a.ID, b.Kind+"/"+b.Name+"/"+b.ID)
	})
	return out
}

// Alive says whether gossip has heard of a member lately; of oneself it is
// always true.
func (l *Membership) Alive(id string) bool {
	if id == l.conf.Self.ID {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.alive[id]
	return ok
}

// Changed returns a channel that is closed at the next change; take it before
// reading Members.
func (l *Membership) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// Nodes are the TLS addresses of the control-plane nodes alive.
func (l *Membership) Nodes() []string {
	var out []string
	for _, m := range l.Members() {
		if m.Kind == KindNode && m.Address != "" {
			out = append(out, m.Address)
		}
	}
	return out
}

// Close says goodbye, waiting at most two seconds for somebody to hear it, and
// stops. Closing again answers the same.
func (l *Membership) Close() error {
	l.once.Do(func() {
		l.cancel()
		<-l.done
		if err := l.ml.Leave(2 * time.Second); err != nil {
			l.log.Debug("nobody heard the goodbye", "err", err)
		}
		if err := l.ml.Shutdown(); err != nil {
			l.closed = fmt.Errorf("stop gossip: %w", err)
		}
	})
	return l.closed
}
