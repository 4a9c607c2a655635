package imaging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode"

	"bmc/internal/manifest"
	"bmc/metal"
)

const (
	dialFor     = 5 * time.Second
	attemptFor  = 30 * time.Second // then the rest is asked for anew
	silentFor   = 100 * time.Second
	quietFor    = 2 * time.Second
	corruptions = 3
)

// Fetcher gets chunks from the agent. It is used by several goroutines.
type Fetcher struct {
	client *http.Client
	// silent bounds how long a chunk may bring no new byte while others bring none, either,
	// or while it is refused: an agent that is gone, or that refuses, may have a successor.
	silent time.Duration
	quiet  time.Duration // a wait that is longer is told

	mu    sync.Mutex
	url   string
	moved chan struct{} // closed when url changes
	heard time.Time     // when the last byte of any chunk came
	tell  func(reason string)
}

// Tell has f hear, over and over, why chunks are waited for when that takes long. It
// replaces the one before; nil: nobody.
func (f *Fetcher) Tell(t func(reason string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tell = t
}

func (f *Fetcher) waits(err error) {
	f.mu.Lock()
	tell := f.tell
	f.mu.Unlock()
	if tell != nil {
		tell(err.Error())
	}
}

// NewFetcher takes a URL with one %s for the chunk's stored digest in hex; a
// literal per cent sign is doubled.
func NewFetcher(chunkURL string, connections int) (*Fetcher, error) {
	if !wellFormed(chunkURL) {
		return nil, metal.Errorf(metal.CodeImageUnavailable, "the agent's chunk URL is malformed")
	}
	return &Fetcher{url: chunkURL, moved: make(chan struct{}), silent: silentFor, quiet: quietFor, client: &http.Client{Transport: &http.Transport{
		DialContext:           (&net.Dialer{Timeout: dialFor}).DialContext,
		ResponseHeaderTimeout: attemptFor,
		MaxIdleConnsPerHost:   connections,
		MaxConnsPerHost:       connections,
		DisableCompression:    true,
	}}}, nil
}

func wellFormed(chunkURL string) bool {
	return strings.Count(chunkURL, "%s") == 1 && !strings.Contains(chunkURL, "%%s") && strings.HasPrefix(chunkURL, "http://")
}

// Move has every chunk that is not there yet come from another URL, from where
// it broke off. One that is malformed is ignored.
func (f *Fetcher) Move(chunkURL string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if chunkURL == f.url || !wellFormed(chunkURL) {
		return
	}
	f.url = chunkURL
	close(f.moved)
	f.moved = make(chan struct{})
}

// place is the URL at the moment, and a channel that is closed when it changes.
func (f *Fetcher) place() (string, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.url, f.moved
}

// Close ends idle connections.
func (f *Fetcher) Close() { f.client.CloseIdleConnections() }

// Get implements Source: it returns a chunk's raw bytes in dst, whose capacity
// suffices; scratch holds the stored frame. A chunk that arrives damaged is asked for
// again, with the word that it was: the agent then looks at what its disk holds.
func (f *Fetcher) Get(ctx context.Context, c manifest.Chunk, scratch, dst []byte) ([]byte, error) {
	var err error
	for n := range corruptions {
		var stored, raw []byte
		if stored, err = f.stored(ctx, c, scratch, n > 0); err != nil {
			return nil, err
		}
		if raw, err = manifest.DecodeFrame(c, stored, dst); err == nil {
			return raw, nil
		}
	}
	return nil, err
}

// stored reads the frame, going on where a broken connection left off, at
// whichever agent has it now. doubt: what came before was damaged.
func (f *Fetcher) stored(ctx context.Context, c manifest.Chunk, scratch []byte, doubt bool) ([]byte, error) {
	buf := scratch[:0:c.StoredSize]
	corrupt, tries, last := 0, 0, time.Now()
	for {
		n := len(buf)
		place, moved := f.place()
		var err error
		buf, err = f.attempt(ctx, moved, chunkURL(place, c), buf, doubt)
		if len(buf) > n {
			f.hears()
		}
		if err == nil {
			return buf, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var r refusal
		refused := errors.As(err, &r)
		if refused && r.corrupt {
			corrupt++
		}
		// One that begins to send, and brings nothing, may have a disk that cannot be read there. Who
		// does not answer has not heard of the doubt.
		if refused || errors.Is(err, errCut) {
			doubt = refused && r.status == http.StatusRequestedRangeNotSatisfiable || errors.Is(err, errCut) && len(buf) == n
		}
		if len(buf) != n || isClosed(moved) {
			tries, last = 0, time.Now()
		}
		if heard := f.lastHeard(); !refused && heard.After(last) { // it is alive, and slow: other chunks come
			last = heard
		}
		if corrupt >= corruptions {
			return nil, &metal.Error{Code: metal.CodeCorruptChunk,
				Message: fmt.Sprintf("chunk %s in the image store is not what was signed", c.StoredSHA256)}
		}
		if time.Since(last) > f.silent {
			return nil, &metal.Error{Code: metal.CodeImageUnavailable, Err: err,
				Message: fmt.Sprintf("chunk %s cannot be fetched from the agent: %v", c.StoredSHA256, err)}
		}
		if time.Since(last) > f.quiet {
			f.waits(err)
		}
		d := min(100*time.Millisecond<<min(tries, 6), 5*time.Second)
		tries++
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-moved:
		case <-time.After(d/2 + rand.N(d)):
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func chunkURL(place string, c manifest.Chunk) string {
	return strings.NewReplacer("%%", "%", "%s", c.StoredSHA256.String()).Replace(place)
}

// refusal is an agent's no: of one that has just started, or has handed the
// operation over, or for good.
type refusal struct {
	status  int
	corrupt bool   // the agent got a chunk from the store that is not what its digest says
	text    string // the agent's sentence
}

func (r refusal) Error() string {
	if r.text == "" {
		return fmt.Sprintf("HTTP status %d", r.status)
	}
	return r.text
}

const maxSentence = 300 // bytes

// sentence is what the agent says for people, in one line.
func sentence(resp *http.Response) string {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxSentence)) // what came before it broke off
	line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, line)
}

// reasonHeader is where the agent says the metal.Code of a refusal.
const reasonHeader = "Bmc-Reason"

// errCut says that an answer began and broke off.
var errCut = errors.New("the answer broke off")

// hears notes that a byte of any chunk has come, and lastHeard is when that was.
func (f *Fetcher) hears() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = time.Now()
}

func (f *Fetcher) lastHeard() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.heard
}

// attempt appends to buf what one request brings, until the chunks have moved.
// It returns buf in any case.
func (f *Fetcher) attempt(ctx context.Context, moved <-chan struct{}, from string, buf []byte, doubt bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptFor)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-moved:
			cancel()
		case <-done:
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return buf, errors.New("the agent's chunk URL is malformed") // err would quote the URL's HMAC
	}
	if len(buf) > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", len(buf)))
	}
	if doubt {
		req.Header.Set("Cache-Control", "no-cache")
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return buf, unquoted(err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusPartialContent && len(buf) > 0:
	case resp.StatusCode == http.StatusOK:
		buf = buf[:0]
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return buf[:0], refusal{status: resp.StatusCode, corrupt: true} // it is smaller than the manifest says
	default:
		return buf, refusal{resp.StatusCode, resp.Header.Get(reasonHeader) == string(metal.CodeCorruptChunk), sentence(resp)}
	}
	n, err := io.ReadFull(resp.Body, buf[len(buf):cap(buf)])
	buf = buf[:len(buf)+n]
	if err != nil {
		return buf, fmt.Errorf("%w: %w", errCut, unquoted(err))
	}
	if extra, _ := resp.Body.Read(make([]byte, 1)); extra > 0 {
		return buf[:0], errors.New("the agent's chunk is longer than the manifest says")
	}
	return buf, nil
}

// unquoted drops the URL from an error: its query carries a credential.
func unquoted(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
