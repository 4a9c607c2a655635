package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"bmc/internal/rpcerr"
	"bmc/metal"
)

// maxMessage is the largest answer taken, in bytes: a page of servers.
const maxMessage = 32 << 20

// failover is a grpc.ClientConnInterface over several nodes. It stays with the
// node that answered last.
type failover struct {
	cfg   Config
	conns []*grpc.ClientConn

	mu      sync.Mutex
	current int
}

func newFailover(cfg Config, tlsConfig *tls.Config) (*failover, error) {
	f := &failover{cfg: cfg}
	for _, addr := range cfg.Addresses {
		opts := []grpc.DialOption{
			grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
				MinConnectTimeout: 3 * time.Second,
			}),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
		}
		conn, err := grpc.NewClient("passthrough:///"+addr, append(opts, cfg.Dial...)...)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("prepare the connection to %s: %w", addr, err), f.close())
		}
		f.conns = append(f.conns, conn)
	}
	return f, nil
}

func (f *failover) close() error {
	var errs []error
	for _, c := range f.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Invoke runs a unary call on the current node, and on the others while there
// is patience left. Errors are *metal.Error wherever a node gave a reason.
func (f *failover) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.cfg.CallTimeout)
		defer cancel()
	}
	mint(args)
	return f.try(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		return conn.Invoke(ctx, method, args, reply, opts...)
	})
}

// NewStream opens a stream on the first node that takes it. A stream that
// breaks later is its user's to open again.
func (f *failover) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	var s grpc.ClientStream
	err := f.try(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		var err error
		s, err = conn.NewStream(ctx, desc, method, opts...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &stream{ClientStream: s, f: f}, nil
}

// stream mints request IDs for client streams, decodes refusals, and leaves a
// node that broke off.
type stream struct {
	grpc.ClientStream
	f *failover
}

func (s *stream) SendMsg(m any) error {
	mint(m)
	return s.ClientStream.SendMsg(m)
}

func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if elsewhere(err) {
		s.f.mu.Lock()
		s.f.current = (s.f.current + 1) % len(s.f.conns)
		s.f.mu.Unlock()
	}
	return decode(err)
}

func (f *failover) try(ctx context.Context, call func(context.Context, *grpc.ClientConn) error) error {
	if f.cfg.Token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+f.cfg.Token)
	}
	f.mu.Lock()
	at := f.current
	f.mu.Unlock()
	start, noted := time.Now(), false
	var tried []string
	for n := 0; ; n++ {
		err := call(ctx, f.conns[at])
		if err == nil {
			f.mu.Lock()
			f.current = at
			f.mu.Unlock()
			return nil
		}
		if !elsewhere(err) || ctx.Err() != nil {
			return decode(err)
		}
		if n < len(f.conns) {
			tried = append(tried, f.cfg.Addresses[at])
		}
		if time.Since(start) >= f.cfg.Patience && n+1 >= len(f.conns) {
			return gaveUp(tried, err)
		}
		if !noted && f.cfg.OnRetry != nil && (n+1 >= len(f.conns) || time.Since(start) > time.Second) {
			noted = true
			f.cfg.OnRetry(why(err))
		}
		at = (at + 1) % len(f.conns)
		if (n+1)%len(f.conns) == 0 {
			if pause(ctx, min(100*time.Millisecond<<min(n/len(f.conns), 4), time.Second)) != nil {
				return gaveUp(tried, err)
			}
		}
	}
}

// gaveUp keeps a node's own reason and names who was asked.
func gaveUp(tried []string, err error) error {
	e, ok := rpcerr.Decode(err)
	if !ok {
		return unreachable(tried, err)
	}
	named := *e
	named.Message += " (tried " + join(tried) + ")"
	return &named
}

// elsewhere says whether another node might answer what this one did not.
// Every mutation carries a request ID, so a second try is safe even when the
// outcome of the first is unknown.
func elsewhere(err error) bool {
	if err == nil {
		return false
	}
	if e, ok := rpcerr.Decode(err); ok {
		return e.Code == metal.CodeNoLeader || e.Code == metal.CodeUnknownOutcome
	}
	return status.Code(err) == codes.Unavailable
}

func why(err error) string {
	if e, ok := rpcerr.Decode(err); ok {
		return e.Message
	}
	return "no node answers yet"
}

// decode turns a status into the *metal.Error that the node meant.
func decode(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := rpcerr.Decode(err); ok {
		return e
	}
	switch status.Code(err) {
	case codes.DeadlineExceeded:
		return &metal.Error{Code: metal.CodeDeadline, Message: "the call took too long", Err: err}
	case codes.Canceled:
		return &metal.Error{Code: metal.CodeCancelled, Message: "interrupted", Err: context.Canceled}
	case codes.Unavailable:
		return &metal.Error{Code: metal.CodeNoLeader, Message: "the connection to the control plane broke", Hint: "bmc doctor", Err: err}
	case codes.Unimplemented:
		return &metal.Error{Code: metal.CodeInternal, Message: "this control plane is older than this command", Hint: "bmc version", Err: err}
	case codes.Unknown:
		return err // io.EOF and what is no status at all
	}
	if st, ok := status.FromError(err); ok {
		return &metal.Error{Code: metal.CodeInternal, Message: st.Message(), Err: err}
	}
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func join(addrs []string) string { return strings.Join(addrs, ", ") }
