package consensus

import (
	"context"
	"errors"
	"sync"
	"time"
)

// shared has questions that are asked at the same time share one answer. Who asks
// joins the next round, never one that has begun: an answer is about a moment
// after the question. While a round is under way, all who come wait for the
// one after it.
type shared struct {
	ask   func(ctx context.Context) (uint64, error)
	limit time.Duration // of one round

	ctx    context.Context // ends with close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	running bool
	next    *round // that has not begun; nil: nobody waits for one
}

// round is one question and who waits for its answer.
type round struct {
	done  chan struct{} // closed when the answer is there
	index uint64
	err   error
}

func newShared(limit time.Duration, ask func(ctx context.Context) (uint64, error)) *shared {
	s := &shared{ask: ask, limit: limit}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// index is the answer of a round that begins after the call. NO_LEADER when the
// round did not end in its time; ctx's error when ctx ended first.
func (s *shared) index(ctx context.Context) (uint64, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, errNoLeader(nil)
	}
	if s.next == nil {
		s.next = &round{done: make(chan struct{})}
	}
	r := s.next
	if !s.running {
		s.running = true
		s.wg.Go(s.run)
	}
	s.mu.Unlock()
	select {
	case <-r.done:
		return r.index, r.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// run asks, round after round, while anybody waits.
func (s *shared) run() {
	for {
		s.mu.Lock()
		r := s.next
		s.next = nil
		s.running = r != nil
		s.mu.Unlock()
		if r == nil {
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, s.limit)
		r.index, r.err = s.ask(ctx)
		if r.err != nil && ctx.Err() != nil && errors.Is(r.err, ctx.Err()) {
			r.err = errNoLeader(r.err) // the round's bound, not its callers'
		}
		cancel()
		close(r.done)
	}
}

// close ends the round under way and waits for it; later questions are refused.
func (s *shared) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}
