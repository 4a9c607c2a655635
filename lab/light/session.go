package light

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	agentv1 "bmc/api/agent/v1"
)

const (
	connectFor  = 5 * time.Second
	callFor     = 20 * time.Second
	nextTaskFor = 45 * time.Second // an agent holds NextTask for at most 30 s
	backoffMin  = 250 * time.Millisecond
	backoffMax  = 5 * time.Second
	helloFor    = 3 * time.Minute // then the machine starts again
	helloNo     = 5               // refusals after which it does so at once
	resultNo    = 3               // refusals by each agent after which a result is nobody's
	maxMessage  = 16 << 20
	wireBuffer  = 4 << 10 // of a connection, each way: there are hundreds
)

// session is the talk of one boot's ramdisk with its rack's agents.
type session struct {
	l      *life
	seed   *seed
	roots  *x509.CertPool
	cert   *tls.Certificate
	agents []string // the one that is asked first
	conn   *grpc.ClientConn
	fails  int // in a row

	results map[string]*agentv1.CompleteTaskRequest // of this boot, by task
	last    string                                  // the task that was completed last
}

func (l *life) newSession(raw []byte) (*session, error) {
	note, err := readSeed(raw)
	if err != nil {
		return nil, err
	}
	ca, err := x509.ParseCertificate(note.ca)
	if err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	s := &session{l: l, seed: note, roots: x509.NewCertPool(), agents: []string{note.Agent}, results: map[string]*agentv1.CompleteTaskRequest{}}
	s.roots.AddCert(ca)
	return s, nil
}

func (s *session) close() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

func (s *session) agent() string { return s.agents[0] }

// heard takes a new list of the rack's agents. The one that is asked now stays
// first if it is still there.
func (s *session) heard(agents []string) {
	if len(agents) == 0 {
		return
	}
	now := s.agent()
	s.agents = slices.Clone(agents)
	if i := slices.Index(s.agents, now); i > 0 {
		s.agents[0], s.agents[i] = s.agents[i], s.agents[0]
	} else if i < 0 {
		s.close()
	}
}

// turn asks the next agent from now on.
func (s *session) turn() {
	s.close()
	s.agents = append(s.agents[1:], s.agents[0])
}

func (s *session) tls() *tls.Config {
	c := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection checks the chain: an agent's name is its ID
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return errors.New("no certificate")
			}
			leaf := state.PeerCertificates[0]
			opts := x509.VerifyOptions{Roots: s.roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
			for _, c := range state.PeerCertificates[1:] {
				opts.Intermediates.AddCert(c)
			}
			if _, err := leaf.Verify(opts); err != nil {
				return err
			}
			for _, u := range leaf.URIs {
				if u.Scheme == "spiffe" && strings.HasPrefix(u.Path, "/agent/") {
					return nil
				}
			}
			return errors.New("the certificate is not an agent's")
		},
		SessionTicketsDisabled: true,
	}
	if s.cert != nil {
		c.Certificates = []tls.Certificate{*s.cert}
	}
	return c
}

func (s *session) client() (agentv1.RamdiskClient, error) {
	if s.conn == nil {
		var err error
		s.conn, err = grpc.NewClient("passthrough:///"+s.agent(),
			grpc.WithTransportCredentials(credentials.NewTLS(s.tls())),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return s.l.nic.dial(ctx, addr) }),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: backoffMin, Multiplier: 1.6, MaxDelay: backoffMax}, MinConnectTimeout: connectFor}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
			grpc.WithReadBufferSize(wireBuffer), grpc.WithWriteBufferSize(wireBuffer),
			grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
		if err != nil {
			return nil, err
		}
	}
	return agentv1.NewRamdiskClient(s.conn), nil
}

// once makes one call of the agent that is asked now.
func (s *session) once(ctx context.Context, limit time.Duration, f func(context.Context, agentv1.RamdiskClient) error) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(ctx, c)
}

// call asks one agent after the other until one answers, the boot ends, or
// enough says so of the refusals, in a row, of all agents.
func (s *session) call(ctx context.Context, limit time.Duration, enough func(refusals int) bool, f func(context.Context, agentv1.RamdiskClient) error) error {
	refusals := 0
	for {
		err := s.once(ctx, limit, f)
		if err == nil {
			s.fails = 0
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if refused(err) {
			if refusals++; enough(refusals) {
				return err
			}
		}
		s.turn()
		if err := s.backoff(ctx); err != nil {
			return err
		}
	}
}

func (s *session) backoff(ctx context.Context) error {
	d := min(backoffMin<<min(s.fails, 8), backoffMax)
	s.fails++
	return s.l.sleep(ctx, d)
}

// refused says that an agent understood, and will not. Another one may.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.FailedPrecondition, codes.InvalidArgument,
		codes.NotFound, codes.AlreadyExists, codes.Unimplemented:
		return true
	}
	return false
}

// hello spends the seed's token. Every try sends the same request, so that a
// lost answer is no second use.
func (s *session) hello(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	version := "light"
	if f := s.l.m.cfg.Version; f != nil {
		version = f()
	}
	req := &agentv1.HelloRequest{ServerId: s.seed.ServerID, Token: s.seed.Token, Csr: csr, Identity: s.l.hardware(), Version: version, BootId: s.l.bootID}
	ctx, cancel := context.WithTimeoutCause(ctx, helloFor, errors.New("no answer to the hello"))
	defer cancel()
	var resp *agentv1.HelloResponse
	err = s.call(ctx, callFor, func(n int) bool { return n >= helloNo }, func(ctx context.Context, c agentv1.RamdiskClient) (err error) {
		resp, err = c.Hello(ctx, req)
		return err
	})
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(resp.GetCertificate())
	if err != nil {
		return fmt.Errorf("the agent's answer: %w", err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return errors.New("the agent certified another key")
	}
	s.cert = &tls.Certificate{Certificate: [][]byte{resp.GetCertificate()}, PrivateKey: key}
	s.close() // the next call shows the certificate
	s.heard(resp.GetAgents())
	return nil
}
