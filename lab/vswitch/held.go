package vswitch

import (
	"container/heap"
	"sync"
	"time"
)

// maxHeld bounds the frames that wait for one port by a rule's delay: some 37 MB.
const maxHeld = 4096

// heldFrames are those that a delay keeps from a port. Frames of equal delay leave
// in the order in which they came. The zero value is ready.
type heldFrames struct {
	mu     sync.Mutex
	wait   heldHeap
	seq    uint64
	timer  *time.Timer
	closed bool
}

type heldFrame struct {
	due time.Time
	seq uint64
	f   *frame
}

// add keeps f until due, then hands it to p; false: there is no room.
func (h *heldFrames) add(p *Port, due time.Time, f *frame) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.wait) >= maxHeld {
		return false
	}
	h.seq++
	heap.Push(&h.wait, heldFrame{due, h.seq, f})
	if h.wait[0].seq == h.seq { // it is the next to go
		h.arm(p)
	}
	return true
}

// arm sets the timer for the first frame. The lock is held.
func (h *heldFrames) arm(p *Port) {
	d := h.wait[0].due.Sub(p.sw.now())
	if h.timer == nil {
		h.timer = time.AfterFunc(d, func() { h.deliver(p) })
		return
	}
	h.timer.Reset(d)
}

// deliver hands over what is due. It holds the lock meanwhile, so that two timers
// that overlap keep the order.
func (h *heldFrames) deliver(p *Port) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := p.sw.now()
	for len(h.wait) > 0 && !h.wait[0].due.After(now) {
		p.enqueue(heap.Pop(&h.wait).(heldFrame).f)
	}
	if len(h.wait) > 0 && !h.closed {
		h.arm(p)
	}
}

// drop loses what is held, and all that comes.
func (h *heldFrames) drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.timer != nil {
		h.timer.Stop()
	}
	for _, w := range h.wait {
		w.f.release()
	}
	h.wait = nil
}

type heldHeap []heldFrame

func (h heldHeap) Len() int { return len(h) }
func (h heldHeap) Less(i, j int) bool {
	if !h[i].due.Equal(h[j].due) {
		return h[i].due.Before(h[j].due)
	}
	return h[i].seq < h[j].seq
}
func (h heldHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *heldHeap) Push(x any)   { *h = append(*h, x.(heldFrame)) }
func (h *heldHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = heldFrame{}
	*h = old[:len(old)-1]
	return last
}
