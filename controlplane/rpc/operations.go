package rpc

import (
	"context"
	"errors"
	"io"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/grpc"
)

type operations struct {
	bmcv1.UnimplementedOperationsServer
	*API
}

// operation finds one that the caller may see.
func (a *API) operation(ctx context.Context, v *state.View, ref string) (*metal.Operation, error) {
	if ref == "" {
		return nil, metal.Invalid("id", "is empty").WithHint("bmc operation list")
	}
	return v.ResolveOperation(ref, func(op *metal.Operation) bool { return mayseeOperation(caller(ctx), op) })
}

func mayseeOperation(id *identity, op *metal.Operation) bool {
	return id.operates() || (id.project != "" && op.Project == id.project)
}

func (s *operations) GetOperation(ctx context.Context, req *bmcv1.GetOperationRequest) (*bmcv1.Operation, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	op, err := s.operation(ctx, v, req.GetId())
	if err != nil {
		return nil, err
	}
	out := s.withServer(ctx, v, op)
	out.Progress = s.progress.of(op.ID, op.Attempt, string(op.Current()))
	return out, nil
}

func (s *operations) ListOperations(ctx context.Context, req *bmcv1.ListOperationsRequest) (*bmcv1.ListOperationsResponse, error) {
	size, err := pageSize(req.GetPageSize(), maxPage)
	if err != nil {
		return nil, err
	}
	token, more, err := parsePageToken("operations", req.GetPageToken())
	if err != nil {
		return nil, err
	}
	want, err := operationState(req.GetState())
	if err != nil {
		return nil, err
	}
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	all := v.Operations(token.After)
	if req.GetServer() != "" {
		srv, err := s.resolve(ctx, v, req.GetServer())
		if err != nil {
			return nil, err
		}
		all = v.OperationsOf(srv.ID)
	}
	skip := more && req.GetServer() != "" // OperationsOf begins at the newest: at most 20
	resp := &bmcv1.ListOperationsResponse{}
	for op := range all {
		if skip {
			skip = op.ID != token.After
			continue
		}
		if !mayseeOperation(caller(ctx), op) || (want != "" && op.State != want) {
			continue
		}
		if len(resp.Operations) == size {
			resp.NextPageToken = pageToken{List: "operations", After: resp.Operations[size-1].Id}.encode()
			break
		}
		resp.Operations = append(resp.Operations, toOperation(v, op))
	}
	return resp, nil
}

func operationState(s string) (metal.OperationState, error) {
	switch st := metal.OperationState(s); st {
	case "", metal.OperationPending, metal.OperationRunning, metal.OperationSucceeded, metal.OperationFailed, metal.OperationCancelled:
		return st, nil
	}
	return "", metal.Invalid("state", "%q is no state of an operation", s).WithHint("bmc operation list --state running")
}

// WatchOperation follows the leader, whose memory has the progress, and goes on
// at the next one when it changes.
func (s *operations) WatchOperation(req *bmcv1.WatchOperationRequest, stream grpc.ServerStreamingServer[bmcv1.Operation]) error {
	ctx := stream.Context()
	for {
		err := s.watchOnce(ctx, req, stream)
		if err == nil || !retryable(err) || caller(ctx).forwarded {
			return err
		}
		timer := time.NewTimer(leaderPoll)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		// Whoever leads next is waited for at most LeaderWait, by the read.
		if _, err := s.linearizable(ctx); err != nil {
			return err
		}
	}
}

func (s *operations) watchOnce(ctx context.Context, req *bmcv1.WatchOperationRequest, stream grpc.ServerStreamingServer[bmcv1.Operation]) error {
	if s.Proposer.IsLeader() {
		return s.watchHere(ctx, req, stream)
	}
	conn, err := s.leaderConn(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(s.outgoing(ctx))
	defer cancel()
	up, err := bmcv1.NewOperationsClient(conn).WatchOperation(ctx, req)
	if err != nil {
		return err
	}
	for {
		op, err := up.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(op); err != nil {
			return err
		}
	}
}

// leaderCheck is how soon a watch notices that this node leads no longer.
const leaderCheck = time.Second

func (s *operations) watchHere(ctx context.Context, req *bmcv1.WatchOperationRequest, stream grpc.ServerStreamingServer[bmcv1.Operation]) error {
	v, err := s.linearizable(ctx)
	if err != nil {
		return err
	}
	op, err := s.operation(ctx, v, req.GetId())
	if err != nil {
		return err
	}
	news, cancel := s.progress.subscribe(op.ID)
	defer cancel()
	views, stop := s.follow(ctx, v.Revision())
	defer stop()
	tick := time.NewTicker(leaderCheck)
	defer tick.Stop()
	changed := true
	for {
		if changed {
			out := toOperation(v, op)
			out.Progress = s.progress.of(op.ID, op.Attempt, string(op.Current()))
			if op.State.Ended() {
				return stream.Send(s.withServer(ctx, v, op))
			}
			if err := stream.Send(out); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
			changed = true
		case <-tick.C:
			if changed = false; !s.Proposer.IsLeader() {
				return errNoLeaderKnown
			}
		case nv, ok := <-views:
			if !ok {
				return ctx.Err()
			}
			now, ok := nv.Operation(op.ID)
			if !ok {
				return metal.Errorf(metal.CodeNotFound, "operation %s is no longer kept", op.ID)
			}
			changed = now.Revision != op.Revision
			v, op = nv, now
		}
	}
}

// follow sends each newer View until stop; a slow reader skips some.
func (a *API) follow(ctx context.Context, after uint64) (views <-chan *state.View, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ch := make(chan *state.View)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(ch)
		for {
			v, err := a.Proposer.WaitView(ctx, after)
			if err != nil {
				return
			}
			after = v.Revision()
			select {
			case ch <- v:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch, func() {
		cancel()
		<-done
	}
}
