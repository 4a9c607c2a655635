package imaging

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// queue says which cells may be read back: those that were written before the last
// flush began. Holes are ready with the last chunks: a write that went elsewhere may have
// hit one. It is for several goroutines.
type queue struct {
	cells []cell
	batch int64 // bytes; 0: one flush, when everything is written

	mu       sync.Mutex
	changed  *sync.Cond
	holes    []cell // until every chunk is written; then pending
	pending  []cell // written, not flushed
	bytes    int64  // of pending
	ready    []cell // to be read back
	unready  int    // chunks that are not written yet
	left     int    // cells that are not verified yet
	flushes  int
	canceled bool
}

func newQueue(cells []cell, batch int64) *queue {
	q := &queue{cells: cells, batch: batch, left: len(cells)}
	q.changed = sync.NewCond(&q.mu)
	for _, c := range cells {
		if c.chunk != nil {
			q.unready++
		} else {
			q.holes = append(q.holes, c)
		}
	}
	q.last()
	return q
}

// wake ends all waits: the work is given up.
func (q *queue) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.canceled = true
	q.changed.Broadcast()
}

// wrote says that a chunk's cell is on its way to the disk.
func (q *queue) wrote(index int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.unready--
	q.last()
	q.pend(q.cells[index])
}

// last has the holes wait for the last chunks' flush.
func (q *queue) last() {
	if q.unready == 0 {
		q.pending, q.holes = append(q.pending, q.holes...), nil
	}
}

// zeroed says the same of a hole that was not zero.
func (q *queue) zeroed(index int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := q.cells[index]
	c.zeroed = true
	q.pend(c)
}

func (q *queue) pend(c cell) {
	q.pending = append(q.pending, c)
	if q.bytes += c.size; q.due() {
		q.changed.Broadcast()
	}
}

// due says whether to flush; when everything is written, what is left is.
func (q *queue) due() bool {
	return len(q.pending) > 0 && (q.unready == 0 || q.batch > 0 && q.bytes >= q.batch)
}

// unflushed waits for what is to be flushed, and takes it; nil: there is no more. whole
// says that every chunk was written before.
func (q *queue) unflushed() (cells []cell, whole bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.due() {
		if q.canceled || q.left == 0 {
			return nil, false
		}
		q.changed.Wait()
	}
	cells = q.pending
	q.pending, q.bytes = nil, 0
	return cells, q.unready == 0
}

// flushed makes cells ready.
func (q *queue) flushed(cells []cell) {
	slices.SortFunc(cells, func(a, b cell) int { return cmp.Compare(a.offset, b.offset) })
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flushes++
	q.ready = append(q.ready, cells...)
	q.changed.Broadcast()
}

// next waits for a cell to read back; false: there is none any more.
func (q *queue) next(ctx context.Context) (cell, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.ready) == 0 {
		if q.canceled || q.left == 0 {
			return cell{}, false
		}
		q.changed.Wait()
	}
	if ctx.Err() != nil {
		return cell{}, false
	}
	c := q.ready[0]
	q.ready = q.ready[1:]
	return c, true
}

// verified counts a cell that is done with.
func (q *queue) verified() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.left--; q.left == 0 {
		q.changed.Broadcast()
	}
}

// written says whether every chunk is on the disk, flushed or not.
func (q *queue) written() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.unready == 0
}
