package client

import (
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// What a node says in the metadata of a stale answer.
const (
	mdStaleAge      = "bmc-stale-age"
	mdStaleRevision = "bmc-stale-revision"
)

// Staleness is how old an answer may be that came from a node's replica.
type Staleness struct {
	Revision uint64        // of the replica
	Age      time.Duration // since the node last heard from a leader; 0 at the leader
	Never    bool          // it has heard from none since it started
}

// stale is whether reads may be stale, and the oldest answer so far.
type stale struct {
	mu     sync.Mutex
	allow  bool
	any    bool
	oldest Staleness
}

// AllowStale lets every read from now on be answered from any node's replica, with
// or without a leader; Stale then says how old the answers were.
func (c *Client) AllowStale() {
	c.conn.stale.mu.Lock()
	defer c.conn.stale.mu.Unlock()
	c.conn.stale.allow = true
}

// Stale is the oldest of the stale answers to this client; false: there was none.
func (c *Client) Stale() (Staleness, bool) {
	s := &c.conn.stale
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.oldest, s.any
}

// prepared is a read that allows a stale answer where that is allowed.
func (s *stale) prepared(request any) any {
	s.mu.Lock()
	allow := s.allow
	s.mu.Unlock()
	msg, ok := request.(proto.Message)
	if !allow || !ok {
		return request
	}
	r := msg.ProtoReflect()
	f := shapeOf(r.Descriptor()).allowStale
	if f == nil || r.Get(f).Bool() {
		return request
	}
	out := proto.Clone(msg)
	out.ProtoReflect().Set(f, protoreflect.ValueOfBool(true))
	return out
}

// learn notes what an answer's metadata says. A node of older software says no revision.
func (s *stale) learn(md metadata.MD) {
	age := md.Get(mdStaleAge)
	if len(age) == 0 {
		return
	}
	var got Staleness
	if rev := md.Get(mdStaleRevision); len(rev) > 0 {
		got.Revision, _ = strconv.ParseUint(rev[0], 10, 64) //nolint:errcheck // 0: not known
	}
	d, err := time.ParseDuration(age[0])
	got.Age, got.Never = d, err != nil
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.any || got.Never && !s.oldest.Never || got.Never == s.oldest.Never && got.Age > s.oldest.Age {
		s.oldest = got
	}
	s.any = true
}
