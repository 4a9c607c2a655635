package consensus

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hashicorp/raft"
)

// Transport is raft's network, with the round before an election.
type Transport interface {
	raft.Transport
	raft.WithPreVote
}

// witness is a Transport that remembers, for each peer, the newest request of
// ours that it accepted. Raft's own VerifyLeader counts every answer that comes
// in after it was called, also one that a peer gave long before: a leader whose
// process was stopped finds such answers waiting in its sockets when it goes
// on, while others have elected a successor meanwhile.
type witness struct {
	Transport
	sent atomic.Uint64 // number of the newest request

	mu       sync.Mutex
	accepted map[raft.ServerID]acceptance
	refused  map[raft.ServerID]bool // the newest entries that were not pipelined: its disk is full, for one
}

// acceptance is a peer's yes to the request sent, as the term's leader's.
type acceptance struct{ term, sent uint64 }

func newWitness(t Transport) *witness {
	return &witness{Transport: t, accepted: map[raft.ServerID]acceptance{}, refused: map[raft.ServerID]bool{}}
}

// AppendEntries sends a request, heartbeats among them, and notes a peer's yes.
// What is pipelined is not noted: VerifyLeader causes a heartbeat anyway.
func (w *witness) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	sent := w.sent.Add(1)
	err := w.Transport.AppendEntries(id, target, args, resp)
	yes := err == nil && resp.Success && resp.Term == args.Term
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(args.Entries) > 0 || args.PrevLogEntry > 0 { // no heartbeat
		w.refused[id] = !yes
	}
	if yes && w.accepted[id].sent < sent { // heartbeats and entries go side by side
		w.accepted[id] = acceptance{args.Term, sent}
	}
	return err
}

// RequestVote asks again over a fresh connection when the pool's was one to a process
// that has ended since: raft asks each voter once in an election.
func (w *witness) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return freshly(func() error { return w.Transport.RequestVote(id, target, args, resp) })
}

// RequestPreVote does as RequestVote.
func (w *witness) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return freshly(func() error { return w.Transport.RequestPreVote(id, target, args, resp) })
}

// freshly asks until no connection of the pool's can be in the way.
func freshly(ask func() error) error {
	var err error
	for range pooledConns + 1 {
		if err = ask(); !broken(err) {
			break
		}
	}
	return err
}

func broken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// mark stands for now: requests after it have greater numbers.
func (w *witness) mark() uint64 { return w.sent.Load() }

// accepts says whether a member has accepted a request of the term sent after the
// mark, and not refused the newest entries. Raft pipelines entries to who takes them.
func (w *witness) accepts(id raft.ServerID, term, mark uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.accepted[id]
	return a.term == term && a.sent > mark && !w.refused[id]
}

// confirmed says whether a quorum of the voters, to which the node itself
// belongs if it votes, has accepted requests of the term sent after the mark.
func (w *witness) confirmed(self raft.ServerID, servers []raft.Server, term, mark uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	voters, yes := 0, 0
	for _, s := range servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if a := w.accepted[s.ID]; s.ID == self || a.term == term && a.sent > mark {
			yes++
		}
	}
	return voters > 0 && yes > voters/2
}
