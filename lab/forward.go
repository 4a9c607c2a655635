package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"bmc/lab/netns"
)

// forward carries TCP connections from a listener in one namespace to an address
// in another.
type forward struct {
	l    net.Listener
	dial func() (net.Conn, error)
	log  *slog.Logger
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	done  bool
}

const dialTimeout = 5 * time.Second

// dialIn connects from inside a namespace. Its thread is busy meanwhile.
func dialIn(ns *netns.Namespace, addr string) func() (net.Conn, error) {
	return func() (c net.Conn, err error) {
		doErr := ns.Do(func() error {
			c, err = net.DialTimeout("tcp", addr, dialTimeout)
			return err
		})
		return c, doErr
	}
}

func newForward(l net.Listener, dial func() (net.Conn, error), log *slog.Logger) *forward {
	f := &forward{l: l, dial: dial, log: log, conns: map[net.Conn]struct{}{}}
	f.wg.Add(1)
	go f.accept()
	return f
}

func (f *forward) accept() {
	defer f.wg.Done()
	for {
		c, err := f.l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				f.log.Error("forward stopped", "addr", f.l.Addr().String(), "err", err)
			}
			return
		}
		if !f.hold(c) {
			_ = c.Close()
			return
		}
		f.wg.Add(1)
		go func() {
			defer f.wg.Done()
			f.carry(c)
		}()
	}
}

func (f *forward) carry(in net.Conn) {
	defer f.drop(in)
	out, err := f.dial()
	if err != nil {
		f.log.Debug("forward found nobody", "addr", f.l.Addr().String(), "err", err)
		return
	}
	if !f.hold(out) {
		_ = out.Close()
		return
	}
	defer f.drop(out)
	both := make(chan struct{}, 2)
	half := func(dst, src net.Conn) {
		_, _ = io.Copy(dst, src) // an ended connection is no error here
		if c, ok := dst.(*net.TCPConn); ok {
			_ = c.CloseWrite()
		}
		both <- struct{}{}
	}
	go half(out, in)
	go half(in, out)
	<-both
	<-both
}

// hold remembers a connection for close; false after it.
func (f *forward) hold(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.done {
		f.conns[c] = struct{}{}
	}
	return !f.done
}

func (f *forward) drop(c net.Conn) {
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
	_ = c.Close()
}

func (f *forward) close() error {
	err := f.l.Close()
	f.mu.Lock()
	f.done = true
	for c := range f.conns {
		_ = c.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
	return err
}

// loopback makes the host's end of a forward: a free port of 127.0.0.1.
func loopback(ctx context.Context) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen on the host's loopback: %w", err)
	}
	return l, nil
}
