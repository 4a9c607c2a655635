// Package cache keeps image chunks on an agent's disk, each in a file named by
// its digest, and serves them to the servers of its rack. What it lacks it gets from
// the rack's other agents or from the image store (peers.go).
//
// A file is published by rename once its SHA-256 is right, without fsync: what a
// crash leaves torn is found out, because a file from before the start is
// verified again when it is first opened, and fetched anew if it is wrong. So is one that a
// server found damaged (Doubt): what the disk spoils later is not served for ever.
package cache

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"bmc/internal/manifest"
)

const (
	fetches   = 8                // from the store, at the same time
	asks      = 16               // of other agents, at the same time; as many questions whether they have it
	linger    = 10 * time.Second // a fetch that nobody waits for any more: who was cut off comes back
	headroom  = 64 << 20         // bytes that are given up at once when the disk is full
	tempInfix = ".part-"
)

// Fetcher gets a chunk's stored bytes; *imagestore.Store is one.
type Fetcher interface {
	Get(ctx context.Context, digest manifest.Digest) (io.ReadCloser, int64, error)
}

// Config of a Cache.
type Config struct {
	Dir      string // created if missing; only one Cache may use it
	MaxBytes int64  // more is held only for what is open
	Store    Fetcher
	// StoreRate is how many bytes a second are read from the store at most; 0: no limit.
	StoreRate int64

	Self  string        // this agent's ID, by which the rack's agents share the work
	Peers func() []Peer // the rack's other agents, as last heard of; nil: there are none
	Log   *slog.Logger  // nil: nothing is logged
}

// Cache is safe for concurrent use.
type Cache struct {
	cfg    Config
	linger time.Duration
	slots  chan struct{} // one for each fetch under way
	asks   chan struct{} // one for each chunk that another agent is to fetch for us
	finds  chan struct{} // one for each question whether another agent has a chunk
	rate   *rate.Limiter // of the store; nil: no limit

	ctx    context.Context //nolint:containedctx // the life of the fetches, which outlive the first caller's request
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	entries map[manifest.Digest]*entry
	used    *list.List // of *entry, the latest used first
	bytes   int64
	flights map[manifest.Digest]*flight
	kept    map[manifest.Digest]int // by how many Keeps
	down    map[string]time.Time    // agents that are not asked until then
	stats   Stats
}

// entry is a published file.
type entry struct {
	digest   manifest.Digest
	size     int64
	verified bool // since the start, and since the last doubt
	open     int  // handles given out and not released
	element  *list.Element
}

// Stats counts since the start; Chunks and Bytes are of now.
type Stats struct {
	Chunks  int
	Bytes   int64
	Hits    uint64
	Fetched uint64 // from the store
	Peers   uint64 // from other agents
	Corrupt uint64 // files found damaged after a restart or a doubt
	Evicted uint64
}

// Open takes up the cache in a directory.
func Open(cfg Config) (*Cache, error) {
	if cfg.MaxBytes <= 0 {
		return nil, fmt.Errorf("image cache: max_bytes is %d", cfg.MaxBytes)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	if cfg.Peers == nil {
		cfg.Peers = func() []Peer { return nil }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Cache{
		cfg: cfg, linger: linger, slots: make(chan struct{}, fetches), asks: make(chan struct{}, asks), finds: make(chan struct{}, asks), rate: limiter(cfg.StoreRate),
		entries: map[manifest.Digest]*entry{}, used: list.New(), flights: map[manifest.Digest]*flight{},
		kept: map[manifest.Digest]int{}, down: map[string]time.Time{},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if err := c.scan(); err != nil {
		c.cancel()
		return nil, err
	}
	return c, nil
}

// Close ends the fetches under way and waits for them. Files that are open stay
// readable.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}

// Open returns the chunk's stored bytes as a file, fetched if need be, and what
// to call, once or more, when done with it. Callers that want the same chunk
// at the same time share one fetch.
func (c *Cache) Open(ctx context.Context, digest manifest.Digest) (*os.File, func(), error) {
	return c.open(ctx, digest, server)
}

// open is Open for whoever it is.
func (c *Cache) open(ctx context.Context, digest manifest.Digest, who caller) (*os.File, func(), error) {
	f, release, fl, err := c.take(digest, true, who)
	for fl != nil {
		if err := fl.wait(ctx, who); err != nil {
			c.leave(fl, who)
			return nil, nil, err
		}
		done := fl
		f, release, fl, err = c.take(digest, false, who)
		c.leave(done, who) // not before: until now it kept the file from eviction
	}
	return f, release, err
}

// take opens a verified file, or joins the flight that will provide it.
func (c *Cache) take(digest manifest.Digest, first bool, who caller) (*os.File, func(), *flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, nil, fmt.Errorf("image cache: %w", os.ErrClosed)
	}
	if e := c.entries[digest]; e != nil && e.verified {
		f, err := os.Open(c.path(digest))
		if err == nil {
			if first {
				c.stats.Hits++
			}
			return f, c.hold(e, f), nil, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, nil, fmt.Errorf("image cache: %w", err)
		}
		c.drop(e) // somebody removed it behind our back
	}
	if fl := c.join(digest, who); fl != nil {
		return nil, nil, fl, nil
	}
	return nil, nil, nil, ErrElsewhere
}

// Keep has chunks stay, as long as there are others to give up, until release is
// called: those of an image that is being written.
func (c *Cache) Keep(digests []manifest.Digest) (release func()) {
	digests = slices.Clone(digests)
	add := func(n int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, d := range digests {
			if c.kept[d] += n; c.kept[d] == 0 {
				delete(c.kept, d)
			}
		}
	}
	add(1)
	return sync.OnceFunc(func() { add(-1) })
}

// Doubt has a chunk's file verified again before it is next opened, and fetched anew if it
// is wrong: whoever had it says that it is, and disks lose what they held.
func (c *Cache) Doubt(digest manifest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[digest]; e != nil {
		e.verified = false
	}
}

// Stats returns the counters.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Chunks, s.Bytes = len(c.entries), c.bytes
	return s
}

// hold keeps e from being evicted until the returned function is called, and
// notes the use in the file's time, which orders the files after a restart.
func (c *Cache) hold(e *entry, f *os.File) func() {
	e.open++
	c.used.MoveToFront(e.element)
	now := time.Now()
	_ = os.Chtimes(f.Name(), now, now) // at worst it is evicted too early
	return sync.OnceFunc(func() {
		_ = f.Close() // opened for reading
		c.mu.Lock()
		defer c.mu.Unlock()
		e.open--
		c.evict()
	})
}

// add puts a file into the books; the caller holds mu.
func (c *Cache) add(digest manifest.Digest, size int64, verified bool) *entry {
	if old := c.entries[digest]; old != nil { // two flights, one of them given up
		old.verified = old.verified || verified
		return old
	}
	e := &entry{digest: digest, size: size, verified: verified}
	e.element = c.used.PushFront(e)
	c.entries[digest] = e
	c.bytes += size
	return e
}

// forget takes an entry out of the books and leaves its file.
func (c *Cache) forget(e *entry) {
	if c.entries[e.digest] != e {
		return
	}
	delete(c.entries, e.digest)
	c.used.Remove(e.element)
	c.bytes -= e.size
}

// drop takes an entry out of the books and its file off the disk. Who has it
// open can read on.
func (c *Cache) drop(e *entry) {
	c.forget(e)
	_ = os.Remove(c.path(e.digest)) // gone already, or found again by the next scan
}

// evict drops the longest unused chunks until the rest fits: first those of no image
// that is being written, none that is open. The caller holds mu.
func (c *Cache) evict() { c.shrink(c.cfg.MaxBytes) }

func (c *Cache) shrink(to int64) {
	for _, all := range []bool{false, true} {
		for el := c.used.Back(); el != nil && c.bytes > to; {
			e := el.Value.(*entry)
			el = el.Prev()
			if e.open == 0 && (all || c.kept[e.digest] == 0) {
				c.drop(e)
				c.stats.Evicted++
			}
		}
	}
}

// shed gives up chunks because the disk has no room for n bytes more; false: there is
// nothing to give up.
func (c *Cache) shed(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	had := c.bytes
	c.shrink(max(had-max(n, headroom), 0))
	return c.bytes < had
}

func (c *Cache) path(d manifest.Digest) string {
	name := d.String()
	return filepath.Join(c.cfg.Dir, name[:2], name)
}

// scan takes up the files of an earlier run, oldest first, and removes what is
// not a chunk's.
func (c *Cache) scan() error {
	type found struct {
		digest manifest.Digest
		size   int64
		used   time.Time
	}
	var files []found
	err := filepath.WalkDir(c.cfg.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		digest, err := manifest.ParseDigest(d.Name())
		if err != nil || path != c.path(digest) || !info.Mode().IsRegular() {
			if strings.Contains(d.Name(), tempInfix) {
				return os.Remove(path)
			}
			return nil // not ours
		}
		files = append(files, found{digest, info.Size(), info.ModTime()})
		return nil
	})
	if err != nil {
		return fmt.Errorf("image cache: %w", err)
	}
	slices.SortFunc(files, func(a, b found) int { return a.used.Compare(b.used) })
	for _, f := range files {
		c.add(f.digest, f.size, false)
	}
	c.evict()
	return nil
}
