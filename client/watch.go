package client

import (
	"context"
	"errors"
	"io"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

// Watch calls handle with every change, in order, and goes on at another node
// when a stream breaks, from the last revision that was complete. A message
// with Resync tells handle to forget what it has. It returns when handle or ctx
// ends it, or when the cluster refuses.
func (c *Client) Watch(ctx context.Context, req *bmcv1.WatchRequest, handle func(*bmcv1.WatchResponse) error) error {
	next := &bmcv1.WatchRequest{
		AfterRevision: req.GetAfterRevision(), Kinds: req.GetKinds(),
		Server: req.GetServer(), NoSnapshot: req.GetNoSnapshot(),
	}
	open := func(ctx context.Context) (receiver[bmcv1.WatchResponse], error) { return c.Events.Watch(ctx, next) }
	return follow(ctx, c.conn.cfg.Patience, open, func(m *bmcv1.WatchResponse) error {
		if m.GetBookmark() {
			next.AfterRevision = max(next.AfterRevision, m.GetRevision())
			next.NoSnapshot = true
		}
		if m.GetResync() {
			next.AfterRevision, next.NoSnapshot = 0, false
		}
		return handle(m)
	})
}

// WatchOperation calls handle with the operation now and after each change,
// until it has ended; the last value is returned.
func (c *Client) WatchOperation(ctx context.Context, id string, handle func(*bmcv1.Operation) error) (*bmcv1.Operation, error) {
	var last *bmcv1.Operation
	open := func(ctx context.Context) (receiver[bmcv1.Operation], error) {
		return c.Operations.WatchOperation(ctx, &bmcv1.WatchOperationRequest{Id: id})
	}
	err := follow(ctx, c.conn.cfg.Patience, open, func(op *bmcv1.Operation) error {
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
// again; patience bounds how long nothing at all may answer.
func follow[T any](ctx context.Context, patience time.Duration, open func(context.Context) (receiver[T], error), handle func(*T) error) error {
	lastAnswer := time.Now()
	for {
		err := receiveAll(ctx, open, func(m *T) error {
			lastAnswer = time.Now()
			return handle(m)
		})
		var ours handled
		if errors.As(err, &ours) {
			return ours.err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		transient := errors.Is(err, io.EOF) || metal.CodeOf(err) == metal.CodeNoLeader
		if !transient || time.Since(lastAnswer) > patience {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// handled marks an error that the handler, not the stream, gave.
type handled struct{ err error }

func (h handled) Error() string { return h.err.Error() }

func receiveAll[T any](ctx context.Context, open func(context.Context) (receiver[T], error), handle func(*T) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := open(ctx)
	if err != nil {
		return err
	}
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		if err := handle(m); err != nil {
			return handled{err}
		}
	}
}
