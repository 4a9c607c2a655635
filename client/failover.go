package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
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

// window is how much a node may send before it waits for us, in bytes: most of a
// page of servers.
const window = 4 << 20

// Bounds of what a node that hangs may cost. It takes connections and bytes and
// says nothing: its process is stopped, or its host is gone without a word.
const (
	connectWait    = 3 * time.Second  // TCP and TLS
	keepaliveEvery = 10 * time.Second // grpc-go's least
	keepaliveWait  = 3 * time.Second
	// answerWait is for one answer to a unary call while other nodes could be
	// asked: above the nodes' own wait for a leader, 3 s. It doubles each time
	// that all nodes have been asked, so that what takes long gets done.
	answerWait = 5 * time.Second
	firstPause = 100 * time.Millisecond // when all nodes have been asked; doubles up to a second
)

// failover is a grpc.ClientConnInterface over several nodes. It stays with the
// node that answered last.
type failover struct {
	cfg    Config
	bearer string // the caller's credential as calls carry it; "": none
	conns  []*grpc.ClientConn
	reach  []*reach // of each
	seen   seen
	stale  stale
	hedge  hedge

	mu      sync.Mutex
	current int
	// A node that has forwarded a call says where to: such calls go there first.
	leader  int             // -1: not known
	leaders map[string]bool // methods that run at the leader
}

// mdLeader is the metadata in which a node says where it forwarded a call.
const mdLeader = "bmc-leader"

func newFailover(cfg Config, tlsConfig *tls.Config) (*failover, error) {
	f := &failover{cfg: cfg, leader: -1, leaders: map[string]bool{}, hedge: hedge{after: cfg.hedgeAfter}}
	if cfg.Token != "" {
		f.bearer = "Bearer " + cfg.Token
	}
	for _, addr := range cfg.Addresses {
		r := &reach{noCA: len(cfg.CACert) == 0}
		f.reach = append(f.reach, r)
		opts := []grpc.DialOption{
			grpc.WithTransportCredentials(noted{credentials.NewTLS(tlsConfig), r}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
			grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
				MinConnectTimeout: connectWait,
			}),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveEvery, Timeout: keepaliveWait}),
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

// Invoke runs a unary call on the current node, on the next as well when that says
// nothing for a while, and on the others while there is patience left. Errors are
// *metal.Error wherever a node gave a reason.
func (f *failover) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	args = f.seen.prepared(f.stale.prepared(args))
	c := &chase{f: f, first: f.first(method), patience: f.patience(method, args), limit: f.cfg.CallTimeout}
	c.call = func(ctx context.Context, o *outcome) {
		if o.reply = reply; o.n > 0 {
			o.reply = fresh(reply)
		}
		o.err = f.conns[o.at].Invoke(ctx, method, args, o.reply, append(slices.Clip(opts), grpc.Header(&o.header))...)
	}
	won, err := c.try(ctx)
	if at := won.header.Get(mdLeader); len(at) > 0 {
		f.learnLeader(method, at[0])
	}
	f.stale.learn(won.header)
	if err == nil {
		keep(reply, won.reply)
		f.seen.learn(reply)
	}
	return err
}

// NewStream opens a stream on the first node that takes it. A stream that
// breaks later is its user's to open again.
func (f *failover) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	f.mu.Lock()
	at := f.current
	f.mu.Unlock()
	at = f.connected(ctx, at)
	var s grpc.ClientStream
	c := &chase{f: f, first: at, call: func(_ context.Context, o *outcome) { // the stream lives on: in the caller's context
		s, o.err = f.conns[o.at].NewStream(f.authorized(ctx), desc, method, opts...)
	}}
	won, err := c.try(ctx)
	if err != nil {
		return nil, err
	}
	f.stay(won.at)
	return &stream{ClientStream: s, f: f, at: won.at}, nil
}

// stream mints request IDs for client streams, decodes refusals, and leaves a
// node that broke off.
type stream struct {
	grpc.ClientStream
	f  *failover
	at int // node
}

func (s *stream) SendMsg(m any) error { return s.ClientStream.SendMsg(s.f.seen.prepared(m)) }

func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	switch {
	case err == nil:
		s.f.seen.learn(m)
	case elsewhere(err), errors.Is(context.Cause(s.Context()), errSilent):
		s.f.leave(s.at)
	}
	return decode(err)
}

// leave makes the next call begin at another node, unless it does already.
func (f *failover) leave(at int) {
	f.mu.Lock()
	if f.current == at {
		f.current = (at + 1) % len(f.conns)
	}
	f.mu.Unlock()
}

// first is the node to begin at with a method that runs at the leader; -1: the
// current one.
func (f *failover) first(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.leaders[method] {
		return f.leader
	}
	return -1
}

// learnLeader notes that a method was forwarded, and where to. An address that is
// none of ours (another name for the node) teaches nothing.
func (f *failover) learnLeader(method, addr string) {
	i := slices.Index(f.cfg.Addresses, addr)
	if i < 0 {
		return
	}
	f.mu.Lock()
	f.leader, f.leaders[method] = i, true
	f.mu.Unlock()
}

// authorized is ctx with the caller's credential.
func (f *failover) authorized(ctx context.Context) context.Context {
	if f.bearer == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", f.bearer)
}

// stay makes the next call begin at this node.
func (f *failover) stay(at int) {
	f.mu.Lock()
	f.current = at
	f.mu.Unlock()
}

// answered notes where an answer came from.
func (f *failover) answered(o outcome, first int, raced bool) {
	if o.at != first {
		if first >= 0 {
			f.forgetLeader()
		}
		f.stay(o.at)
	}
	if raced {
		f.hedge.won(o.n == 0, f.cfg.hedgeAfter)
	}
}

func (f *failover) forgetLeader() {
	f.mu.Lock()
	f.leader = -1
	f.mu.Unlock()
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

// late says whether an attempt ran into its own bound, or a node into one of
// its own: while the caller's context is good, that is no end. A node may notice
// an attempt's bound before we do, and give it as its reason; or it has not
// reached the revision that was asked for.
func late(err error) bool { return status.Code(err) == codes.DeadlineExceeded }

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

func join(addrs []string) string { return strings.Join(addrs, ", ") }
