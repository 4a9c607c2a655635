package cache

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// piece is how many bytes are let through at a time under a limit.
const piece = 256 << 10

// limiter lets bytes a second through; nil: all.
func limiter(bytes int64) *rate.Limiter {
	if bytes <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytes), piece)
}

// paced reads at the limiter's rate.
func paced(ctx context.Context, r io.Reader, l *rate.Limiter) io.Reader {
	if l == nil {
		return r
	}
	return &pacedReader{ctx, r, l}
}

type pacedReader struct {
	ctx     context.Context //nolint:containedctx // of one chunk's fetch, as the reader is
	r       io.Reader
	limiter *rate.Limiter
}

func (p *pacedReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b[:min(len(b), piece)])
	if n > 0 {
		if wait := p.limiter.WaitN(p.ctx, n); wait != nil {
			return n, wait
		}
	}
	return n, err
}

// Pacer shares bytes a second among the servers of a rack, as equally as they ask for
// them: each has one piece in the queue at most, however many connections it has. The
// nil Pacer has no limit.
type Pacer struct {
	limiter *rate.Limiter

	mu    sync.Mutex
	turns map[string]*turn // by server
}

// turn is whose piece is in the queue.
type turn struct {
	taken chan struct{} // of one slot
	users int           // guarded by Pacer.mu
}

// NewPacer returns nil for 0: no limit.
func NewPacer(bytes int64) *Pacer {
	if bytes <= 0 {
		return nil
	}
	return &Pacer{limiter: limiter(bytes), turns: map[string]*turn{}}
}

// wait lets n bytes for a server through, at most piece.
func (p *Pacer) wait(ctx context.Context, server string, n int) error {
	t := p.use(server)
	defer p.unuse(server, t)
	select {
	case t.taken <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.taken }()
	return p.limiter.WaitN(ctx, n)
}

func (p *Pacer) use(server string) *turn {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.turns[server]
	if t == nil {
		t = &turn{taken: make(chan struct{}, 1)}
		p.turns[server] = t
	}
	t.users++
	return t
}

func (p *Pacer) unuse(server string, t *turn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(p.turns, server)
	}
}

// pacedWriter sends what it is given in pieces, each handed to the server's own writer
// as it is, file and all: sendfile is kept.
type pacedWriter struct {
	http.ResponseWriter
	ctx    context.Context //nolint:containedctx // of one request, as the writer is
	pacer  *Pacer
	server string
}

// Unwrap lets http.ResponseController reach the connection.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ReadFrom implements io.ReaderFrom.
func (w *pacedWriter) ReadFrom(src io.Reader) (total int64, err error) {
	left := int64(1) << 62
	if l, ok := src.(*io.LimitedReader); ok { // the kernel's way takes a file with a single limit
		src, left = l.R, l.N
		defer func() { l.N -= total }()
	}
	for left > 0 {
		ask := min(left, piece)
		if err := w.pacer.wait(w.ctx, w.server, int(ask)); err != nil {
			return total, err
		}
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(sendTimeout)) // a recorder in a test has none
		n, err := io.CopyN(w.ResponseWriter, src, ask)
		total += n
		left -= n
		if err == io.EOF { //nolint:errorlint // io.CopyN's own
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}
