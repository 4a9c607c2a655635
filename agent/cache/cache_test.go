package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"bmc/agent/cache"
	"bmc/internal/manifest"
	"bmc/metal"
)

// store is a Fetcher in memory. gate, if set, is called in Get.
type store struct {
	mu    sync.Mutex
	data  map[manifest.Digest][]byte
	gets  atomic.Int64
	gate  func(context.Context) error
	bend  func([]byte) []byte // spoils what is sent
	claim int64               // added to the size
}

func (s *store) Get(ctx context.Context, d manifest.Digest) (io.ReadCloser, int64, error) {
	s.gets.Add(1)
	if s.gate != nil {
		if err := s.gate(ctx); err != nil {
			return nil, 0, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.data[d]
	if !ok {
		return nil, 0, metal.Errorf(metal.CodeImageUnavailable, "no chunk %s", d)
	}
	size := int64(len(data)) + s.claim
	if s.bend != nil {
		data = s.bend(bytes.Clone(data))
	}
	return io.NopCloser(bytes.NewReader(data)), size, nil
}

// chunks makes a store with n chunks of size bytes.
func chunks(n, size int) (*store, []manifest.Digest) {
	s := &store{data: map[manifest.Digest][]byte{}}
	var ds []manifest.Digest
	for i := range n {
		data := bytes.Repeat([]byte{byte(i + 1)}, size)
		data[size-1] += byte(i / 256) // more than a byte can tell apart
		d := manifest.Sum(data)
		s.data[d] = data
		ds = append(ds, d)
	}
	return s, ds
}

func openCache(t *testing.T, dir string, max int64, f cache.Fetcher) *cache.Cache {
	t.Helper()
	c, err := cache.Open(cache.Config{Dir: dir, MaxBytes: max, Store: f})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// read opens, reads and releases a chunk.
func read(t *testing.T, c *cache.Cache, d manifest.Digest) {
	t.Helper()
	f, release, err := c.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	data, err := io.ReadAll(f)
	if err != nil || manifest.Sum(data) != d {
		t.Fatalf("chunk %s: %d wrong bytes, %v", d, len(data), err)
	}
}

func path(dir string, d manifest.Digest) string {
	return filepath.Join(dir, d.String()[:2], d.String())
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

func TestOneFetchForAll(t *testing.T) {
	s, ds := chunks(1, 100)
	started, proceed := make(chan struct{}), make(chan struct{})
	s.gate = func(context.Context) error { close(started); <-proceed; return nil }
	c := openCache(t, t.TempDir(), 1000, s)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { read(t, c, ds[0]) })
	}
	<-started
	close(proceed)
	wg.Wait()
	read(t, c, ds[0])
	if n := s.gets.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
	if st := c.Stats(); st.Chunks != 1 || st.Bytes != 100 || st.Fetched != 1 || st.Hits == 0 {
		t.Errorf("%+v", st)
	}
}

func TestEvictsTheLongestUnused(t *testing.T) {
	s, ds := chunks(4, 100)
	dir := t.TempDir()
	c := openCache(t, dir, 300, s)
	for _, i := range []int{0, 1, 2, 0, 3} {
		read(t, c, ds[i])
	}
	for i, want := range []bool{true, false, true, true} {
		if exists(path(dir, ds[i])) != want {
			t.Errorf("chunk %d there: %v", i, !want)
		}
	}
	if st := c.Stats(); st.Bytes != 300 || st.Evicted != 1 {
		t.Errorf("%+v", st)
	}
}

func TestNeverEvictsWhatIsOpen(t *testing.T) {
	s, ds := chunks(3, 100)
	dir := t.TempDir()
	c := openCache(t, dir, 100, s)
	f, release, err := c.Open(t.Context(), ds[0])
	if err != nil {
		t.Fatal(err)
	}
	read(t, c, ds[1])
	read(t, c, ds[2])
	if !exists(path(dir, ds[0])) {
		t.Error("an open chunk was evicted")
	}
	if data, err := io.ReadAll(f); err != nil || manifest.Sum(data) != ds[0] {
		t.Error(err)
	}
	release()
	release() // a second call has no effect
	if st := c.Stats(); st.Bytes > 100 {
		t.Errorf("%+v", st)
	}
}

// An image that is being written keeps its chunks while others can go; alone it does
// not make the cache grow.
func TestKeptGoesLast(t *testing.T) {
	s, ds := chunks(5, 100)
	dir := t.TempDir()
	c := openCache(t, dir, 300, s)
	release := c.Keep(ds[:2])
	again := c.Keep(ds[:1])
	for _, i := range []int{0, 1, 2, 3} {
		read(t, c, ds[i])
	}
	if !exists(path(dir, ds[0])) || !exists(path(dir, ds[1])) || exists(path(dir, ds[2])) {
		t.Error("a chunk of an image under way went before one that nobody needs")
	}
	release()
	release()
	read(t, c, ds[4])
	if !exists(path(dir, ds[0])) || exists(path(dir, ds[1])) {
		t.Error("what is kept twice is kept until it is released twice")
	}
	again()
	defer c.Keep(ds)()
	for _, d := range ds {
		read(t, c, d)
	}
	if st := c.Stats(); st.Bytes > 300 {
		t.Errorf("%+v", st)
	}
}

// A client whose connection breaks in the middle of a fetch finds it under way when it
// is back.
func TestBrokenOffFetchIsTakenUpAgain(t *testing.T) {
	s, ds := chunks(1, 100)
	entered, proceed := make(chan struct{}, 10), make(chan struct{})
	s.gate = func(context.Context) error { entered <- struct{}{}; <-proceed; return nil }
	c := openCache(t, t.TempDir(), 1000, s)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, _, err := c.Open(ctx, ds[0])
		gone <- err
	}()
	<-entered
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { close(proceed) })
	read(t, c, ds[0])
	if n := s.gets.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

// On a full disk the cache gives up what nobody reads, and says so when that is not
// enough.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=350k"); err != nil {
		t.Skip("a small file system wants root:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s, ds := chunks(6, 100_000)
	c := openCache(t, dir, 1<<30, s)
	for range 2 {
		for _, d := range ds {
			read(t, c, d)
		}
	}
	if st := c.Stats(); st.Evicted == 0 || st.Bytes > 350<<10 {
		t.Errorf("%+v", st)
	}
	for _, d := range ds[:3] {
		_, release, err := c.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
	}
	_, _, err := c.Open(t.Context(), ds[3])
	if metal.CodeOf(err) != metal.CodeImageUnavailable || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("%v", err)
	}
	before := s.gets.Load()
	if _, _, err := c.Open(t.Context(), ds[0]); err != nil || s.gets.Load() != before {
		t.Errorf("what is there is not served from a full disk: %v", err)
	}
}

func TestStoreRate(t *testing.T) {
	s, ds := chunks(3, 1<<20)
	c, err := cache.Open(cache.Config{Dir: t.TempDir(), MaxBytes: 1 << 30, Store: s, StoreRate: 10 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	began := time.Now()
	for _, d := range ds {
		read(t, c, d)
	}
	if took := time.Since(began); took < 250*time.Millisecond {
		t.Errorf("3 MiB at 10 MiB a second in %v", took)
	}
}

func TestSurvivesARestart(t *testing.T) {
	s, ds := chunks(3, 100)
	dir := t.TempDir()
	c := openCache(t, dir, 1000, s)
	for _, d := range ds {
		read(t, c, d)
	}
	c.Close()
	// The second chunk was damaged while nobody looked, the third cut short; a
	// fetch broke off; somebody left a file.
	if err := os.WriteFile(path(dir, ds[1]), bytes.Repeat([]byte{9}, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path(dir, ds[2]), 10); err != nil {
		t.Fatal(err)
	}
	part := path(dir, ds[0]) + ".part-123"
	alien := filepath.Join(dir, "README")
	for _, p := range []string{part, alien} {
		if err := os.WriteFile(p, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.gets.Store(0)
	c = openCache(t, dir, 1000, s)
	for range 2 {
		for _, d := range ds {
			read(t, c, d)
		}
	}
	if n := s.gets.Load(); n != 2 {
		t.Errorf("%d fetches, want 2: for the damaged ones", n)
	}
	if st := c.Stats(); st.Corrupt != 2 || st.Bytes != 300 {
		t.Errorf("%+v", st)
	}
	if exists(part) || !exists(alien) {
		t.Error("a part must go, what is not ours must stay")
	}
}

// A file that the disk has spoilt since it was verified is found out when a server doubts it.
func TestDoubtedFile(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"flipped": func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte{9}, 100), 0o600) },
		"cut":     func(path string) error { return os.Truncate(path, 50) },
		"gone":    os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			s, ds := chunks(1, 100)
			dir := t.TempDir()
			c := openCache(t, dir, 1000, s)
			srv := httptest.NewServer(c.Handler(cache.NewSigner([]byte("0123456789abcdef")), nil, slog.New(slog.DiscardHandler)))
			defer srv.Close()
			url := cache.NewSigner([]byte("0123456789abcdef")).URL(strings.TrimPrefix(srv.URL, "http://"), ds[0], "op", time.Now().Add(time.Minute))
			get := func(doubt bool) string {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
				if err != nil {
					t.Fatal(err)
				}
				if doubt {
					req.Header.Set("Cache-Control", "no-cache")
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return string(body)
			}
			want := strings.Repeat("\x01", 100)
			if get(false) != want || get(true) != want || s.gets.Load() != 1 {
				t.Fatalf("a good file was fetched %d times", s.gets.Load())
			}
			if err := spoil(filepath.Join(dir, ds[0].String()[:2], ds[0].String())); err != nil {
				t.Fatal(err)
			}
			if got := get(true); got != want || s.gets.Load() != 2 {
				t.Errorf("got %q after %d fetches", got, s.gets.Load())
			}
			if got := get(false); got != want {
				t.Errorf("and then %q", got)
			}
		})
	}
}

// Chunks that wait for their turn at a slow store, for longer than one may take, come
// in the end.
func TestLongQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ds := chunks(32, 100) // four turns of eight
		s.gate = func(context.Context) error { time.Sleep(2 * time.Minute); return nil }
		c := openCache(t, t.TempDir(), 1<<20, s)
		defer c.Close()
		var wg sync.WaitGroup
		for _, d := range ds {
			wg.Go(func() {
				_, release, err := c.Open(context.Background(), d)
				if err != nil {
					t.Error(err)
					return
				}
				release()
			})
		}
		wg.Wait()
	})
}

func TestRestartEvictsOldestFirst(t *testing.T) {
	s, ds := chunks(3, 100)
	dir := t.TempDir()
	c := openCache(t, dir, 1000, s)
	for i, d := range ds {
		read(t, c, d)
		at := time.Unix(int64(1000-i), 0) // the first was used last
		if err := os.Chtimes(path(dir, d), at, at); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	openCache(t, dir, 200, s)
	if !exists(path(dir, ds[0])) || !exists(path(dir, ds[1])) || exists(path(dir, ds[2])) {
		t.Error("not the longest unused was evicted")
	}
}

func TestFileRemovedBehindOurBack(t *testing.T) {
	s, ds := chunks(1, 100)
	dir := t.TempDir()
	c := openCache(t, dir, 1000, s)
	read(t, c, ds[0])
	if err := os.Remove(path(dir, ds[0])); err != nil {
		t.Fatal(err)
	}
	read(t, c, ds[0])
	if n := s.gets.Load(); n != 2 {
		t.Errorf("%d fetches", n)
	}
}

func TestBadStorePublishesNothing(t *testing.T) {
	for name, spoil := range map[string]func(*store){
		"flipped":   func(s *store) { s.bend = func(b []byte) []byte { b[7] ^= 1; return b } },
		"short":     func(s *store) { s.bend = func(b []byte) []byte { return b[:50] } },
		"long":      func(s *store) { s.bend = func(b []byte) []byte { return append(b, 1) } },
		"huge":      func(s *store) { s.claim = 1 << 40 },
		"no length": func(s *store) { s.claim = -200 },
	} {
		s, ds := chunks(1, 100)
		spoil(s)
		dir := t.TempDir()
		c := openCache(t, dir, 1000, s)
		if _, _, err := c.Open(t.Context(), ds[0]); metal.CodeOf(err) != metal.CodeCorruptChunk {
			t.Errorf("%s: %v", name, err)
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "*", "*")); len(files) > 0 {
			t.Errorf("%s: left behind %v", name, files)
		}
		s.bend, s.claim = nil, 0
		read(t, c, ds[0]) // the failure is not remembered
	}
}

// One caller that goes away must not take the others' fetch along; when all are
// gone, the fetch ends, and a newcomer gets a fetch of its own.
func TestCancellation(t *testing.T) {
	s, ds := chunks(1, 100)
	entered := make(chan context.Context, 10)
	proceed := make(chan struct{})
	s.gate = func(ctx context.Context) error {
		entered <- ctx
		select {
		case <-proceed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c := openCache(t, t.TempDir(), 1000, s)
	c.SetLinger(0)
	open := func() (context.CancelFunc, chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() {
			_, release, err := c.Open(ctx, ds[0])
			if err == nil {
				release()
			}
			result <- err
		}()
		return cancel, result
	}
	cancelA, a := open()
	first := <-entered
	cancelA()
	if err := <-a; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-first.Done() // nobody waits: given up
	cancelB, b := open()
	defer cancelB()
	<-entered
	cancelC, cc := open()
	cancelC()
	if err := <-cc; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(proceed)
	if err := <-b; err != nil {
		t.Error(err)
	}
}

func TestClose(t *testing.T) {
	s, ds := chunks(2, 100)
	s.gate = func(ctx context.Context) error {
		if s.gets.Load() == 1 {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
	c, err := cache.Open(cache.Config{Dir: t.TempDir(), MaxBytes: 1000, Store: s})
	if err != nil {
		t.Fatal(err)
	}
	read(t, c, ds[0])
	result := make(chan error, 1)
	go func() {
		_, _, err := c.Open(context.Background(), ds[1])
		result <- err
	}()
	c.Close()
	if err := <-result; err == nil {
		t.Error("a fetch outlived Close")
	}
	if _, _, err := c.Open(t.Context(), ds[0]); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if _, err := cache.Open(cache.Config{Dir: t.TempDir(), Store: s}); err == nil {
		t.Error("a cache of nothing was opened")
	}
}

// Many readers, a cache much too small, for the race detector.
func TestThrashing(t *testing.T) {
	s, ds := chunks(16, 1000)
	c := openCache(t, t.TempDir(), 3000, s)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 100 {
				ctx, cancel := context.WithCancel(t.Context())
				if (i+w)%7 == 0 {
					cancel()
				}
				d := ds[(i*7+w*3)%len(ds)]
				f, release, err := c.Open(ctx, d)
				cancel()
				if err != nil {
					continue
				}
				data, err := io.ReadAll(f)
				release()
				if err != nil || manifest.Sum(data) != d {
					t.Error(fmt.Errorf("wrong bytes: %w", err))
				}
			}
		})
	}
	wg.Wait()
	if st := c.Stats(); st.Bytes > 3000 || st.Bytes < 0 {
		t.Errorf("%+v", st)
	}
}
