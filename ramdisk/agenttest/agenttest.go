// Package agenttest is an agent's Ramdisk service for tests: a CA, a token,
// a queue of tasks, and a record of what the ramdisk said.
package agenttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "bmc/api/agent/v1"
)

// Agent serves one server's ramdisk.
type Agent struct {
	agentv1.UnimplementedRamdiskServer

	ServerID string
	Token    string

	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	role   string
	mu     sync.Mutex
	server *grpc.Server
	wake   chan struct{}

	refusal  error // of every hello
	loseAck  bool
	unwanted error // of the next result
	hello    *agentv1.HelloRequest
	csr      string // of the first hello
	queue    []*agentv1.Task
	results  []*agentv1.CompleteTaskRequest // every one received
	progress []*agentv1.TaskProgressRequest
	cancel   map[string]bool
	agents   []string // of the rack, as told to the ramdisk
	away     error    // of every call but hello
	chunkURL string   // in answers to progress
	renewals int
	holding  error // of every renewal
}

// New makes an agent with a CA of its own. Role is "agent" but for tests of
// impostors.
func New(role string) (*Agent, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &Agent{ServerID: "srv-abcdefghijklmnop", Token: "one-time-token-0123456789", caKey: key, role: role,
		wake: make(chan struct{}), cancel: map[string]bool{}}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	a.ca, err = x509.ParseCertificate(der)
	return a, err
}

// Peer is another agent of the same rack, with the same CA, that has never met
// the ramdisk.
func (a *Agent) Peer() *Agent {
	return &Agent{ServerID: a.ServerID, ca: a.ca, caKey: a.caKey, role: a.role, wake: make(chan struct{}), cancel: map[string]bool{}}
}

// CAPEM is the CA that ramdisks pin.
func (a *Agent) CAPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.ca.Raw}))
}

func (a *Agent) sign(pub any, path string, usage x509.ExtKeyUsage) ([]byte, error) {
	return a.signFor(pub, path, usage, 24*time.Hour)
}

func (a *Agent) signFor(pub any, path string, usage x509.ExtKeyUsage, life time.Duration) ([]byte, error) {
	u, err := url.Parse("spiffe://test/" + path)
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, a.ca, pub, a.caKey)
}

// Start listens and serves; it returns the address.
func (a *Agent) Start(addr string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	der, err := a.sign(key.Public(), a.role+"/agt-1", x509.ExtKeyUsageServerAuth)
	if err != nil {
		return "", err
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.ca)
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})), grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}))
	agentv1.RegisterRamdiskServer(s, a)
	a.mu.Lock()
	a.server = s
	a.mu.Unlock()
	go func() { _ = s.Serve(lis) }() // ends with Stop
	return lis.Addr().String(), nil
}

// Stop breaks every connection. Start may follow.
func (a *Agent) Stop() {
	a.mu.Lock()
	s := a.server
	a.mu.Unlock()
	if s != nil {
		s.Stop()
	}
}

// Push queues a task.
func (a *Agent) Push(t *agentv1.Task) { a.change(func() { a.queue = append(a.queue, t) }) }

// Refuse answers every hello with err; nil ends that.
func (a *Agent) Refuse(err error) { a.change(func() { a.refusal = err }) }

// Tell has every answer name the rack's agents.
func (a *Agent) Tell(addrs ...string) { a.change(func() { a.agents = addrs }) }

// Away answers every call but hello with err; nil ends that.
func (a *Agent) Away(err error) { a.change(func() { a.away = err }) }

// Hold refuses every renewal with err; nil ends that.
func (a *Agent) Hold(err error) { a.change(func() { a.holding = err }) }

// Renewals is how often the certificate was renewed.
func (a *Agent) Renewals() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.renewals
}

// MoveChunks answers progress with another URL for chunks.
func (a *Agent) MoveChunks(url string) { a.change(func() { a.chunkURL = url }) }

// LoseAck takes the next result but breaks its acknowledgement.
func (a *Agent) LoseAck() { a.change(func() { a.loseAck = true }) }

// Unwanted gives the task up whose result comes next, and refuses that with err.
func (a *Agent) Unwanted(err error) { a.change(func() { a.unwanted = err }) }

// Cancel answers the task's next progress with cancel.
func (a *Agent) Cancel(id string) { a.change(func() { a.cancel[id] = true }) }

// Reported waits for progress of a task.
func (a *Agent) Reported(ctx context.Context, id string) (p *agentv1.TaskProgressRequest, err error) {
	err = a.wait(ctx, func() bool {
		for _, r := range a.progress {
			if r.GetTaskId() == id {
				p = r
			}
		}
		return p != nil
	})
	return p, err
}

// Greeted waits for the hello.
func (a *Agent) Greeted(ctx context.Context) (*agentv1.HelloRequest, error) {
	var h *agentv1.HelloRequest
	err := a.wait(ctx, func() bool { h = a.hello; return h != nil })
	return h, err
}

// Result waits for a task's result.
func (a *Agent) Result(ctx context.Context, id string) (*agentv1.CompleteTaskRequest, error) {
	var r *agentv1.CompleteTaskRequest
	err := a.wait(ctx, func() bool {
		for _, c := range a.results {
			if c.GetTaskId() == id {
				r = c
			}
		}
		return r != nil
	})
	return r, err
}

// Deliveries counts how often a task's result came.
func (a *Agent) Deliveries(id string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.results {
		if c.GetTaskId() == id {
			n++
		}
	}
	return n
}

// Progress returns what was reported of a task so far.
func (a *Agent) Progress(id string) (reports []*agentv1.TaskProgressRequest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.progress {
		if p.GetTaskId() == id {
			reports = append(reports, p)
		}
	}
	return reports
}

func (a *Agent) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.wake)
	a.wake = make(chan struct{})
}

func (a *Agent) wait(ctx context.Context, ok func() bool) error {
	for {
		a.mu.Lock()
		done, wake := ok(), a.wake
		a.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Hello implements agentv1.RamdiskServer. A repetition with the same CSR is a
// lost answer; with another it is a stolen token.
func (a *Agent) Hello(_ context.Context, req *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	a.mu.Lock()
	first := a.csr == ""
	if first {
		a.csr = string(req.GetCsr())
	}
	same, fail := a.csr == string(req.GetCsr()), a.refusal
	a.mu.Unlock()
	switch {
	case fail != nil:
		return nil, fail
	case req.GetServerId() != a.ServerID || req.GetToken() != a.Token || !same:
		return nil, status.Error(codes.PermissionDenied, "wrong or spent token")
	}
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "bad CSR")
	}
	der, err := a.sign(csr.PublicKey, "server/"+a.ServerID, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	a.change(func() { a.hello = req })
	return &agentv1.HelloResponse{Certificate: der, Now: timestamppb.Now(), Agents: a.told()}, nil
}

func (a *Agent) told() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.agents
}

// serves says why a call but hello is not answered.
func (a *Agent) serves(ctx context.Context) error {
	if err := authenticated(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.away
}

func authenticated(ctx context.Context) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return status.Error(codes.Unauthenticated, "no certificate")
	}
	return nil
}

// NextTask implements agentv1.RamdiskServer.
func (a *Agent) NextTask(ctx context.Context, _ *agentv1.NextTaskRequest) (*agentv1.NextTaskResponse, error) {
	if err := a.serves(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp := &agentv1.NextTaskResponse{Agents: a.told()}
	err := a.wait(ctx, func() bool {
		if len(a.queue) > 0 {
			resp.Task = a.queue[0]
		}
		return len(a.queue) > 0
	})
	if err != nil && ctx.Err() == nil {
		return nil, err
	}
	return resp, nil
}

// TaskProgress implements agentv1.RamdiskServer.
func (a *Agent) TaskProgress(ctx context.Context, req *agentv1.TaskProgressRequest) (*agentv1.TaskProgressResponse, error) {
	if err := a.serves(ctx); err != nil {
		return nil, err
	}
	resp := &agentv1.TaskProgressResponse{}
	a.change(func() {
		a.progress = append(a.progress, req)
		resp.Cancel, resp.ChunkUrl, resp.Agents = a.cancel[req.GetTaskId()], a.chunkURL, a.agents
	})
	return resp, nil
}

// CompleteTask implements agentv1.RamdiskServer.
func (a *Agent) CompleteTask(ctx context.Context, req *agentv1.CompleteTaskRequest) (*agentv1.CompleteTaskResponse, error) {
	if err := a.serves(ctx); err != nil {
		return nil, err
	}
	lose := false
	var refusal error
	a.change(func() {
		refusal, a.unwanted = a.unwanted, nil
		a.results = append(a.results, req)
		lose, a.loseAck = a.loseAck, false
		if !lose && len(a.queue) > 0 && a.queue[0].GetId() == req.GetTaskId() {
			a.queue = a.queue[1:]
		}
	})
	if refusal != nil {
		return nil, refusal
	}
	if lose {
		return nil, status.Error(codes.Unavailable, "acknowledgement lost")
	}
	return &agentv1.CompleteTaskResponse{}, nil
}

// Renew implements agentv1.RamdiskServer: each certificate lives a day longer
// than the one before.
func (a *Agent) Renew(ctx context.Context, req *agentv1.RenewRequest) (*agentv1.RenewResponse, error) {
	if err := a.serves(ctx); err != nil {
		return nil, err
	}
	a.mu.Lock()
	err := a.holding
	if err == nil {
		a.renewals++
	}
	n := a.renewals
	a.mu.Unlock()
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "bad CSR")
	}
	der, err := a.signFor(csr.PublicKey, "server/"+a.ServerID, x509.ExtKeyUsageClientAuth, time.Duration(n+1)*24*time.Hour)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &agentv1.RenewResponse{Certificate: der}, nil
}

func (a *Agent) String() string { return fmt.Sprintf("test agent for %s", a.ServerID) }
