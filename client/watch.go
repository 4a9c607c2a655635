package client

import (
	"context"
	"errors"
	"io"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/internal/pause"
	"bmc/metal"
)

// Nodes say something at least every 15 s on a watch, and first when they have
// found a leader.
const (
	firstMessageWait = 10 * time.Second
	quietWait        = 40 * time.Second
)

// Watch calls handle with every change, in order, each once, and goes on at
// another node when a stream breaks. First comes a snapshot, unless the request
// names a revision to go on from; a bookmark ends it. Then come changes, in
// groups that a bookmark ends; a group whose end was lost is not shown, but
// received again. A message with Resync tells handle to forget what it has: a
// new snapshot follows, because the watch has fallen behind what nodes
// remember, or the state was replaced, or the former snapshot broke off.
// It returns when handle or ctx ends it, or when the cluster refuses.
func (c *Client) Watch(ctx context.Context, req *bmcv1.WatchRequest, handle func(*bmcv1.WatchResponse) error) error {
	w := newWatch(req, handle)
	open := func(ctx context.Context) (receiver[bmcv1.WatchResponse], error) {
		if err := w.reopen(); err != nil {
			return nil, handled{err}
		}
		return c.Events.Watch(ctx, w.next)
	}
	return follow(ctx, c.conn.cfg.Patience, quietWait, open, w.receive)
}

// watch is what a watch has shown its consumer so far.
type watch struct {
	next    *bmcv1.WatchRequest // where the next stream begins
	handle  func(*bmcv1.WatchResponse) error
	whole   bool                   // the consumer holds all of next.AfterRevision
	partial bool                   // the consumer holds part of a snapshot
	group   []*bmcv1.WatchResponse // changes whose bookmark has not come
}

func newWatch(req *bmcv1.WatchRequest, handle func(*bmcv1.WatchResponse) error) *watch {
	return &watch{handle: handle, whole: req.GetAfterRevision() > 0, next: &bmcv1.WatchRequest{
		AfterRevision: req.GetAfterRevision(), Kinds: req.GetKinds(), Server: req.GetServer(), NoSnapshot: req.GetNoSnapshot()}}
}

// reopen prepares for a new stream.
func (w *watch) reopen() error {
	w.group = nil
	if !w.partial {
		return nil
	}
	// A second snapshot begins without a word: what it no longer holds must go.
	w.partial = false
	return w.handle(&bmcv1.WatchResponse{Resync: true})
}

func (w *watch) receive(m *bmcv1.WatchResponse) error {
	switch {
	case m.GetResync():
		w.group, w.whole, w.partial = nil, false, true
		w.next.AfterRevision, w.next.NoSnapshot = 0, false
	case m.GetBookmark():
		for _, change := range w.group {
			if err := w.handle(change); err != nil {
				return err
			}
		}
		w.group, w.whole, w.partial = nil, true, false
		w.next.AfterRevision = max(w.next.AfterRevision, m.GetRevision())
	case w.whole:
		w.group = append(w.group, m)
		return nil
	default:
		w.partial = true
	}
	return w.handle(m)
}

// WatchOperation calls handle with the operation now and after each change,
// until it has ended; the last value is returned.
func (c *Client) WatchOperation(ctx context.Context, id string, handle func(*bmcv1.Operation) error) (*bmcv1.Operation, error) {
	var last *bmcv1.Operation
	open := func(ctx context.Context) (receiver[bmcv1.Operation], error) {
		return c.Operations.WatchOperation(ctx, &bmcv1.WatchOperationRequest{Id: id})
	}
	err := follow(ctx, c.conn.cfg.Patience, 0, open, func(op *bmcv1.Operation) error {
		last = op
		if err := handle(op); err != nil {
			return err
		}
		if metal.OperationState(op.GetState()).Ended() {
			return io.EOF
		}
		return nil
	})
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return last, err
}

type receiver[T any] interface {
	Recv() (*T, error)
}

// follow receives until handle returns an error. A broken stream is opened
// again; patience bounds how long nothing at all may answer. quiet bounds how
// long a stream may say nothing after its first message; 0: no bound.
func follow[T any](ctx context.Context, patience, quiet time.Duration, open func(context.Context) (receiver[T], error), handle func(*T) error) error {
	lastAnswer := time.Now()
	for {
		answered := false
		err := receiveAll(ctx, quiet, open, func(m *T) error {
			answered = true
			return handle(m)
		})
		if answered {
			lastAnswer = time.Now() // an open stream that had nothing to say is no silence
		}
		var ours handled
		if errors.As(err, &ours) {
			return ours.err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		limit := patience
		if errors.Is(err, errSilent) {
			limit += quiet + firstMessageWait // which have passed: others get their chance
		}
		code := metal.CodeOf(err)
		transient := errors.Is(err, io.EOF) || code == metal.CodeNoLeader || code == metal.CodeUnknownOutcome || code == metal.CodeDeadline
		if !transient || time.Since(lastAnswer) > limit {
			return err
		}
		if err := pause.For(ctx, firstPause); err != nil {
			return err
		}
	}
}

// handled marks an error that the handler, not the stream, gave.
type handled struct{ err error }

func (h handled) Error() string { return h.err.Error() }

// errSilent ends a stream on which a node says nothing.
var errSilent = metal.Errorf(metal.CodeNoLeader, "the node says nothing").WithHint("bmc doctor")

func receiveAll[T any](ctx context.Context, quiet time.Duration, open func(context.Context) (receiver[T], error), handle func(*T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(firstMessageWait, func() { cancel(errSilent) })
	defer silent.Stop()
	s, err := open(ctx)
	if err != nil {
		return because(ctx, err)
	}
	for {
		m, err := s.Recv()
		if err != nil {
			return because(ctx, err)
		}
		silent.Stop() // the handler may take its time
		if err := handle(m); err != nil {
			return handled{err}
		}
		if quiet > 0 {
			silent.Reset(quiet)
		}
	}
}

// because prefers the reason for which a stream was given up.
func because(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSilent) {
		return errSilent
	}
	return err
}
