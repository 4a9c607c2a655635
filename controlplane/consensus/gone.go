package consensus

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"bmc/internal/pause"
)

// Parts of Timing.Election.
const (
	goneFor  = 2  // a part of the way to the timeout, by which a follower has given up proving that its leader is gone
	goneLook = 20 // between two looks, or questions
	goneTurn = 4  // how long a follower leaves to each of those that should stand before it; the bound of one question
)

// At most, however long the timeout: by then every process's end has been noticed.
const (
	goneForAtMost  = 10 * time.Second
	goneLookAtMost = 20 * time.Millisecond
)

// Word is what a node answers who asks whether a term's leader is gone.
type Word struct {
	Gone                bool   // its process, as far as this node can see
	LastTerm, LastIndex uint64 // the end of this node's log
}

// watchLeader has this node stand as soon as its leader's process is found dead,
// without waiting for the election timeout. A kernel closes the connections of a
// process that ends and refuses new ones; a leader that is paused, cut off or without
// power does neither, and is left to the timeout.
func (n *Node) watchLeader(ctx context.Context) {
	if n.conf.Streams == nil || n.conf.AskGone == nil {
		return
	}
	stood := uint64(0) // term whose leader was found gone
	for {
		select {
		case <-n.conf.Streams.Ended():
		case <-ctx.Done():
			return
		}
		leader, term := n.follows()
		if self, ok := n.member(n.id); leader == "" || term == stood || !ok || !self.Voter {
			continue
		}
		if n.succeed(ctx, leader, term) {
			stood = term
		}
	}
}

// follows is the leader that this node follows, and its term; "": none.
func (n *Node) follows() (leader string, term uint64) {
	term = n.raft.CurrentTerm()
	_, id := n.raft.LeaderWithID()
	if n.raft.State() != raft.Follower || n.raft.CurrentTerm() != term || string(id) == n.id {
		return "", 0
	}
	return string(id), term
}

// succeed asks the other voters about a leader that has closed its connections and
// refuses new ones, and stands when a majority says the same. It says whether it did
// that. What ends it: the leader is heard of again, the term moves on, or time.
func (n *Node) succeed(ctx context.Context, leader string, term uint64) bool {
	election := n.conf.Timing.Election
	limited, cancel := context.WithTimeout(ctx, min(election/goneFor, goneForAtMost))
	defer cancel()
	var patience time.Time // with those that may see it a moment later, or stand already
	for n.left(leader, term) {
		if n.refused(limited, leader) {
			p := n.poll(limited, leader, term)
			enough := p.agreed > p.voters/2
			if enough && patience.IsZero() {
				patience = time.Now().Add(min(election/goneTurn, goneForAtMost/2))
			}
			if enough && (p.unsure == 0 || time.Now().After(patience)) {
				return n.take(ctx, leader, term, p)
			}
		}
		if pause.For(limited, min(election/goneLook, goneLookAtMost)) != nil {
			return false
		}
	}
	return false
}

// take stands in this node's turn, unless the term has moved on by then.
func (n *Node) take(ctx context.Context, leader string, term uint64, p poll) bool {
	if err := n.greet(); err != nil {
		n.log.Warn("this node does not reach itself: it waits for the election timeout", "node", n.id, "addr", n.conf.Transport.LocalAddr(), "err", err)
		return false
	}
	turn := time.NewTimer(time.Duration(p.before) * n.conf.Timing.Election / goneTurn)
	defer turn.Stop()
	for waits := true; waits; {
		changed := n.Changed()
		if !n.left(leader, term) {
			return false
		}
		select {
		case <-turn.C:
			waits = false
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
	if !n.left(leader, term) {
		return false
	}
	n.log.Info("the leader's process is gone: this node stands without waiting for the election timeout",
		"node", n.id, "leader", leader, "term", term, "agreed", p.agreed, "voters", p.voters)
	n.stood.Add(1)
	req := &raft.TimeoutNowRequest{RPCHeader: n.header()}
	if err := n.conf.Transport.TimeoutNow(raft.ServerID(n.id), n.conf.Transport.LocalAddr(), req, &raft.TimeoutNowResponse{}); err != nil {
		n.log.Warn("this node does not stand: it waits for the election timeout", "node", n.id, "err", err)
	}
	return true
}

// greet opens the connection over which take sends this node raft's own word to
// stand, so that no handshake lies between take's last look and that. Raft answers
// what is of term 0, and does nothing.
func (n *Node) greet() error {
	req := &raft.AppendEntriesRequest{RPCHeader: n.header()}
	return n.conf.Transport.AppendEntries(raft.ServerID(n.id), n.conf.Transport.LocalAddr(), req, &raft.AppendEntriesResponse{})
}

func (n *Node) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.id),
		Addr: n.conf.Transport.EncodePeer(raft.ServerID(n.id), n.conf.Transport.LocalAddr())}
}

// left says whether this node is a follower in the term and has no connection from
// its leader.
func (n *Node) left(leader string, term uint64) bool {
	_, now := n.raft.LeaderWithID()
	return !n.silent.Load() && n.raft.State() == raft.Follower && n.raft.CurrentTerm() == term &&
		(now == "" || string(now) == leader) && n.conf.Streams.From(leader) == 0
}

// refused says whether nobody listens at a member's address.
func (n *Node) refused(ctx context.Context, id string) bool {
	m, ok := n.member(id)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, n.conf.Timing.Election/goneTurn)
	defer cancel()
	return n.conf.Streams.Refused(ctx, m.Address)
}

// LeaderGone is this node's own word about a term's leader.
func (n *Node) LeaderGone(ctx context.Context, leader string, term uint64) Word {
	if n.conf.Streams == nil || !n.left(leader, term) || !n.refused(ctx, leader) {
		return Word{}
	}
	w := n.lastLog()
	w.Gone = true
	return w
}

// lastLog is the end of this node's log. The term of what a snapshot has replaced
// is 0: that costs a turn at most.
func (n *Node) lastLog() Word {
	var entry raft.Log
	last := n.raft.LastIndex()
	if err := n.logs.GetLog(last, &entry); err != nil {
		n.log.Debug("the end of the log is not at hand", "node", n.id, "index", last, "err", err)
	}
	return Word{LastTerm: entry.Term, LastIndex: last}
}

// poll is what the voters say: how many there are; how many find the leader gone,
// this node among them, and how many of these should stand before this node; and how
// many answer otherwise. Of more than three voters, one that has not seen it yet, or
// that stands, is no part of the majority: two that do not wait for it and for each
// other split the votes, and who loses remains a candidate until its timeout.
type poll struct{ voters, agreed, before, unsure int }

// poll asks every other voter. An answer that does not come in time is a no.
func (n *Node) poll(ctx context.Context, leader string, term uint64) (p poll) {
	ctx, cancel := context.WithTimeout(ctx, n.conf.Timing.Election/goneTurn)
	defer cancel()
	type answer struct{ agrees, before, unsure bool }
	answers, asked := make(chan answer), 0
	own := n.lastLog()
	for _, m := range n.Members() {
		if !m.Voter {
			continue
		}
		p.voters++
		switch m.ID {
		case leader:
			continue
		case n.id:
			p.agreed++
			continue
		}
		asked++
		go func() {
			w, err := n.conf.AskGone(ctx, m.Address, leader, term)
			if err != nil {
				n.log.Debug("a voter does not say whether the leader is gone", "node", n.id, "addr", m.Address, "err", err)
			}
			agrees := err == nil && w.Gone
			answers <- answer{agrees, agrees && precedes(w, m.ID, own, n.id), err == nil && !agrees}
		}()
	}
	for range asked { // each is bounded by ctx
		a := <-answers
		if a.agrees {
			p.agreed++
		}
		if a.before {
			p.before++
		}
		if a.unsure {
			p.unsure++
		}
	}
	return p
}

// precedes says whether a with its log should stand before b: the one whose log
// reaches further, as votes compare them, since b's would be refused; of equals,
// one by ID.
func precedes(a Word, aID string, b Word, bID string) bool {
	return cmp.Or(cmp.Compare(b.LastTerm, a.LastTerm), cmp.Compare(b.LastIndex, a.LastIndex), strings.Compare(aID, bID)) < 0
}

// Stood is how often this node stood because its leader's process was gone.
func (n *Node) Stood() uint64 { return n.stood.Load() }
