// Package boot meets machines that boot the ramdisk: it opens boot intents,
// mints the one-time token of each boot, answers the ramdisk's Hello and hands
// it one task at a time. What must survive a restart of the agent leaves as an
// Event, which the caller journals and gives back.
package boot

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/bootseed"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

const (
	pollLimit   = 25 * time.Second // of NextTask; callers wait 30 s
	issueLimit  = 20 * time.Second
	tokenBytes  = 32
	maxIdentity = 64 << 10 // bytes of a Hello's identity
	maxBootID   = 64
)

// Config of a Service.
type Config struct {
	CAPEM string // the CA that the ramdisk shall pin
	// Endpoint is the host:port of this service on the network of a server's rack.
	Endpoint func(serverID string) string
	// Agents is where this and the other agents of a server's rack serve
	// ramdisks, host:port, this one first; others are known by hearsay. Nil: this one alone.
	Agents func(serverID string) []string
	// Issue buys the certificate of a server whose ramdisk has said hello.
	Issue func(ctx context.Context, serverID string, csr []byte) ([]byte, error)
	// Waits tells in which boot of the ramdisk a server waits for a tenant, ""
	// when it does not, and whether its ramdisk is to wait here: whether this
	// agent holds the rack's lease. Nil: no server waits.
	Waits func(serverID string) (bootID string, here bool)
	// Over says whether this agent knows that no operation is under way on a server.
	// Nil: it never does.
	Over func(serverID string) bool
	// Renew prolongs the certificate of a server that waits in that boot.
	Renew func(ctx context.Context, serverID, bootID string, csr []byte) ([]byte, error)
	// PeerServer tells which server a verified client certificate belongs to.
	// Nil reads the URI SAN spiffe://<cluster>/server/<id>.
	PeerServer func(credentials.TLSInfo) (string, bool)
	Now        func() time.Time
	Log        *slog.Logger
	// Discovery is for machines that nobody knows; nil: they get nothing.
	Discovery *Discovery
}

// Service is the Ramdisk service and the source of seeds. It is safe for
// concurrent use.
type Service struct {
	agentv1.UnimplementedRamdiskServer
	cfg Config

	mu       sync.Mutex
	sessions map[string]*Session // by server ID
	waiting  map[string]*waiting // likewise, of those that have called
}

// New returns a service without sessions.
func New(cfg Config) *Service {
	if cfg.PeerServer == nil {
		cfg.PeerServer = peerServer
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Waits == nil {
		cfg.Waits = func(string) (string, bool) { return "", false }
	}
	if cfg.Over == nil {
		cfg.Over = func(string) bool { return false }
	}
	return &Service{cfg: cfg, sessions: make(map[string]*Session), waiting: make(map[string]*waiting)}
}

// Open begins the session of one attempt of an operation on a server; saved
// are the events of an earlier run of it. It replaces the server's former one.
func (s *Service) Open(b Binding, saved []Event, record func(Event) error) *Session {
	sess := &Session{Binding: b, service: s, record: record, spent: make(map[string]bool)}
	sess.front.changed = make(chan struct{})
	sess.expects = b.BootID
	for _, e := range saved {
		sess.apply(e)
	}
	sess.show()
	s.mu.Lock()
	former := s.sessions[b.Server]
	s.sessions[b.Server] = sess
	s.mu.Unlock()
	if former != nil {
		former.end()
	}
	return sess
}

func (s *Service) forget(sess *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[sess.Server] == sess {
		delete(s.sessions, sess.Server)
	}
}

func (s *Service) session(serverID string) *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[serverID]
}

func (s *Service) byMAC(mac string) *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sess := range s.sessions {
		if sess.MAC == mac {
			return sess
		}
	}
	return nil
}

// Wanted says whether a boot intent is open for a MAC: whether its machine
// shall boot the ramdisk now. It is another agent's to say so, maybe, while this
// one is not at the operation (see Session.Attend): then here is false.
func (s *Service) Wanted(mac string) (wanted, here bool) {
	sess := s.byMAC(mac)
	if sess == nil {
		return false, false
	}
	return sess.armed()
}

// Expected says whether a boot of a MAC may be an operation's doing.
func (s *Service) Expected(mac string) bool {
	sess := s.byMAC(mac)
	return sess != nil && sess.expected()
}

// Seed implements netboot.Seeder: a newc archive with a fresh token, which
// replaces the former one.
func (s *Service) Seed(_ context.Context, mac string) ([]byte, error) {
	sess := s.byMAC(mac)
	if sess == nil && s.cfg.Discovery != nil {
		return s.cfg.Discovery.Seed(mac)
	}
	if sess == nil {
		return nil, metal.Errorf(metal.CodeDenied, "no boot intent is open for %s", mac)
	}
	secret := make([]byte, tokenBytes)
	_, _ = rand.Read(secret) // never fails
	token := base64.RawURLEncoding.EncodeToString(secret)
	if err := sess.mint(hash(token)); err != nil {
		return nil, err
	}
	return bootseed.Seed{
		ServerID: sess.Server, Token: token, Agent: s.cfg.Endpoint(sess.Server), CAPEM: s.cfg.CAPEM,
		Now: s.cfg.Now().UTC(), ConsoleTTY: sess.ConsoleTTY, MAC: mac,
	}.CPIO()
}

// Hello implements the Ramdisk service. A token buys a certificate for one
// key: the same request again, after a lost answer, gets the same; a request
// with another key is a second use and fails the operation.
func (s *Service) Hello(ctx context.Context, req *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	if len(req.GetBootId()) > maxBootID || len(req.GetToken()) > maxBootID || tooLarge(req.GetIdentity()) {
		return nil, rpcerr.Encode(metal.Invalid("hello", "too large"), "")
	}
	sess := s.session(req.GetServerId())
	if sess == nil {
		return nil, rpcerr.Encode(metal.Errorf(metal.CodeDenied, "this server has no boot under way here"), "")
	}
	if err := sess.hello(req); err != nil {
		s.cfg.Log.Warn("ramdisk refused", "server", sess.Server, "operation", sess.Operation, "attempt", sess.Attempt, "err", err)
		return nil, rpcerr.Encode(err, "")
	}
	ctx, cancel := context.WithTimeout(ctx, issueLimit)
	defer cancel()
	cert, err := s.cfg.Issue(ctx, sess.Server, req.GetCsr())
	if err != nil {
		s.cfg.Log.Warn("no certificate for a ramdisk", "server", sess.Server, "operation", sess.Operation, "err", err)
		return nil, rpcerr.Encode(&metal.Error{Code: metal.CodeNoLeader, Message: "no certificate to be had at the moment", Err: err}, "")
	}
	s.cfg.Log.Info("ramdisk said hello", "server", sess.Server, "operation", sess.Operation, "attempt", sess.Attempt)
	return &agentv1.HelloResponse{Certificate: cert, Now: timestamppb.New(s.cfg.Now()), Agents: s.agents(sess.Server)}, nil
}

// NextTask implements the Ramdisk service.
func (s *Service) NextTask(ctx context.Context, req *agentv1.NextTaskRequest) (*agentv1.NextTaskResponse, error) {
	id, info, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, pollLimit)
	defer cancel()
	sess := s.session(id)
	if sess == nil {
		return s.wait(ctx, id, req.GetBootId())
	}
	task, err := sess.next(ctx, req, keyOf(info))
	if err != nil {
		return nil, rpcerr.Encode(err, "")
	}
	return &agentv1.NextTaskResponse{Task: task, Agents: s.agents(sess.Server)}, nil
}

// TaskProgress implements the Ramdisk service.
func (s *Service) TaskProgress(ctx context.Context, req *agentv1.TaskProgressRequest) (*agentv1.TaskProgressResponse, error) {
	sess, key, err := s.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := sess.progress(req, key)
	if err != nil {
		return nil, rpcerr.Encode(err, "")
	}
	resp.Agents = s.agents(sess.Server)
	return resp, nil
}

// CompleteTask implements the Ramdisk service. It may be repeated.
func (s *Service) CompleteTask(ctx context.Context, req *agentv1.CompleteTaskRequest) (*agentv1.CompleteTaskResponse, error) {
	sess, key, err := s.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	if err := sess.complete(req, key); err != nil {
		return nil, rpcerr.Encode(err, "")
	}
	return &agentv1.CompleteTaskResponse{}, nil
}

// agents is where a server's ramdisk may look for another agent.
func (s *Service) agents(serverID string) []string {
	if s.cfg.Agents == nil {
		return []string{s.cfg.Endpoint(serverID)}
	}
	return s.cfg.Agents(serverID)
}

// authenticate finds the session of the server in the caller's certificate, and
// the hash of that certificate's key. A known server without one is told to come
// back, unless it is sure that there is none: after a restart, operations resume only
// when a node has sent them again.
func (s *Service) authenticate(ctx context.Context) (sess *Session, key []byte, err error) {
	id, info, err := s.caller(ctx)
	if err != nil {
		return nil, nil, err
	}
	if sess = s.session(id); sess == nil {
		return nil, nil, rpcerr.Encode(s.nothing(id), "")
	}
	return sess, keyOf(info), nil
}

// keyOf hashes the key that a caller has proved to have.
func keyOf(info credentials.TLSInfo) []byte {
	if len(info.State.PeerCertificates) == 0 {
		return nil
	}
	h := sha256.Sum256(info.State.PeerCertificates[0].RawSubjectPublicKeyInfo)
	return h[:]
}

// The two answers to a machine without a session: come back, and, where it is sure,
// nothing will come. A ramdisk that hears only the latter for long powers itself off.
var (
	errNothing = metal.Errorf(metal.CodeNoLeader, "no operation is under way on this server, or none is known yet")
	errOver    = metal.Errorf(metal.CodeWrongState, "no operation is under way on this server")
)

func (s *Service) nothing(serverID string) error {
	if s.cfg.Over(serverID) {
		return errOver
	}
	return errNothing
}

// caller is the server in the caller's certificate.
func (s *Service) caller(ctx context.Context) (id string, info credentials.TLSInfo, err error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", info, rpcerr.Encode(metal.Errorf(metal.CodeUnauthenticated, "no peer"), "")
	}
	if info, ok = p.AuthInfo.(credentials.TLSInfo); !ok {
		return "", info, rpcerr.Encode(metal.Errorf(metal.CodeUnauthenticated, "no client certificate"), "")
	}
	if id, ok = s.cfg.PeerServer(info); !ok {
		return "", info, rpcerr.Encode(metal.Errorf(metal.CodeUnauthenticated, "a server's certificate is needed"), "")
	}
	return id, info, nil
}

// peerServer reads the server's ID from a certificate that TLS has verified.
func peerServer(info credentials.TLSInfo) (string, bool) {
	if len(info.State.VerifiedChains) == 0 {
		return "", false
	}
	for _, uri := range info.State.VerifiedChains[0][0].URIs {
		if id, ok := bytes.CutPrefix([]byte(uri.Path), []byte("/server/")); ok && uri.Scheme == "spiffe" && len(id) > 0 {
			return string(id), true
		}
	}
	return "", false
}

func hash(token string) []byte {
	h := sha256.Sum256([]byte(token))
	return h[:]
}
