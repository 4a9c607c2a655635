package consensus

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"bmc/controlplane/trust"
)

// site is members over TLS on loopback, in real time. Its election timeout is
// mostly one that no test waits for.
type site struct {
	t        *testing.T
	ca       *trust.CA
	election time.Duration
	members  []*host
}

// host is a member and what can be done to its network.
type host struct {
	*Node
	id, addr string
	listener net.Listener
	streams  *Streams
	trans    *raft.NetworkTransport
	asked    atomic.Int32 // how often it asked about a leader
	late     atomic.Int32 // how many questions it has to hear before it sees that a leader is gone
	dead     atomic.Bool

	mu      sync.Mutex
	refuses map[string]bool // addresses that a firewall refuses to it
	paused  chan struct{}   // while set, nothing is read or written
}

func newSite(t *testing.T, voters, nonvoters int, election time.Duration) *site {
	t.Helper()
	ca, err := trust.NewCA("cluster-a", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, ca: ca, election: election}
	t.Cleanup(func() {
		for _, h := range s.members {
			s.kill(h)
		}
	})
	for i := range voters + nonvoters {
		s.open("node-"+string(rune('a'+i)), i == 0)
	}
	first := s.members[0]
	s.elect(first)
	for i, h := range s.members[1:] {
		if err := first.AddNonvoter(s.ctx(), h.id, h.addr); err != nil {
			t.Fatal(err)
		}
		if i+1 < voters {
			if err := first.AddVoter(s.ctx(), h.id, h.addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.settled(first)
	return s
}

func (s *site) open(id string, first bool) {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	h := &host{id: id, addr: l.Addr().String(), listener: l, refuses: map[string]bool{}}
	creds := s.creds(h)
	who := func(c net.Conn) string {
		id, _ := creds.Identify(c.(*tls.Conn).ConnectionState())
		return id.ID
	}
	h.streams = NewStreams(&shaken{l, creds.Server(), h}, who, h.addr, creds.Client([]string{trust.ProtoRaft}, trust.RoleNode))
	h.streams.dial = h.dial
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("BMC_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(s.t.Output(), nil)).With("at", id)
	}
	h.trans = NewTransport(h.streams, log)
	store := raft.NewInmemStore()
	c := Config{ID: id, FSM: newPausable(), Logs: store, Stable: store, Snapshots: raft.NewInmemSnapshotStore(), Transport: h.trans,
		Streams: h.streams, Timing: Timing{Election: s.election}, Log: log,
		AskGone: func(ctx context.Context, addr, leader string, term uint64) (Word, error) {
			h.asked.Add(1)
			for _, o := range s.members {
				if o.addr == addr && !o.dead.Load() {
					if h.late.Load() > 0 || o.late.Add(-1) >= 0 {
						return Word{}, nil
					}
					return o.LeaderGone(ctx, leader, term), nil
				}
			}
			return Word{}, syscall.ECONNREFUSED
		}}
	if first {
		if err := Bootstrap(c); err != nil {
			s.t.Fatal(err)
		}
	}
	if h.Node, err = Open(c); err != nil {
		s.t.Fatal(err)
	}
	s.members = append(s.members, h)
}

func (s *site) creds(h *host) *trust.Credentials {
	s.t.Helper()
	key, csr, err := trust.NewRequest()
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := s.ca.IssueNode(csr, h.id, h.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	creds, err := trust.NewCredentials(tls.Certificate{Certificate: [][]byte{der, s.ca.DER()}, PrivateKey: key}, s.ca.Certificate(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return creds
}

// elect has a member stand, so that nobody waits for a timeout.
func (s *site) elect(h *host) {
	s.t.Helper()
	if err := h.trans.TimeoutNow(raft.ServerID(h.id), raft.ServerAddress(h.addr), &raft.TimeoutNowRequest{RPCHeader: h.header()}, &raft.TimeoutNowResponse{}); err != nil {
		s.t.Fatal(err)
	}
	s.await("it leads", h.IsLeader)
}

// settled waits until all that live follow the leader and have connections from it.
func (s *site) settled(leader *host) {
	s.t.Helper()
	s.command(leader, "settled-"+leader.id)
	s.await("all follow", func() bool {
		for _, h := range s.members {
			if id, _ := h.Leader(); !h.dead.Load() && (id != leader.id || h != leader && (h.streams.From(leader.id) == 0 || h.AppliedIndex() < leader.CommitIndex())) {
				return false
			}
		}
		return true
	})
}

func (s *site) command(leader *host, name string) {
	s.t.Helper()
	if _, err := leader.Propose(s.ctx(), system(project(name))); err != nil {
		s.t.Fatal(err)
	}
}

// kill does to the others what the end of a process does.
func (s *site) kill(h *host) {
	if h.dead.Swap(true) {
		return
	}
	h.resume()
	h.listener.Close()
	h.streams.Silence(true)
	close(h.closed) // as Close, but that a process which dies hands nothing on
	h.cancel()
	h.here.close()
	h.there.close()
	h.wg.Wait()
	<-h.done
	if err := h.raft.Shutdown().Error(); err != nil {
		s.t.Error(err)
	}
	if err := h.trans.Close(); err != nil {
		s.t.Error(err)
	}
}

// cut is a firewall that ends the connections between two members and refuses new ones.
func (s *site) cut(a, b *host) {
	a.refuse(b.addr, true)
	b.refuse(a.addr, true)
	a.streams.end(b.id)
	b.streams.end(a.id)
}

func (s *site) heal(a, b *host) {
	a.refuse(b.addr, false)
	b.refuse(a.addr, false)
}

// end closes what a node has opened.
func (s *Streams) end(node string) {
	s.mu.Lock()
	var of []*stream
	for c := range s.open {
		if c.from == node {
			of = append(of, c)
		}
	}
	s.mu.Unlock()
	for _, c := range of {
		c.Close()
	}
}

func (s *site) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *site) await(what string, cond func() bool) {
	s.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("never: %s", what)
		}
	}
}

// leader waits for one among those that live, besides the one given.
func (s *site) leader(besides *host) (found *host) {
	s.t.Helper()
	s.await("somebody leads", func() bool {
		for _, h := range s.members {
			if h != besides && !h.dead.Load() && h.IsLeader() {
				found = h
			}
		}
		return found != nil
	})
	return found
}

func (s *site) stood() (n uint64) {
	for _, h := range s.members {
		n += h.Stood()
	}
	return n
}

func (h *host) refuse(addr string, on bool) {
	h.mu.Lock()
	h.refuses[addr] = on
	h.mu.Unlock()
}

func (h *host) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	h.mu.Lock()
	refused := h.refuses[addr]
	h.mu.Unlock()
	if refused {
		return nil, syscall.ECONNREFUSED
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	return &held{c, h}, err
}

// pause stops what the member sends and takes, as a stopped process: its kernel
// goes on.
func (h *host) pause() {
	h.mu.Lock()
	h.paused = make(chan struct{})
	h.mu.Unlock()
}

func (h *host) resume() {
	h.mu.Lock()
	if h.paused != nil {
		close(h.paused)
		h.paused = nil
	}
	h.mu.Unlock()
}

func (h *host) wait() {
	h.mu.Lock()
	paused := h.paused
	h.mu.Unlock()
	if paused != nil {
		<-paused
	}
}

// held is a connection of a member that can be paused.
type held struct {
	net.Conn
	of *host
}

func (c *held) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.of.wait()
	return n, err
}

func (c *held) Write(b []byte) (int, error) {
	c.of.wait()
	return c.Conn.Write(b)
}

// shaken is a listener whose connections have proved who they are from.
type shaken struct {
	net.Listener
	config *tls.Config
	of     *host
}

func (l *shaken) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.of.wait()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		c := tls.Server(&held{raw, l.of}, l.config)
		err = c.HandshakeContext(ctx)
		cancel()
		if err == nil {
			return c, nil
		}
		raw.Close()
	}
}
