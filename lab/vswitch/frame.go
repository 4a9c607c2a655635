package vswitch

import "sync"

// frame has one owner at a time, who releases it or hands it on.
type frame struct {
	n   int
	buf [MaxFrame]byte
}

var frames = sync.Pool{New: func() any { return new(frame) }}

func newFrame() *frame { return frames.Get().(*frame) }

func (f *frame) data() []byte { return f.buf[:f.n] }

func (f *frame) release() { frames.Put(f) }

func (f *frame) clone() *frame {
	c := newFrame()
	c.n = copy(c.buf[:], f.data())
	return c
}
