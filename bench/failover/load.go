package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"bmc/chaos/history"
)

const (
	liveKeys   = 32              // of one writer; then its oldest goes
	names      = 2 * liveKeys    // of one writer: a name comes again, so that each has a history
	readEvery  = time.Second / 2 // of the reader that lists all keys
	readWait   = 5 * time.Second
	retryPause = 10 * time.Millisecond // after a write that failed
)

// load is a system's writers. Each makes one write at a time: it adds keys,
// and removes its oldest when it has enough; a write without an answer is
// made again, the same, until it has one.
type load struct {
	sys   system
	pause time.Duration     // between two writes of one writer
	rec   *history.Recorder // nil: no history; a system whose writes have no request IDs has none

	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	gate   chan struct{} // closed: writers may begin a write
	silent silence
	live   []map[string]bool // by writer: keys whose adding was acknowledged
	open   []string          // by writer: key of the write under way
	acks   int
	odd    []string // refusals that a lost write would explain
	signal chan struct{}
}

// startLoad starts n writers.
func startLoad(ctx context.Context, sys system, n int, pause time.Duration, rec *history.Recorder) (*load, error) {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{sys: sys, pause: pause, rec: rec, cancel: cancel, silent: newSilence(n), open: make([]string, n),
		gate: make(chan struct{}), signal: make(chan struct{}, 1)}
	for i := range n {
		w, err := sys.writer(i)
		if err != nil {
			l.stop()
			return nil, err
		}
		l.mu.Lock()
		l.live = append(l.live, map[string]bool{})
		l.mu.Unlock()
		l.wg.Go(func() {
			l.write(ctx, i, w)
			if err := w.close(); err != nil {
				l.oddity("close a writer: " + err.Error())
			}
		})
	}
	l.wg.Go(func() { l.read(ctx, n) })
	return l, nil
}

// read lists all keys now and then while writes are wanted: reads are what shows a
// write that was lost and made again, or one that is there too late. One that fails
// says nothing.
func (l *load) read(ctx context.Context, id int) {
	for l.admitted(ctx) == nil {
		begin := history.Call{Kind: history.ListKeys, Client: id}
		call, cancel := context.WithTimeout(ctx, readWait)
		var there map[string]string
		_ = l.rec.Do(begin, func(c *history.Call) (err error) {
			there, err = l.sys.list(call)
			c.Keys = there
			return err
		})
		cancel()
		if wait(ctx, readEvery) != nil {
			return
		}
	}
}

// stop ends the writers and waits for them.
func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}

// resume lets the writers write; they begin suspended, so that a system that
// is not being measured leaves the machine to the other one.
func (l *load) resume() {
	l.mu.Lock()
	close(l.gate)
	l.mu.Unlock()
}

func (l *load) suspend() {
	l.mu.Lock()
	l.gate = make(chan struct{})
	l.mu.Unlock()
}

// admitted waits until writing is wanted.
func (l *load) admitted(ctx context.Context) error {
	l.mu.Lock()
	gate := l.gate
	l.mu.Unlock()
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *load) write(ctx context.Context, i int, w writer) {
	var order []string
	for added := 0; l.admitted(ctx) == nil; {
		id, err := uuid.NewV7()
		if err != nil {
			l.oddity("make a request ID: " + err.Error())
			return
		}
		x, do := write{key: fmt.Sprintf("%s%d-%d", keyPrefix, i, added%names), request: id.String()}, w.add
		adds := len(order) < liveKeys
		if !adds {
			x.key, do = order[0], func(ctx context.Context, x write) (string, error) { return "", w.remove(ctx, x) }
		}
		l.begin(i, x.key)
		if !l.persist(ctx, i, x, adds, do) {
			return // its outcome stays open
		}
		l.acknowledged(i, x.key, adds)
		if adds {
			order = append(order, x.key)
			added++
		} else {
			order = order[1:]
		}
		if wait(ctx, l.pause) != nil {
			return
		}
	}
}

// persist makes a write until it is acknowledged; false when ctx ended first.
func (l *load) persist(ctx context.Context, i int, x write, adds bool, do func(context.Context, write) (string, error)) bool {
	begin := history.Call{Kind: history.AddKey, Client: i, Name: x.key, RequestID: x.request}
	if !adds {
		begin.Kind = history.RemoveKey
	}
	for {
		err := l.rec.Do(begin, func(c *history.Call) error {
			id, err := do(ctx, x)
			if id != "" {
				c.Keys = map[string]string{x.key: id}
			}
			return err
		})
		if err == nil {
			return true
		}
		if refusal(err) {
			l.oddity(fmt.Sprintf("%s: %v", x.key, err))
			return false
		}
		if wait(ctx, retryPause) != nil {
			return false
		}
	}
}

func (l *load) begin(i int, key string) {
	l.mu.Lock()
	l.open[i] = key
	l.mu.Unlock()
}

func (l *load) acknowledged(i int, key string, added bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent.ack(i, time.Now())
	l.acks++
	l.open[i] = ""
	if added {
		l.live[i][key] = true
	} else {
		delete(l.live[i], key)
	}
	select {
	case l.signal <- struct{}{}:
	default:
	}
}

func (l *load) oddity(what string) {
	l.mu.Lock()
	l.odd = append(l.odd, what)
	l.mu.Unlock()
}

// arm begins a measurement; measured ends it.
func (l *load) arm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent.arm(time.Now())
}

func (l *load) measured() (whole, worst time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.silent.measured(time.Now())
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acks
}

// flowing waits until every writer has had an acknowledgement since arm, after
// the moment given.
func (l *load) flowing(ctx context.Context, since time.Time) error {
	for {
		l.mu.Lock()
		ok := l.silent.allSince(since)
		l.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-l.signal:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// verify compares what is there with what was acknowledged, after stop. What
// was under way then may be either.
func (l *load) verify(ctx context.Context) (checked int, defects []string, err error) {
	there, err := l.sys.list(ctx)
	if err != nil {
		return 0, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	defects = slices.Clone(l.odd)
	wanted := map[string]bool{}
	for _, keys := range l.live {
		for k := range keys {
			wanted[k] = true
		}
	}
	found := map[string]bool{}
	for k := range there {
		found[k] = true
		if !wanted[k] && !slices.Contains(l.open, k) {
			defects = append(defects, k+" is there, though its removal was acknowledged")
		}
	}
	for k := range wanted {
		if !found[k] && !slices.Contains(l.open, k) {
			defects = append(defects, k+" is gone, though its adding was acknowledged")
		}
	}
	return l.acks, defects, nil
}

// wait pauses, or returns ctx's error.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
