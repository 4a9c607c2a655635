package cache

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"bmc/internal/manifest"
	"bmc/metal"
)

const (
	askFor  = time.Minute      // a chunk of another agent, its own fetch included
	downFor = 15 * time.Second // one that failed is left alone
	mayHave = 2                // agents that are asked whether they have a chunk, at most
)

// ErrElsewhere is the answer to another agent that asks for a chunk that is not here,
// or that we are having yet another one fetch.
var ErrElsewhere = errors.New("the chunk is not in this agent's cache")

// Peer is another agent of the rack.
type Peer interface {
	ID() string
	// Chunk is a chunk's stored bytes, to be verified. With fetch the other agent gets
	// what it lacks from the store. It may fail with ErrElsewhere. A silent peer is for
	// the implementation to notice.
	Chunk(ctx context.Context, d manifest.Digest, fetch bool) (io.ReadCloser, int64, error)
}

// OpenForPeer is Open for another agent. It never asks yet another agent for the
// chunk; without fetch it does not ask the store, either, and waits for the disk only.
func (c *Cache) OpenForPeer(ctx context.Context, d manifest.Digest, fetch bool) (*os.File, func(), error) {
	if fetch {
		return c.open(ctx, d, fetcher)
	}
	return c.open(ctx, d, finder)
}

// fromPeers gets the chunk from the rack's other agents, if one is to fetch it or has
// it already. Which one fetches a chunk from the store follows from the digest and the
// agents' IDs (rendezvous hashing): as long as agents agree on who lives, each chunk
// leaves the store once for all of them, and they share the work. Whatever goes wrong
// here, the store is left.
//
// No two agents wait for each other: what another agent has us fetch comes from the store
// alone, and who asks whether we have a chunk waits for our disk only. Questions of both
// kinds have slots of their own: those of the first kind may all be held by agents that
// wait for a flight of ours, which wants one of the second.
func (c *Cache) fromPeers(ctx context.Context, fl *flight) bool {
	if c.forPeer(fl) {
		return false
	}
	peers := c.live()
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Compare(weight(b.ID(), fl.digest), weight(a.ID(), fl.digest)) })
	fetches := len(peers) > 0 && weight(peers[0].ID(), fl.digest) > weight(c.cfg.Self, fl.digest)
	if fetches && c.ask(ctx, fl, peers[0], true) {
		return true
	}
	if fetches {
		peers = peers[1:]
	}
	for _, p := range peers[:min(len(peers), mayHave)] {
		if c.ask(ctx, fl, p, false) {
			return true
		}
	}
	return false
}

// weight is how much an agent is the one for a chunk.
func weight(agent string, d manifest.Digest) uint64 {
	h := sha256.New()
	h.Write([]byte(agent))
	h.Write([]byte{0})
	h.Write(d[:])
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// live is the agents that have not failed lately.
func (c *Cache) live() []Peer {
	peers := c.cfg.Peers()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	return slices.DeleteFunc(slices.Clone(peers), func(p Peer) bool {
		return p.ID() == c.cfg.Self || now.Before(c.down[p.ID()])
	})
}

// failed says whether an agent has failed lately.
func (c *Cache) failed(p Peer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Before(c.down[p.ID()])
}

// ask gets the chunk from one agent.
func (c *Cache) ask(ctx context.Context, fl *flight, p Peer, fetch bool) bool {
	if fetch && !c.asking(fl, true) {
		return false
	}
	if fetch {
		defer c.asking(fl, false)
	}
	slots := c.finds
	if fetch {
		slots = c.asks
	}
	if enter(ctx, slots) != nil {
		return false
	}
	defer func() { <-slots }()
	if c.failed(p) { // while this waited for the slot
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	size, theirs, err := c.saveFrom(ctx, fl.digest, p, fetch)
	if err == nil {
		c.publish(fl, size, &c.stats.Peers)
		return true
	}
	if errors.Is(err, ErrElsewhere) || errors.Is(ctx.Err(), context.Canceled) {
		return false
	}
	c.cfg.Log.Warn("image chunk not had from another agent", "agent", p.ID(), "chunk", fl.digest.String(), "err", err)
	if theirs && ctx.Err() == nil { // one that is slow is not silent: the peer would have noticed
		c.mu.Lock()
		defer c.mu.Unlock()
		c.down[p.ID()] = time.Now().Add(downFor)
	}
	return false
}

// saveFrom has the chunk sent and saves it. theirs says of an error that it is the other
// agent's or the network's, not that of the disk here.
func (c *Cache) saveFrom(ctx context.Context, d manifest.Digest, p Peer, fetch bool) (size int64, theirs bool, err error) {
	body, size, err := p.Chunk(ctx, d, fetch)
	if err != nil {
		return 0, true, err
	}
	defer body.Close() //nolint:errcheck // what was read is verified
	heard := &noting{r: body}
	err = c.save(ctx, d, heard, size)
	return size, heard.failed || metal.CodeOf(err) == metal.CodeCorruptChunk, err
}

// noting notes that reading has failed.
type noting struct {
	r      io.Reader
	failed bool
}

func (n *noting) Read(p []byte) (int, error) {
	m, err := n.r.Read(p)
	n.failed = n.failed || err != nil && !errors.Is(err, io.EOF)
	return m, err
}

// forPeer says whether another agent waits for the flight to fetch.
func (c *Cache) forPeer(fl *flight) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fl.peers > 0
}

// asking marks the flight as one that has another agent fetch. It is refused while an
// agent waits for us.
func (c *Cache) asking(fl *flight, yes bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if yes && fl.peers > 0 {
		return false
	}
	fl.asking = yes
	return true
}
