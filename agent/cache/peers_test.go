package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"bmc/agent/cache"
	"bmc/internal/manifest"
)

// perChunk counts what leaves a store, by chunk.
type perChunk struct {
	*store
	mu    sync.Mutex
	count map[manifest.Digest]int
}

func (s *perChunk) Get(ctx context.Context, d manifest.Digest) (io.ReadCloser, int64, error) {
	s.mu.Lock()
	s.count[d]++
	s.mu.Unlock()
	return s.store.Get(ctx, d)
}

// mate is another agent of the rack, without a network between.
type mate struct {
	id    string
	cache *cache.Cache
	asked atomic.Int64
	spoil func(context.Context) error
	body  io.Reader // what is sent instead of a chunk; nil: zeros
}

func (m *mate) ID() string { return m.id }

func (m *mate) Chunk(ctx context.Context, d manifest.Digest, fetch bool) (io.ReadCloser, int64, error) {
	m.asked.Add(1)
	if m.spoil != nil {
		if err := m.spoil(ctx); err != nil {
			return nil, 0, err
		}
		if m.body != nil {
			return io.NopCloser(m.body), 100, nil
		}
		return io.NopCloser(bytes.NewReader(make([]byte, 100))), 100, nil
	}
	f, release, err := m.cache.OpenForPeer(ctx, d, fetch)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		release()
		return nil, 0, err
	}
	return closer{f, release}, info.Size(), nil
}

type closer struct {
	io.Reader
	release func()
}

func (c closer) Close() error { c.release(); return nil }

// rack makes agents that know each other.
func rack(t *testing.T, s cache.Fetcher, ids ...string) []*mate {
	t.Helper()
	var mates []*mate
	for _, id := range ids {
		mates = append(mates, &mate{id: id})
	}
	for i, m := range mates {
		var others []cache.Peer
		for j, o := range mates {
			if i != j {
				others = append(others, o)
			}
		}
		c, err := cache.Open(cache.Config{Dir: t.TempDir(), MaxBytes: 1 << 30, Store: s, Self: m.id, Peers: func() []cache.Peer { return others }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		m.cache = c
	}
	return mates
}

// Twenty servers at two agents want the same image at the same time, each from another
// place on: every chunk leaves the store once, and the agents share the work.
func TestEachChunkLeavesTheStoreOnce(t *testing.T) {
	for _, ids := range [][]string{{"agt-1", "agt-2"}, {"agt-1", "agt-2", "agt-3"}} {
		base, ds := chunks(64, 1000)
		s := &perChunk{store: base, count: map[manifest.Digest]int{}}
		mates := rack(t, s, ids...)
		var wg sync.WaitGroup
		for n := range 20 {
			wg.Go(func() {
				for i := range ds {
					read(t, mates[n%len(mates)].cache, ds[(i+n*3)%len(ds)])
				}
			})
		}
		wg.Wait()
		for d, n := range s.count {
			if n != 1 {
				t.Errorf("%d agents: chunk %s left the store %d times", len(ids), d, n)
			}
		}
		for _, m := range mates {
			st := m.cache.Stats()
			if st.Fetched < 5 || st.Fetched+st.Peers != 64 {
				t.Errorf("%d agents: %+v", len(ids), st)
			}
		}
	}
}

// Two agents with nothing, at each three servers with all their connections, each server
// from another place on: more wait than may ask at the same time, and half of what each agent asks for is asked of it, too.
// The agents do not wait for each other's questions. The time is the store's alone.
func TestFullAgentsDoNotBlockEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base, ds := chunks(400, 100)
		base.gate = func(ctx context.Context) error {
			select {
			case <-time.After(20 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		s := &perChunk{store: base, count: map[manifest.Digest]int{}}
		mates := rack(t, s, "agt-1", "agt-2")
		began := time.Now()
		var wg sync.WaitGroup
		for n := range 6 {
			var next atomic.Int64
			for range 16 {
				wg.Go(func() {
					for i := int(next.Add(1)) - 1; i < len(ds); i = int(next.Add(1)) - 1 {
						read(t, mates[n%len(mates)].cache, ds[(i+n*len(ds)/6)%len(ds)])
					}
				})
			}
		}
		wg.Wait()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		if n := s.gets.Load(); n != 400 || len(s.count) != 400 {
			t.Errorf("%d chunks left the store in %d fetches, want each of 400 once", len(s.count), n)
		}
	})
}

// What an agent has lost, or never had, it gets from the one that has it, although the
// chunk is its own to fetch.
func TestPeerThatHasIt(t *testing.T) {
	s, ds := chunks(20, 100)
	mates := rack(t, s, "agt-1")
	for _, d := range ds {
		read(t, mates[0].cache, d)
	}
	newcomer, err := cache.Open(cache.Config{Dir: t.TempDir(), MaxBytes: 1 << 30, Store: s, Self: "agt-2", Peers: func() []cache.Peer { return []cache.Peer{mates[0]} }})
	if err != nil {
		t.Fatal(err)
	}
	defer newcomer.Close()
	for _, d := range ds {
		read(t, newcomer, d)
	}
	if n := s.gets.Load(); n != 20 {
		t.Errorf("%d chunks left the store, want 20", n)
	}
}

// Agents that disagree each think that the other is to fetch: nobody waits in a circle.
func TestAgentsThatDisagree(t *testing.T) {
	s, ds := chunks(20, 100)
	a, b := &mate{id: "agt-z"}, &mate{id: "agt-z"}
	for _, m := range []struct{ of, other *mate }{{a, b}, {b, a}} {
		c, err := cache.Open(cache.Config{Dir: t.TempDir(), MaxBytes: 1 << 30, Store: s, Self: "agt-a", Peers: func() []cache.Peer { return []cache.Peer{m.other} }})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		m.of.cache = c
	}
	began := time.Now()
	var wg sync.WaitGroup
	for _, d := range ds {
		wg.Go(func() { read(t, a.cache, d) })
		wg.Go(func() { read(t, b.cache, d) })
	}
	wg.Wait()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if n := s.gets.Load(); n < 20 || n > 40 {
		t.Errorf("%d fetches", n)
	}
}

// An agent that is dead, or sends other bytes, costs one question.
func TestBadPeer(t *testing.T) {
	for name, err := range map[string]error{
		"dead": errors.New("connection refused"), "liar": nil, "breaks off": nil, "empty": cache.ErrElsewhere,
	} {
		s, ds := chunks(20, 100)
		other := &mate{id: "agt-2", spoil: func(context.Context) error { return err }}
		if name == "breaks off" {
			other.body = io.MultiReader(bytes.NewReader(make([]byte, 10)), iotest.ErrReader(errors.New("connection reset")))
		}
		c, err := cache.Open(cache.Config{Dir: t.TempDir(), MaxBytes: 1 << 30, Store: s, Self: "agt-1", Peers: func() []cache.Peer { return []cache.Peer{other} }})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			read(t, c, d)
		}
		want := map[bool]int64{true: 20, false: 1}[name == "empty"]
		if n := other.asked.Load(); n != want || s.gets.Load() != 20 {
			t.Errorf("%s: asked %d times, want %d; %d fetches", name, n, want, s.gets.Load())
		}
		c.Close()
	}
}

// A chunk that has no place here says nothing about the agent that sent it.
func TestNoRoomIsNotThePeersFault(t *testing.T) {
	s, ds := chunks(20, 100)
	mates := rack(t, s, "agt-1")
	for _, d := range ds {
		read(t, mates[0].cache, d)
	}
	dir := t.TempDir()
	c, err := cache.Open(cache.Config{Dir: dir, MaxBytes: 1 << 30, Store: s, Self: "agt-2", Peers: func() []cache.Peer { return []cache.Peer{mates[0]} }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	blocked := filepath.Dir(path(dir, ds[0]))
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Open(t.Context(), ds[0]); err == nil {
		t.Fatal("a chunk without a directory was saved")
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	before := s.gets.Load()
	for _, d := range ds {
		read(t, c, d)
	}
	if n := s.gets.Load() - before; n != 0 {
		t.Errorf("%d chunks were read from the store although the other agent has them", n)
	}
}

// An agent that is at work for longer than we wait is not dead: the next chunk is asked
// of it.
func TestSlowPeerIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ds := chunks(2, 100)
		other := &mate{id: "agt-2", spoil: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		c, err := cache.Open(cache.Config{Dir: t.TempDir(), MaxBytes: 1 << 30, Store: s, Self: "agt-1", Peers: func() []cache.Peer { return []cache.Peer{other} }})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, d := range ds {
			read(t, c, d)
		}
		if n := other.asked.Load(); n != 2 || s.gets.Load() != 2 {
			t.Errorf("asked %d times, %d fetches, want 2 and 2", n, s.gets.Load())
		}
	})
}

// An agent that hangs costs the time until that shows once, however many wait to ask it.
func TestHungPeerCostsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ds := chunks(100, 100)
		other := &mate{id: "agt-2", spoil: func(context.Context) error { time.Sleep(5 * time.Second); return errors.New("silent") }}
		c, err := cache.Open(cache.Config{Dir: t.TempDir(), MaxBytes: 1 << 30, Store: s, Self: "agt-1", Peers: func() []cache.Peer { return []cache.Peer{other} }})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		var wg sync.WaitGroup
		for _, d := range ds {
			wg.Go(func() { read(t, c, d) })
		}
		wg.Wait()
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("it took %v, and %d questions", took, other.asked.Load())
		}
	})
}

// Agents share chunks about equally.
func TestWeights(t *testing.T) {
	var mine int
	for i := range 1000 {
		d := manifest.Sum(fmt.Append(nil, i))
		if cache.Weight("agt-1", d) > cache.Weight("agt-2", d) {
			mine++
		}
	}
	if mine < 400 || mine > 600 {
		t.Errorf("%d of 1,000", mine)
	}
}

// Another agent that wants only what is here has nothing fetched, neither a chunk that is
// not here nor one whose file from before the start is damaged. A server that waits with
// it gets that one fetched.
func TestOpenForPeer(t *testing.T) { synctest.Test(t, testOpenForPeer) }

func testOpenForPeer(t *testing.T) {
	s, ds := chunks(12, 100)
	dir := t.TempDir()
	c := openCache(t, dir, 10000, s)
	if _, _, err := c.OpenForPeer(t.Context(), ds[0], false); !errors.Is(err, cache.ErrElsewhere) || s.gets.Load() != 0 {
		t.Errorf("not here: %v, %d fetches", err, s.gets.Load())
	}
	for _, d := range ds[:4] {
		read(t, c, d)
	}
	c.Close()
	for _, d := range ds[:3] {
		if err := os.WriteFile(path(dir, d), make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := s.gets.Load()
	c = openCache(t, dir, 10000, s)
	if _, _, err := c.OpenForPeer(t.Context(), ds[0], false); !errors.Is(err, cache.ErrElsewhere) || s.gets.Load() != before {
		t.Errorf("damaged: %v, %d fetches", err, s.gets.Load()-before)
	}
	forPeer(t, c, ds[1], true)
	forPeer(t, c, ds[3], false)
	if n := s.gets.Load() - before; n != 1 {
		t.Errorf("%d fetches of the one chunk that was to be fetched", n)
	}

	// The fetches are all taken, so that the file is not looked at until both wait.
	proceed := make(chan struct{})
	s.gate = func(context.Context) error { <-proceed; return nil }
	var wg sync.WaitGroup
	for _, d := range ds[4:] {
		wg.Go(func() { read(t, c, d) })
	}
	synctest.Wait()
	wg.Go(func() {
		// The server's fetch may be done before this one looks again: then it is here.
		_, release, err := c.OpenForPeer(t.Context(), ds[2], false)
		if err == nil {
			release()
		} else if !errors.Is(err, cache.ErrElsewhere) {
			t.Errorf("damaged, and wanted by a server: %v", err)
		}
	})
	synctest.Wait()
	wg.Go(func() { read(t, c, ds[2]) })
	synctest.Wait()
	close(proceed)
	wg.Wait()
}

func forPeer(t *testing.T, c *cache.Cache, d manifest.Digest, fetch bool) {
	t.Helper()
	f, release, err := c.OpenForPeer(t.Context(), d, fetch)
	if err != nil {
		t.Error(err)
		return
	}
	defer release()
	if data, err := io.ReadAll(f); err != nil || manifest.Sum(data) != d {
		t.Error("damaged bytes for a peer")
	}
}
