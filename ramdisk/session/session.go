// Package session is a ramdisk's conversation with its rack's agent: one hello,
// then tasks, one at a time, until the machine is to reboot or power off.
// An agent that restarts or a network that breaks never changes the outcome:
// calls are repeated, a task runs once, its result is sent until it is taken.
package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/bootseed"
)

const (
	connectFor  = 15 * time.Second // TCP and TLS
	callFor     = 20 * time.Second // one unary call
	nextTaskFor = 45 * time.Second // the agent holds NextTask for at most 30 s
	backoffMin  = 250 * time.Millisecond
	backoffMax  = 5 * time.Second
	// helloRefusals is how often the agent may say no: about four seconds.
	helloRefusals = 5
	maxMessage    = 16 << 20 // a task carries a manifest of at most 2 MiB and user data
)

// End is how a session ends.
type End string

// The ends.
const (
	Reboot   End = "reboot"
	PowerOff End = "power-off"
)

// Config is what a session needs of the machine.
type Config struct {
	Seed     bootseed.Seed
	BootID   string // /proc/sys/kernel/random/boot_id
	Version  string
	Identity *agentv1.Hardware
	Log      *slog.Logger
	SetClock func(time.Time) error // nil: the clock stays
	// Run does one task. The outcome's task ID, reason and message are filled
	// in by the session. The context ends when the agent cancels the task.
	Run func(ctx context.Context, task *agentv1.Task, progress Progress) (*agentv1.CompleteTaskRequest, error)
}

// Session talks to one agent. It is used by one goroutine.
type Session struct {
	cfg     Config
	conn    *grpc.ClientConn
	client  agentv1.RamdiskClient
	cert    *tls.Certificate
	expires time.Time
	tries   int // failures in a row
	results results
}

// New starts a session; nothing is dialled yet.
func New(cfg Config) *Session { return &Session{cfg: cfg} }

// Close ends the connection.
func (s *Session) Close() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// Hello proves this boot to the agent and buys the certificate. It repeats
// until ctx ends or the agent refuses. A repeated hello is the same to the
// byte (token, CSR, boot ID), by which an agent can tell a lost answer from a
// stolen token.
func (s *Session) Hello(ctx context.Context) error {
	key, csr, err := newKey(s.cfg.Seed.ServerID)
	if err != nil {
		return err
	}
	req := &agentv1.HelloRequest{
		ServerId: s.cfg.Seed.ServerID, Token: s.cfg.Seed.Token, Csr: csr,
		Identity: s.cfg.Identity, Version: s.cfg.Version, BootId: s.cfg.BootID,
	}
	var resp *agentv1.HelloResponse
	for refusals := 0; ; {
		resp, err = s.hello(ctx, req)
		if err == nil {
			break
		}
		// An agent that has just started may not know the boot yet.
		if refused(err) {
			if refusals++; refusals == helloRefusals {
				return fmt.Errorf("the agent refused the hello: %w", err)
			}
		}
		s.cfg.Log.Info("no answer to the hello yet", "addr", s.cfg.Seed.Agent, "err", brief(err))
		if !s.pause(ctx) {
			return fmt.Errorf("no answer to the hello from %s: %w", s.cfg.Seed.Agent, err)
		}
	}
	s.tries = 0
	s.cert = &tls.Certificate{Certificate: [][]byte{resp.GetCertificate()}, PrivateKey: key}
	leaf, err := parseLeaf(s.cert, key)
	if err != nil {
		return err
	}
	s.expires = leaf.NotAfter
	if s.cfg.SetClock != nil && resp.GetNow().IsValid() {
		if err := s.cfg.SetClock(resp.GetNow().AsTime()); err != nil {
			s.cfg.Log.Warn("clock not set", "err", err)
		}
	}
	s.Close() // the next call dials with the certificate
	return nil
}

func (s *Session) hello(ctx context.Context, req *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callFor)
	defer cancel()
	resp, err := s.client.Hello(ctx, req)
	if err != nil {
		s.Close()
	}
	return resp, err
}

// connect dials unless there is a connection, and waits until TLS has proved
// the agent, so that a call is sent only to somebody who can answer it.
func (s *Session) connect(ctx context.Context) error {
	if s.conn != nil {
		return nil
	}
	ca, err := s.cfg.Seed.CA()
	if err != nil {
		return err
	}
	s.conn, err = grpc.NewClient("passthrough:///"+s.cfg.Seed.Agent,
		grpc.WithTransportCredentials(credentials.NewTLS(clientTLS(ca, s.cert))),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: backoffMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: backoffMax},
			MinConnectTimeout: connectFor,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 5 * time.Minute, Timeout: callFor}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
	if err != nil {
		return fmt.Errorf("dial the agent: %w", err)
	}
	s.client = agentv1.NewRamdiskClient(s.conn)
	ctx, cancel := context.WithTimeout(ctx, connectFor)
	defer cancel()
	s.conn.Connect()
	for state := s.conn.GetState(); state != connectivity.Ready; state = s.conn.GetState() {
		if state == connectivity.TransientFailure || !s.conn.WaitForStateChange(ctx, state) {
			err := s.connectError()
			s.Close()
			return err
		}
	}
	return nil
}

// connectError asks gRPC why it cannot connect: a call that fails at once tells.
func (s *Session) connectError() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := s.client.NextTask(ctx, &agentv1.NextTaskRequest{BootId: s.cfg.BootID})
	if err == nil {
		err = errors.New("connection lost")
	}
	return status.Errorf(codes.Unavailable, "connect to the agent: %s", brief(err))
}

// call repeats f until it succeeds, ctx ends or the answer is final.
func (s *Session) call(ctx context.Context, limit time.Duration, final func(error) bool, f func(context.Context) error) error {
	for {
		err := s.connect(ctx)
		if err == nil {
			callCtx, cancel := context.WithTimeout(ctx, limit)
			err = f(callCtx)
			cancel()
		}
		if err == nil {
			s.tries = 0
			return nil
		}
		if final(err) || ctx.Err() != nil {
			return err
		}
		if s.tries == 0 {
			s.cfg.Log.Info("agent has no answer, trying again", "err", brief(err))
		}
		s.Close()
		if !s.pause(ctx) {
			return err
		}
	}
}

// pause waits with jittered exponential backoff; false says that ctx ended.
func (s *Session) pause(ctx context.Context) bool {
	d := min(backoffMin<<min(s.tries, 10), backoffMax)
	s.tries++
	d = d/2 + rand.N(d)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// refused tells a decision from trouble: only trouble is worth a repetition.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.FailedPrecondition, codes.InvalidArgument,
		codes.NotFound, codes.AlreadyExists, codes.Unimplemented:
		return true
	}
	return false
}

// brief is an error without gRPC's wrapping, for a console line.
func brief(err error) string {
	if st, ok := status.FromError(err); ok {
		return st.Message()
	}
	return err.Error()
}
