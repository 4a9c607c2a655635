package rpc

import (
	"sync"
	"time"

	bmcv1 "bmc/api/bmc/v1"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// maxProgress bounds how many operations' progress a leader remembers.
const maxProgress = 10_000

// progressHub is the leader's memory of how far steps have come. It never
// enters the log; agents send it again after a leader change.
type progressHub struct {
	mu     sync.Mutex
	latest map[string]progress // by operation ID
	subs   map[string]map[chan struct{}]bool
}

type progress struct {
	attempt     int
	step        string
	done, total uint64
	message     string
	at          time.Time
}

func newProgressHub() *progressHub {
	return &progressHub{latest: map[string]progress{}, subs: map[string]map[chan struct{}]bool{}}
}

// report records progress and wakes whoever watches the operation.
func (h *progressHub) report(operation string, p progress) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.latest[operation]; !known && len(h.latest) >= maxProgress {
		h.dropOldest()
	}
	h.latest[operation] = p
	for ch := range h.subs[operation] {
		select {
		case ch <- struct{}{}:
		default: // woken already; it will read the newest
		}
	}
}

func (h *progressHub) dropOldest() {
	var oldest string
	var at time.Time
	for id, p := range h.latest {
		if oldest == "" || p.at.Before(at) {
			oldest, at = id, p.at
		}
	}
	delete(h.latest, oldest)
}

// of returns the progress of a step, nil when none was reported for it.
func (h *progressHub) of(operation string, attempt int, step string) *bmcv1.Progress {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, ok := h.latest[operation]
	if !ok || p.attempt != attempt || p.step != step {
		return nil
	}
	return &bmcv1.Progress{Done: p.done, Total: p.total, Message: p.message, At: timestamppb.New(p.at)}
}

// forget drops an operation that has ended.
func (h *progressHub) forget(operation string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.latest, operation)
}

// subscribe returns a channel that is signalled on news of an operation.
func (h *progressHub) subscribe(operation string) (news <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subs[operation] == nil {
		h.subs[operation] = map[chan struct{}]bool{}
	}
	h.subs[operation][ch] = true
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.subs[operation], ch)
		if len(h.subs[operation]) == 0 {
			delete(h.subs, operation)
		}
	}
}
