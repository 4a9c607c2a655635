package vswitch

import (
	"io"
	"os"
	"sync"
)

// Pipe returns the two ends of a cable in this process: attach one, give the
// other to a machine that is Go code. A full end drops what is written to it.
func Pipe() (Link, Link) {
	ab, ba := make(chan []byte, queueLen), make(chan []byte, queueLen)
	done, once := make(chan struct{}), new(sync.Once)
	return &pipeEnd{in: ba, out: ab, done: done, once: once}, &pipeEnd{in: ab, out: ba, done: done, once: once}
}

type pipeEnd struct {
	in   <-chan []byte
	out  chan<- []byte
	done chan struct{} // shared: closing one end closes both
	once *sync.Once
}

func (e *pipeEnd) Read(b []byte) (int, error) {
	select {
	case f := <-e.in:
		return copy(b, f), nil
	case <-e.done:
		return 0, io.EOF
	}
}

func (e *pipeEnd) Write(b []byte) (int, error) {
	select {
	case <-e.done:
		return 0, os.ErrClosed
	default:
	}
	f := append([]byte(nil), b...)
	select {
	case e.out <- f:
	default: // full: dropped, as on a wire
	}
	return len(b), nil
}

func (e *pipeEnd) Close() error {
	e.once.Do(func() { close(e.done) })
	return nil
}
