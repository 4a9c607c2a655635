package consensus

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// long is an election timeout that no test waits for.
const long = time.Minute

// A leader whose process dies is replaced though nobody has missed a heartbeat,
// and by one vote: a split one would be repeated after minutes.
func TestDeadProcessIsReplacedAtOnce(t *testing.T) {
	for _, c := range []struct {
		name                     string
		voters, nonvoters, kills int
	}{{"three", 3, 0, 1}, {"three and one without a vote", 3, 1, 1}, {"five", 5, 0, 2}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, c.voters, c.nonvoters, long)
			for k := range c.kills {
				old := s.leader(nil)
				term := old.Term()
				s.kill(old)
				fresh := s.leader(old)
				if fresh.Term() != term+1 || s.stood() != uint64(k+1) || fresh.Stood() == 0 {
					t.Errorf("%s leads in term %d after %d; it stood %d times, all %d", fresh.id, fresh.Term(), term, fresh.Stood(), s.stood())
				}
				s.settled(fresh)
			}
			for _, h := range s.members[c.voters:] {
				if h.asked.Load() != 0 {
					t.Errorf("%s has no vote and asked", h.id)
				}
			}
		})
	}
}

// A firewall that refuses one follower the leader, and the leader that follower,
// is no reason to depose the leader: the other follower hears it.
func TestOneRefusedFollowerDoesNotStand(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, 0, long)
	leader, cut := s.members[0], s.members[1]
	term := leader.Term()
	s.cut(leader, cut)
	s.await("it asks, more than once", func() bool { return cut.asked.Load() >= 2 })
	if w := cut.LeaderGone(s.ctx(), leader.id, term); !w.Gone {
		t.Error("the follower that is cut off does not find the leader gone: the test shows nothing")
	}
	if w := s.members[2].LeaderGone(s.ctx(), leader.id, term); w.Gone {
		t.Error("the other follower hears the leader and says that it is gone")
	}
	s.command(leader, "meanwhile")
	s.heal(leader, cut)
	s.settled(leader)
	if !leader.IsLeader() || leader.Term() != term || s.stood() != 0 {
		t.Errorf("term %d after %d, stood %d times", leader.Term(), term, s.stood())
	}
}

// Of a name's addresses all must refuse: the leader may live behind any of them.
func TestRefusedByAllAddresses(t *testing.T) {
	const refuses, hangs, listens, noWay = "10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::9"
	for _, tt := range []struct {
		name  string
		addrs []string
		want  bool
	}{
		{"its only one", []string{refuses}, true},
		{"both", []string{refuses, "fd00::1"}, true},
		{"the second does not answer", []string{refuses, hangs}, false},
		{"the first does not answer", []string{hangs, refuses}, false},
		{"the second listens", []string{refuses, listens}, false},
		{"no way to the second", []string{refuses, noWay}, true},
		{"no way to any", []string{noWay}, false},
		{"a name without an address", nil, false},
	} {
		s := NewStreams(nil, nil, "", nil)
		s.lookup = func(_ context.Context, _, host string) (all []netip.Addr, err error) {
			if host != "cp1.example" {
				t.Errorf("looked up %s", host)
			}
			for _, a := range tt.addrs {
				all = append(all, netip.MustParseAddr(a))
			}
			return all, nil
		}
		s.dial = func(_ context.Context, _, addr string) (net.Conn, error) {
			switch addr {
			case net.JoinHostPort(hangs, "7443"):
				return nil, &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
			case net.JoinHostPort(noWay, "7443"):
				return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}
			case net.JoinHostPort(listens, "7443"):
				c, other := net.Pipe()
				return c, other.Close()
			}
			return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
		if got := s.Refused(t.Context(), "cp1.example:7443"); got != tt.want {
			t.Errorf("%s: refused %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Connections that end are no death: the leader still listens.
func TestEndedConnectionsAreNoDeath(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, 0, long)
	leader := s.members[0]
	term := leader.Term()
	for _, h := range s.members[1:] {
		h.streams.end(leader.id)
		if w := h.LeaderGone(s.ctx(), leader.id, term); w.Gone {
			t.Error("a leader that listens is said to be gone")
		}
	}
	s.command(leader, "after")
	s.settled(leader)
	for _, h := range s.members[1:] {
		if h.asked.Load() != 0 || h.Stood() != 0 || h.Term() != term {
			t.Errorf("%s asked %d times, stood %d times, term %d after %d", h.id, h.asked.Load(), h.Stood(), h.Term(), term)
		}
	}
}

// A leader that is stopped keeps its connections: it is replaced after the
// timeout alone.
func TestPausedLeaderIsLeftToTheTimeout(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, 0, time.Second)
	old := s.leader(nil)
	old.pause()
	fresh := s.leader(old)
	old.resume()
	s.await("the old one follows", func() bool { id, _ := old.Leader(); return id == fresh.id })
	for _, h := range s.members {
		if h.asked.Load() != 0 || h.Stood() != 0 {
			t.Errorf("%s asked %d times and stood %d times", h.id, h.asked.Load(), h.Stood())
		}
	}
}

// Two nodes cannot elect without one of them; the other does not try.
func TestOneOfTwoDoesNotStand(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 0, long)
	leader, left := s.members[0], s.members[1]
	term := leader.Term()
	s.kill(leader)
	s.await("the other knows", func() bool { return left.LeaderGone(s.ctx(), leader.id, term).Gone })
	if p := left.poll(s.ctx(), leader.id, term); p != (poll{voters: 2, agreed: 1}) {
		t.Errorf("%+v", p)
	}
	if left.Stood() != 0 || left.Term() != term {
		t.Errorf("it stood %d times, term %d after %d", left.Stood(), left.Term(), term)
	}
}

// When the first in turn does not stand, the second does.
func TestSecondStandsInItsTurn(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, 0, 12*time.Second) // a turn of 3 s
	leader, first, second := s.members[0], s.members[1], s.members[2]
	first.refuse(first.addr, true)
	s.kill(leader)
	if got := s.leader(leader); got != second || second.Stood() != 1 || first.Stood() != 0 {
		t.Errorf("%s leads; stood: first %d, second %d times", got.id, first.Stood(), second.Stood())
	}
}

// Who is first in turn sees the death last, and stands alone nevertheless: the
// second does not split the votes, though it has a majority without the first.
func TestMajorityWaitsForWhoSeesItLater(t *testing.T) {
	t.Parallel()
	s := newSite(t, 5, 0, long)
	leader, first, second := s.members[0], s.members[1], s.members[2]
	first.late.Store(12)
	s.kill(leader)
	if got := s.leader(leader); got != first || second.Stood() != 0 || s.stood() != 1 {
		t.Errorf("%s leads; stood: first %d times, second %d, all %d", got.id, first.Stood(), second.Stood(), s.stood())
	}
	s.settled(first)
}

func TestPrecedes(t *testing.T) {
	for _, c := range []struct {
		name     string
		a        Word
		aID      string
		b        Word
		bID      string
		precedes bool
	}{
		{"of equals, one by ID", Word{true, 3, 9}, "node-a", Word{true, 3, 9}, "node-b", true},
		{"and not the other", Word{true, 3, 9}, "node-b", Word{true, 3, 9}, "node-a", false},
		{"who has more", Word{true, 3, 10}, "node-b", Word{true, 3, 9}, "node-a", true},
		{"who has a newer entry, though fewer", Word{true, 3, 9}, "node-b", Word{true, 2, 90}, "node-a", true},
		{"who lacks something", Word{true, 3, 9}, "node-a", Word{true, 3, 10}, "node-b", false},
	} {
		if got := precedes(c.a, c.aID, c.b, c.bID); got != c.precedes {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// stale is a transport whose pool holds connections to a process that has ended.
type stale struct {
	Transport
	left int
}

func (s *stale) ask(granted *bool) error {
	if s.left > 0 {
		s.left--
		return io.EOF
	}
	*granted = true
	return nil
}

func (s *stale) RequestVote(_ raft.ServerID, _ raft.ServerAddress, _ *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return s.ask(&resp.Granted)
}

func (s *stale) RequestPreVote(_ raft.ServerID, _ raft.ServerAddress, _ *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return s.ask(&resp.Granted)
}

func TestVoteIsAskedOverAFreshConnection(t *testing.T) {
	for name, ask := range map[string]func(w *witness) (bool, error){
		"vote": func(w *witness) (bool, error) {
			var resp raft.RequestVoteResponse
			err := w.RequestVote("node-b", "", nil, &resp)
			return resp.Granted, err
		},
		"pre-vote": func(w *witness) (bool, error) {
			var resp raft.RequestPreVoteResponse
			err := w.RequestPreVote("node-b", "", nil, &resp)
			return resp.Granted, err
		},
	} {
		if granted, err := ask(newWitness(&stale{left: pooledConns})); err != nil || !granted {
			t.Errorf("%s: %v, granted %v", name, err, granted)
		}
		if _, err := ask(newWitness(&stale{left: 100})); !errors.Is(err, io.EOF) {
			t.Errorf("%s: a node that never answers: %v", name, err)
		}
	}
}
