package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"bmc/internal/manifest"
)

// fetchTimeout bounds one chunk's way here, however many wait for it, once its turn has
// come; a limit of the store's rate adds what it takes.
const fetchTimeout = 3 * time.Minute

// flight is the work that makes one chunk's file good: verifying what an earlier run
// left, asking another agent, or fetching. It is given up some time after the last who
// waited has gone.
type flight struct {
	digest  manifest.Digest
	cancel  context.CancelFunc
	waiting int           // guarded by Cache.mu, like the next four
	peers   int           // of those, other agents that have us fetch
	wanted  bool          // somebody has joined who wants it fetched, if it is not here
	asking  bool          // it has another agent fetch the chunk
	pinned  *entry        // kept from eviction until all who wait have opened it
	checked chan struct{} // closed when the disk has been looked at
	unread  error         // set before checked is closed: it could not be
	done    chan struct{}
	err     error // set before done is closed
}

// caller is for whom a chunk is opened.
type caller int

const (
	server  caller = iota // of the rack
	fetcher               // another agent, for which it is fetched
	finder                // another agent, which wants it only if it is here
)

// join returns the chunk's flight, started if there is none; nil if another agent asks
// for what we are having it, or a third one, fetch: agents never wait in a circle. It is
// nil, too, for one that wants only what is here, if nothing is. The caller holds mu.
func (c *Cache) join(d manifest.Digest, who caller) *flight {
	fl := c.flights[d]
	if who == fetcher && fl != nil && fl.asking || who == finder && c.entries[d] == nil {
		return nil
	}
	if fl == nil {
		ctx, cancel := context.WithCancel(c.ctx) // who holds a slot is bounded, so this is
		fl = &flight{digest: d, cancel: cancel, checked: make(chan struct{}), done: make(chan struct{})}
		c.flights[d] = fl
		c.wg.Go(func() {
			defer cancel()
			fl.err = c.obtain(ctx, fl)
			c.mu.Lock()
			c.unlist(fl)
			c.mu.Unlock()
			close(fl.done)
		})
	}
	fl.waiting++
	fl.wanted = fl.wanted || who != finder
	if who == fetcher {
		fl.peers++
	}
	return fl
}

// wait ends for a finder when the disk has been looked at, and else with the flight.
func (fl *flight) wait(ctx context.Context, who caller) error {
	done, err := fl.done, &fl.err
	if who == finder {
		done, err = fl.checked, &fl.unread
	}
	select {
	case <-done:
		return *err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leave is called by each who has joined. A server whose connection broke, or whose
// patience ended, comes back for the same chunk: what has been fetched meanwhile is not
// thrown away at once.
func (c *Cache) leave(fl *flight, who caller) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if who == fetcher {
		fl.peers--
	}
	if fl.waiting--; fl.waiting > 0 {
		return
	}
	if fl.pinned != nil {
		fl.pinned.open--
		fl.pinned = nil
		c.evict()
	}
	select {
	case <-fl.done:
	default:
		time.AfterFunc(c.linger, func() { c.abandon(fl) })
	}
}

// abandon gives a flight up if nobody waits for it. It is unlisted at once, so that a
// newcomer starts its own and does not inherit the cancellation.
func (c *Cache) abandon(fl *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fl.waiting == 0 {
		fl.cancel()
		c.unlist(fl)
	}
}

func (c *Cache) unlist(fl *flight) {
	if c.flights[fl.digest] == fl {
		delete(c.flights, fl.digest)
	}
}

// obtain leaves a verified entry behind, pinned if somebody still waits for it,
// or says why it cannot.
func (c *Cache) obtain(ctx context.Context, fl *flight) error {
	ok, err := c.recheck(ctx, fl)
	fl.unread = err
	close(fl.checked)
	if ok || err != nil {
		return err
	}
	if !c.wanted(fl) {
		return ErrElsewhere
	}
	if c.fromPeers(ctx, fl) {
		return nil
	}
	if err := enter(ctx, c.slots); err != nil {
		return err
	}
	defer func() { <-c.slots }()
	ctx, cancel := context.WithTimeout(ctx, c.fetchTime())
	defer cancel()
	body, size, err := c.cfg.Store.Get(ctx, fl.digest)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // what was read is verified
	if err := c.save(ctx, fl.digest, paced(ctx, body, c.rate), size); err != nil {
		return err
	}
	c.publish(fl, size, &c.stats.Fetched)
	return nil
}

// fetchTime is how long a chunk from the store may take: all slots share the limit.
func (c *Cache) fetchTime() time.Duration {
	if c.cfg.StoreRate <= 0 {
		return fetchTimeout
	}
	most := float64(fetches * manifest.MaxStoredSize(manifest.MaxChunkSize))
	return fetchTimeout + time.Duration(most/float64(c.cfg.StoreRate)*float64(time.Second))
}

// wanted says whether anybody wants the flight to fetch. If not, it is unlisted with the
// same breath: who comes now starts another.
func (c *Cache) wanted(fl *flight) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !fl.wanted {
		c.unlist(fl)
	}
	return fl.wanted
}

// enter takes one of the slots.
func enter(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// publish puts the flight's file into the books.
func (c *Cache) publish(fl *flight, size int64, count *uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*count++
	c.pin(fl, c.add(fl.digest, size, true))
	c.evict()
}

func (c *Cache) pin(fl *flight, e *entry) {
	if fl.waiting > 0 {
		fl.pinned = e
		e.open++
	}
}

// recheck verifies a file that was there at the start, and drops a bad one.
func (c *Cache) recheck(ctx context.Context, fl *flight) (bool, error) {
	d := fl.digest
	c.mu.Lock()
	e := c.entries[d]
	if e != nil && e.verified {
		c.pin(fl, e) // a flight that was given up made it after all
		c.mu.Unlock()
		return true, nil
	}
	c.mu.Unlock()
	if e == nil {
		return false, nil
	}
	if err := enter(ctx, c.slots); err != nil {
		return false, err
	}
	defer func() { <-c.slots }()
	f, err := os.Open(c.path(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("image cache: %w", err)
	}
	good := false
	if err == nil {
		defer f.Close() //nolint:errcheck // opened for reading
		hash := sha256.New()
		_, err = io.Copy(hash, f) // a read error is damage, too
		good = err == nil && manifest.Digest(hash.Sum(nil)) == d
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[d] != e { // evicted meanwhile
		return false, nil
	}
	if good {
		e.verified = true
		c.pin(fl, e)
		return true, nil
	}
	c.stats.Corrupt++
	c.drop(e)
	return false, nil
}
