package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
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
	spoil func() error
}

func (m *mate) ID() string { return m.id }

func (m *mate) Chunk(ctx context.Context, d manifest.Digest, fetch bool) (io.ReadCloser, int64, error) {
	m.asked.Add(1)
	if m.spoil != nil {
		if err := m.spoil(); err != nil {
			return nil, 0, err
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
	for name, spoil := range map[string]func() error{
		"dead":  func() error { return errors.New("connection refused") },
		"liar":  func() error { return nil },
		"empty": func() error { return cache.ErrElsewhere },
	} {
		s, ds := chunks(20, 100)
		other := &mate{id: "agt-2", spoil: spoil}
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

// A file from before the start that is damaged is fetched for a peer, but a peer never
// learns of one that is not there.
func TestOpenForPeer(t *testing.T) {
	s, ds := chunks(2, 100)
	dir := t.TempDir()
	c := openCache(t, dir, 1000, s)
	if _, _, err := c.OpenForPeer(t.Context(), ds[0], false); !errors.Is(err, cache.ErrElsewhere) || s.gets.Load() != 0 {
		t.Errorf("%v, %d fetches", err, s.gets.Load())
	}
	read(t, c, ds[0])
	c.Close()
	if err := os.WriteFile(path(dir, ds[0]), make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	c = openCache(t, dir, 1000, s)
	f, release, err := c.OpenForPeer(t.Context(), ds[0], false)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if data, err := io.ReadAll(f); err != nil || manifest.Sum(data) != ds[0] {
		t.Error("damaged bytes for a peer")
	}
}
