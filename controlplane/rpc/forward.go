package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"bmc/internal/rpcerr"
	"bmc/metal"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// leaderPoll is how often a waiting call looks for a new leader.
const leaderPoll = 50 * time.Millisecond

// atLeader runs a unary call here when this node leads, else at the leader. It
// tries again while that is safe: every method that runs at the leader has one
// effect however often it is sent (request IDs, reports keyed by sequence,
// lease renewals).
func (a *API) atLeader(ctx context.Context, method string, req any, handler grpc.UnaryHandler) (any, error) {
	wait, cancel := context.WithTimeout(ctx, a.LeaderWait)
	defer cancel()
	var tried []string
	var last error
	for {
		resp, err := a.tryLeader(ctx, method, req, handler, &tried)
		if err == nil || !retryable(err) {
			return resp, err
		}
		last = err
		if caller(ctx).forwarded { // the node that forwarded tries again, not this one
			return nil, err
		}
		if a.Raft.Hung() {
			return nil, a.errHung()
		}
		timer := time.NewTimer(leaderPoll)
		select {
		case <-timer.C:
		case <-wait.Done():
			timer.Stop()
			return nil, noLeader(tried, last)
		}
	}
}

var errNoLeaderKnown = metal.Errorf(metal.CodeNoLeader, "no leader is known")

func (a *API) tryLeader(ctx context.Context, method string, req any, handler grpc.UnaryHandler, tried *[]string) (any, error) {
	if a.Proposer.IsLeader() {
		return handler(ctx, req)
	}
	if caller(ctx).forwarded { // loop guard
		return nil, metal.Errorf(metal.CodeNoLeader, "node %s is not the leader", a.NodeID)
	}
	id, addr := a.Proposer.Leader()
	if addr == "" || id == a.NodeID {
		return nil, errNoLeaderKnown
	}
	a.noteLeader(addr)
	if !slices.Contains(*tried, addr) {
		*tried = append(*tried, addr)
	}
	in, ok := req.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("forward %s: request is no message", method)
	}
	out, err := newResponse(method)
	if err != nil {
		return nil, err
	}
	conn, err := a.Peers.Conn(addr)
	if err != nil {
		return nil, err
	}
	if err := conn.Invoke(a.outgoing(ctx), method, in, out); err != nil {
		return nil, err
	}
	// A hint: who calls such methods often saves the way through this node.
	if err := grpc.SetHeader(ctx, metadata.Pairs(mdLeader, addr)); err != nil {
		a.Log.Debug("no header was set", "err", err) // no stream: a test calls the handler
	}
	return out, nil
}

// mdLeader is the answer's metadata of a call that was forwarded: where it ran.
const mdLeader = "bmc-leader"

// noteLeader closes the connections to nodes that have left when the leader is
// another than before.
func (a *API) noteLeader(addr string) {
	a.mu.Lock()
	changed := a.lastLeader != addr
	a.lastLeader = addr
	a.mu.Unlock()
	if changed {
		a.Peers.Retain(append(a.nodeAddresses(a.Proposer.StaleView()), addr))
	}
}

// outgoing is the metadata of a forwarded call: the caller's own token, to be
// checked again at the leader, or the agent that this node has authenticated.
func (a *API) outgoing(ctx context.Context) context.Context {
	md := metadata.Pairs(mdForwardedBy, a.NodeID)
	if t := first(ctx, mdAuthorization); t != "" {
		md.Set(mdAuthorization, t)
	}
	if id := caller(ctx); id.agent != "" {
		md.Set(mdForAgent, id.agent)
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// retryable says whether the leader may be elsewhere, or has gone while we asked.
func retryable(err error) bool {
	if e, ok := rpcerr.Decode(err); ok {
		return e.Code == metal.CodeNoLeader || e.Code == metal.CodeUnknownOutcome
	}
	return status.Code(err) == codes.Unavailable // the connection broke
}

// noLeader is what a caller sees when nobody could take the call in time.
func noLeader(tried []string, last error) error {
	e, ok := rpcerr.Decode(last)
	if ok && e.Code == metal.CodeUnknownOutcome {
		return metal.Errorf(metal.CodeUnknownOutcome, "the leader went away before it answered: the change may or may not have happened").
			WithHint("repeat the command with the same request ID")
	}
	who := "no peer is known to lead"
	if len(tried) > 0 {
		who = "tried " + strings.Join(tried, ", ")
	}
	return metal.Errorf(metal.CodeNoLeader, "the cluster has no leader (%s)", who).WithHint("bmc cluster peers")
}

// newResponse makes an empty answer of a method.
func newResponse(method string) (proto.Message, error) {
	_, out, err := methodTypes(method)
	if err != nil {
		return nil, err
	}
	return out.New().Interface(), nil
}

func methodTypes(method string) (in, out protoreflect.MessageType, err error) {
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", "."))
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return nil, nil, fmt.Errorf("describe %s: %w", method, err)
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, nil, fmt.Errorf("%s is no method", method)
	}
	if in, err = protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName()); err != nil {
		return nil, nil, err
	}
	out, err = protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	return in, out, err
}

// leaderConn waits for a leader other than this node.
func (a *API) leaderConn(ctx context.Context) (grpc.ClientConnInterface, error) {
	if caller(ctx).forwarded {
		return nil, metal.Errorf(metal.CodeNoLeader, "node %s is not the leader", a.NodeID)
	}
	wait, cancel := context.WithTimeout(ctx, a.LeaderWait)
	defer cancel()
	tick := time.NewTicker(leaderPoll)
	defer tick.Stop()
	for {
		if id, addr := a.Proposer.Leader(); addr != "" && id != a.NodeID {
			return a.Peers.Conn(addr)
		}
		if a.Proposer.IsLeader() {
			return nil, errNoLeaderKnown // the caller looks again
		}
		select {
		case <-tick.C:
		case <-wait.Done():
			return nil, noLeader(nil, wait.Err())
		}
	}
}

// proxyStream copies a stream to and from the leader. It is not tried again:
// what was sent is gone.
func (a *API) proxyStream(ctx context.Context, info *grpc.StreamServerInfo, down grpc.ServerStream) error {
	in, out, err := methodTypes(info.FullMethod)
	if err != nil {
		return err
	}
	conn, err := a.leaderConn(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	desc := &grpc.StreamDesc{ClientStreams: info.IsClientStream, ServerStreams: info.IsServerStream}
	up, err := conn.NewStream(a.outgoing(ctx), desc, info.FullMethod)
	if err != nil {
		return err
	}
	// The copy towards the leader ends when the handler has returned, because
	// that ends down's context.
	copyUp := func() {
		for {
			m := in.New().Interface()
			if err := down.RecvMsg(m); err != nil {
				if errors.Is(err, io.EOF) {
					_ = up.CloseSend()
				} else {
					cancel()
				}
				return
			}
			if err := up.SendMsg(m); err != nil {
				return // RecvMsg below has the reason
			}
		}
	}
	if !a.spawn(copyUp) {
		return context.Canceled
	}
	for {
		m := out.New().Interface()
		if err := up.RecvMsg(m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := down.SendMsg(m); err != nil {
			return err
		}
	}
}
