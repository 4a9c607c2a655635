package light

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	headSize = 64 << 10
	// fullEvery is how often a rack's machines fetch the whole of a file that they
	// throw away, and fetchFor bounds each fetch.
	fullEvery = time.Minute
	fetchFor  = 3 * time.Minute
	maxKept   = 4 << 20 // of a script, a seed or a chunk's frame: chunks are bounded by the manifest, too
)

// files knows the large files that machines of a rack have fetched: kernel and
// initrd. One machine a minute fetches each of them whole; the others fetch its
// beginning and compare that, and the length, with what that machine got.
type files struct {
	mu    sync.Mutex
	known map[string]*file
}

type file struct {
	turn chan struct{} // holds one token
	size int64
	head [sha256.Size]byte
	at   time.Time // of the whole fetch
}

func (s *files) of(url string) *file {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[string]*file{}
	}
	f := s.known[url]
	if f == nil {
		f = &file{turn: make(chan struct{}, 1)}
		f.turn <- struct{}{}
		s.known[url] = f
	}
	return f
}

func (c *nic) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, ReadBufferSize: 16 << 10,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return c.dial(ctx, addr) },
	}}
}

// get fetches something small and returns it.
func (c *nic) get(ctx context.Context, url string, most int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchFor)
	defer cancel()
	resp, err := c.request(ctx, url, "")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("more than %d bytes", most)
	}
	return data, err
}

func (c *nic) request(ctx context.Context, url, span string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if span != "" {
		req.Header.Set("Range", span)
	}
	return c.client().Do(req)
}

// discard fetches something large; see files.
func (c *nic) discard(ctx context.Context, url string) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchFor)
	defer cancel()
	f := c.rack.files.of(url)
	select {
	case <-f.turn:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	size, head, fresh := f.size, f.head, time.Since(f.at) < fullEvery
	if !fresh {
		defer func() { f.turn <- struct{}{} }()
		var err error
		if f.size, f.head, err = c.whole(ctx, url); err != nil {
			f.at = time.Time{}
			return 0, err
		}
		f.at = time.Now()
		return f.size, nil
	}
	f.turn <- struct{}{}
	return size, c.beginning(ctx, url, size, head)
}

func (c *nic) whole(ctx context.Context, url string) (size int64, head [sha256.Size]byte, err error) {
	resp, err := c.request(ctx, url, "")
	if err != nil {
		return 0, head, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, head, fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	h := sha256.New()
	first, err := io.CopyN(h, resp.Body, headSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, head, err
	}
	rest, err := io.Copy(io.Discard, resp.Body)
	if err == nil && first+rest == 0 {
		err = errors.New("it is empty")
	}
	return first + rest, [sha256.Size]byte(h.Sum(nil)), err
}

func (c *nic) beginning(ctx context.Context, url string, size int64, head [sha256.Size]byte) error {
	n := min(size, headSize)
	resp, err := c.request(ctx, url, fmt.Sprintf("bytes=0-%d", n-1))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if want := fmt.Sprintf("bytes 0-%d/%d", n-1, size); resp.StatusCode != http.StatusPartialContent || resp.Header.Get("Content-Range") != want {
		return fmt.Errorf("HTTP status %d, %q, want %q", resp.StatusCode, resp.Header.Get("Content-Range"), want)
	}
	h := sha256.New()
	if _, err := io.CopyN(h, resp.Body, n); err != nil {
		return err
	}
	if [sha256.Size]byte(h.Sum(nil)) != head {
		return errors.New("it begins otherwise than a minute ago")
	}
	return nil
}
