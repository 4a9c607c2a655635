package rpc

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"time"

	"bmc/internal/rpcerr"
	"bmc/metal"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// unary authenticates, authorizes, gives mutations a request ID, runs the
// handler where it must run, and turns its error into a status.
func (a *API) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			a.Log.Error("handler panicked", "method", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
			resp, err = nil, errors.New("handler panicked")
		}
		err = a.encode(ctx, info.FullMethod, err)
	}()
	ctx, r, err := a.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	if m, ok := req.(mutation); ok {
		if err := a.ensureRequestID(m); err != nil {
			return nil, err
		}
	}
	if !r.leader || allowsStale(req) {
		return handler(ctx, req)
	}
	return a.atLeader(ctx, info.FullMethod, req, handler)
}

// stream does the same for streams; a handler that must run at the leader is
// replaced by a copy of the bytes in both directions.
func (a *API) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	stop := context.AfterFunc(a.ctx, func() { cancel(errShuttingDown) })
	defer stop()
	defer func() {
		if p := recover(); p != nil {
			a.Log.Error("handler panicked", "method", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
			err = errors.New("handler panicked")
		}
		var why *metal.Error
		if errors.Is(err, context.Canceled) && errors.As(context.Cause(ctx), &why) {
			err = why
		}
		err = a.encode(ctx, info.FullMethod, err)
	}()
	ctx, r, err := a.admit(ctx, info.FullMethod)
	if err != nil {
		return err
	}
	if id := caller(ctx); !id.expires.IsZero() { // a watch must not outlive its token
		timer := time.AfterFunc(id.expires.Sub(a.Now()), func() { cancel(errExpired(id.principal, id.role, id.expires)) })
		defer timer.Stop()
	}
	remove := a.streams.add(caller(ctx), cancel)
	defer remove()
	if err := caller(ctx).standing(a.Proposer.StaleView()); err != nil { // it may have gone between the two
		return err
	}
	wrapped := &serverStream{ServerStream: ss, ctx: ctx}
	if r.leader && !a.Proposer.IsLeader() {
		return a.proxyStream(ctx, info, wrapped)
	}
	return handler(srv, wrapped)
}

var errShuttingDown = metal.Errorf(metal.CodeNoLeader, "this node is shutting down; ask another")

// admit authenticates and authorizes a call.
func (a *API) admit(ctx context.Context, method string) (context.Context, rule, error) {
	r, known := rules[method]
	id := &identity{}
	if !r.public || first(ctx, mdForwardedBy) != "" {
		var err error
		if id, err = a.authenticate(ctx); err != nil {
			return ctx, r, err
		}
	}
	if err := authorize(method, r, known, id); err != nil {
		return ctx, r, err
	}
	return context.WithValue(ctx, identityKey{}, id), r, nil
}

// ensureRequestID mints a request ID at the node where a call arrives, so that
// its own retries have one effect even when the caller sent none.
func (a *API) ensureRequestID(m mutation) error {
	if id := m.GetRequestId(); id != "" {
		return checkRequestID(id)
	}
	id, err := a.newRequestID()
	if err != nil {
		return err
	}
	r := m.ProtoReflect()
	r.Set(r.Descriptor().Fields().ByName("request_id"), protoreflect.ValueOfString(id))
	return nil
}

// encode maps an error for the wire; what only we may know goes to the log.
func (a *API) encode(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	var errorID string
	if _, isStatus := status.FromError(err); metal.CodeOf(err) == metal.CodeInternal && !isStatus && !isContextError(err) {
		errorID, _ = a.newID("err")
		a.Log.LogAttrs(ctx, slog.LevelError, "call failed", slog.String("method", method),
			slog.String("error_id", errorID), slog.Any("err", err))
	}
	return rpcerr.Encode(err, errorID)
}

func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// serverStream carries the context with the caller's identity.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *serverStream) Context() context.Context { return s.ctx }
