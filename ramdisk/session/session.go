// Package session is a ramdisk's conversation with its rack's agents: one hello,
// then tasks, one at a time, until the machine is to reboot or power off.
// An agent that restarts or dies or a network that breaks never changes the
// outcome: calls are repeated, at another agent where there is one, a task runs
// once, its result is sent until it is taken.
package session

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
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
	connectFor = 15 * time.Second // TCP and TLS
	callFor    = 20 * time.Second // one unary call
	// An agent may be stopped rather than dead: then others are asked soon.
	connectOneOf = 6 * time.Second
	progressFor  = 8 * time.Second
	pingAfter    = 11 * time.Second // of silence; agents allow one ping in 10 s
	pingFor      = 8 * time.Second
	nextTaskFor  = 45 * time.Second // the agent holds NextTask for at most 30 s
	backoffMin   = 250 * time.Millisecond
	backoffMax   = 5 * time.Second
	roundMax     = 2 * time.Second // between two of several agents
	// helloRefusals is how often the agent may say no: about four seconds.
	helloRefusals = 5
	// A boot that nobody has work for ends at the fifth refusal in a row or later, when
	// the first is so long ago. At a try in five seconds that takes a hundred and more.
	overRefusals = 5
	overFor      = 10 * time.Minute
	maxMessage   = 16 << 20 // a task carries a manifest of at most 2 MiB and user data
)

// End is how a session ends.
type End string

// The ends.
const (
	Reboot   End = "reboot"
	PowerOff End = "power-off"
	Kexec    End = "kexec" // to the kernel that a task has loaded
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
	// ChunkURL hears where the chunks of the image that is being written are now,
	// time and again while it is. It must not block. May be nil.
	ChunkURL func(url string)
	// Now is the clock that the certificate's life is held against. Nil: time.Now.
	Now func() time.Time
}

// Session talks to one agent at a time. One goroutine uses it, or, while a task
// runs, the one that reports on that.
type Session struct {
	cfg     Config
	conn    *grpc.ClientConn
	client  agentv1.RamdiskClient
	cert    *tls.Certificate
	key     *ecdsa.PrivateKey
	expires time.Time
	renewAt time.Time
	agents  []string // host:port; never empty
	at      int      // the one that is asked
	tries   int      // failures in a row
	results results

	refusals int       // of calls for a task, since one was answered
	since    time.Time // the first of them
}

// New starts a session; nothing is dialled yet.
func New(cfg Config) *Session {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Session{cfg: cfg, agents: []string{cfg.Seed.Agent}}
}

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
	s.key = key
	if err := s.certified(resp.GetCertificate()); err != nil {
		return err
	}
	if s.cfg.SetClock != nil && resp.GetNow().IsValid() {
		if err := s.cfg.SetClock(resp.GetNow().AsTime()); err != nil {
			s.cfg.Log.Warn("clock not set", "err", err)
		}
	}
	s.Close() // the next call dials with the certificate
	s.learn(resp.GetAgents())
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
	s.conn, err = grpc.NewClient("passthrough:///"+s.agents[s.at],
		grpc.WithTransportCredentials(credentials.NewTLS(clientTLS(ca, s.cert))),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: backoffMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: backoffMax},
			MinConnectTimeout: connectFor,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingFor}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
	if err != nil {
		return fmt.Errorf("dial the agent: %w", err)
	}
	s.client = agentv1.NewRamdiskClient(s.conn)
	limit := connectFor
	if len(s.agents) > 1 {
		limit = connectOneOf
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
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

// call repeats f, at one agent after the other, until it succeeds, ctx ends or
// the answer is final.
func (s *Session) call(ctx context.Context, limit time.Duration, final func(error) bool, f func(context.Context) error) error {
	for {
		err := s.once(ctx, limit, final, f)
		if err == nil || final(err) || ctx.Err() != nil {
			return err
		}
		if !s.pause(ctx) {
			return err
		}
	}
}

// once tries f at the present agent; after an answer that is not final the next
// try is another's.
func (s *Session) once(ctx context.Context, limit time.Duration, final func(error) bool, f func(context.Context) error) error {
	err := s.connect(ctx)
	if err == nil {
		callCtx, cancel := context.WithTimeout(ctx, limit)
		err = f(callCtx)
		cancel()
	}
	switch {
	case err == nil:
		if s.tries > 0 {
			s.cfg.Log.Info("agent answers again", "addr", s.agents[s.at], "tries", s.tries)
		}
		s.tries = 0
	case final(err) || ctx.Err() != nil:
	default:
		if s.tries < len(s.agents) {
			s.cfg.Log.Info("agent has no answer", "addr", s.agents[s.at], "err", brief(err))
		}
		s.elsewhere()
	}
	return err
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
