package consensus

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bmc/metal"
)

// A question asked while a round is under way must not get that round's answer:
// it may have been found before the question.
func TestSharedRoundBeginsAfterTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rounds atomic.Uint64
		gate := make(chan struct{})
		s := newShared(time.Second, func(ctx context.Context) (uint64, error) {
			n := rounds.Add(1)
			select {
			case <-gate:
				return n, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		})
		defer s.close()
		var wg sync.WaitGroup
		answers := make([]uint64, 11)
		ask := func(i int) {
			wg.Go(func() {
				var err error
				if answers[i], err = s.index(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		ask(0)
		synctest.Wait() // round 1 is under way
		for i := 1; i < len(answers); i++ {
			ask(i)
		}
		synctest.Wait()
		gate <- struct{}{}
		gate <- struct{}{}
		wg.Wait()
		if answers[0] != 1 {
			t.Errorf("the first got the answer of round %d", answers[0])
		}
		for _, a := range answers[1:] {
			if a != 2 {
				t.Errorf("one that came during round 1 got the answer of round %d", a)
			}
		}
		if n := rounds.Load(); n != 2 {
			t.Errorf("%d rounds for 11 questions, want 2", n)
		}
	})
}

func TestSharedRoundIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShared(time.Second, func(ctx context.Context) (uint64, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		})
		if _, err := s.index(t.Context()); metal.CodeOf(err) != metal.CodeNoLeader {
			t.Errorf("a round that took too long: %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := s.index(short); !errors.Is(err, context.DeadlineExceeded) || metal.CodeOf(err) == metal.CodeNoLeader {
			t.Errorf("a caller whose time is over: %v", err)
		}
		s.close()
		if _, err := s.index(t.Context()); metal.CodeOf(err) != metal.CodeNoLeader {
			t.Errorf("after close: %v", err)
		}
	})
}
