package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/jointoken"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

const (
	testCluster = "cluster-test"
	testSecret  = "the-join-secret"
	testLease   = 3
)

// cluster is a control plane of some nodes that share everything.
type cluster struct {
	t     *testing.T
	ca    *x509.Certificate
	caKey *ecdsa.PrivateKey
	nodes []*fakeNode

	mu       sync.Mutex
	revision uint64
	rack     *agentv1.RackSpec
	servers  []*agentv1.ServerSpec
	assigned *agentv1.Assignment
	changed  chan struct{} // closed at the next edit
	called   chan struct{} // closed at the next call that is noted, and at the next edit
	held     bool
	reports  []*agentv1.ReportStepRequest
	seen     []*agentv1.Observation
	progress []*agentv1.ReportProgressRequest
	joins    int
	renewals int
	told     []*agentv1.ReconcileRequest
	life     time.Duration // of agents' certificates; 0: an hour
	renewed  int
	csr      string // of the join
	offers   chan *agentv1.TunnelOffer
	tunnels  chan tunnelSide
}

type tunnelSide struct {
	head   *agentv1.TunnelData
	stream grpc.BidiStreamingServer[agentv1.TunnelData, agentv1.TunnelData]
	done   chan struct{}
}

// fakeNode is one of its addresses.
type fakeNode struct {
	agentv1.UnimplementedEnrollmentServer
	agentv1.UnimplementedControlServer
	*cluster
	addr     string
	server   *grpc.Server
	stranger bool // it does not know the agent (any more)
}

func newCluster(t *testing.T, nodes int) *cluster {
	t.Helper()
	c := &cluster{t: t, changed: make(chan struct{}), called: make(chan struct{}), held: true, offers: make(chan *agentv1.TunnelOffer), tunnels: make(chan tunnelSide)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{{Scheme: "spiffe", Host: testCluster}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c.caKey = key
	if c.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	for range nodes {
		n := &fakeNode{cluster: c, addr: "127.0.0.1:0"}
		n.start(t)
		c.nodes = append(c.nodes, n)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.server.Stop()
		}
	})
	return c
}

func (c *cluster) sign(pub any, path string) []byte {
	life := time.Hour
	if c.life != 0 && path == "/agent/agt-1" {
		life = c.life
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life),
		URIs:        []*url.URL{{Scheme: "spiffe", Host: testCluster, Path: path}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, c.ca, pub, c.caKey)
	if err != nil {
		c.t.Error(err)
	}
	return der
}

func (c *cluster) signCSR(csrDER []byte, path string) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, err
	}
	return c.sign(csr.PublicKey, path), nil
}

// start serves on the node's address; it may follow a stop.
func (n *fakeNode) start(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	n.addr = lis.Addr().String()
	n.server = grpc.NewServer(grpc.Creds(grpccreds.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{n.sign(key.Public(), "/node/node-1"), n.ca.Raw}, PrivateKey: key}},
	})), grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if err := admit(ctx, info.FullMethod); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}), grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if err := admit(s.Context(), info.FullMethod); err != nil {
			return err
		}
		return next(srv, s)
	}))
	agentv1.RegisterEnrollmentServer(n.server, n)
	agentv1.RegisterControlServer(n.server, n)
	go func() { _ = n.server.Serve(lis) }() // ends with Stop
}

// admit lets an expired certificate renew itself, and do nothing else.
func admit(ctx context.Context, method string) error {
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(grpccreds.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 || method == agentv1.Control_RenewCertificate_FullMethodName {
		return nil
	}
	if time.Now().After(info.State.PeerCertificates[0].NotAfter) {
		return rpcerr.Encode(metal.Errorf(metal.CodeUnauthenticated, "the certificate has expired"), "")
	}
	return nil
}

func (n *fakeNode) RenewCertificate(_ context.Context, req *agentv1.RenewCertificateRequest) (*agentv1.RenewCertificateResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.renewed++
	cert, err := n.signCSR(req.GetCsr(), "/agent/agt-1")
	return &agentv1.RenewCertificateResponse{Certificate: cert}, err
}

func (c *cluster) tokenFile(t *testing.T) string {
	t.Helper()
	sum := sha256.Sum256(c.ca.Raw)
	var seeds []string
	for _, n := range c.nodes {
		seeds = append(seeds, n.addr)
	}
	path := filepath.Join(t.TempDir(), "token")
	text := jointoken.Token{
		Role: jointoken.RoleAgent, Seeds: seeds, CASHA256: hex.EncodeToString(sum[:]), ID: "tok-1", Secret: testSecret, Expires: time.Now().Add(time.Hour),
	}.String()
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// noted wakes who waits for an agent's call; the lock is held.
func (c *cluster) noted() {
	close(c.called)
	c.called = make(chan struct{})
}

// news is closed at the next call or edit; take it before looking.
func (c *cluster) news() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.called
}

// edit changes the inventory and lets the streams know.
func (c *cluster) edit(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	c.revision++
	c.noted()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (n *fakeNode) JoinAgent(_ context.Context, req *agentv1.JoinAgentRequest) (*agentv1.JoinAgentResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if req.GetTokenSecret() != testSecret {
		return nil, rpcerr.Encode(metal.Errorf(metal.CodeUnauthenticated, "the join token is not valid"), "")
	}
	if n.csr != "" && n.csr != string(req.GetCsr()) {
		return nil, rpcerr.Encode(metal.Errorf(metal.CodeUnauthenticated, "the join token was used"), "")
	}
	n.csr = string(req.GetCsr())
	if n.joins++; n.joins == 1 { // its answer is lost
		return nil, rpcerr.Encode(metal.Errorf(metal.CodeUnknownOutcome, "nobody knows"), "")
	}
	cert, err := n.signCSR(req.GetCsr(), "/agent/agt-1")
	if err != nil {
		return nil, err
	}
	resp := &agentv1.JoinAgentResponse{AgentId: "agt-1", Certificate: cert, Ca: n.ca.Raw, GossipKey: make([]byte, 32), Racks: []string{"r1"}, ClusterId: testCluster}
	for _, o := range n.cluster.nodes {
		resp.Nodes = append(resp.Nodes, o.addr)
	}
	return resp, nil
}

// WatchRack sends everything again at each change.
func (n *fakeNode) WatchRack(_ *agentv1.WatchRackRequest, stream grpc.ServerStreamingServer[agentv1.RackUpdate]) error {
	for {
		n.mu.Lock()
		if n.stranger {
			e := metal.Errorf(metal.CodeNotMember, "agent agt-1 is not a member of this cluster")
			generation := n.rack.GetGeneration()
			e.Generation = &generation
			n.mu.Unlock()
			return rpcerr.Encode(e, "")
		}
		changed := n.changed
		first := &agentv1.RackUpdate{Revision: n.revision, Reset_: true, Rack: n.rack}
		second := &agentv1.RackUpdate{Revision: n.revision, Upserts: slices.Clone(n.servers), Synced: true}
		if n.assigned != nil {
			second.Assignments = []*agentv1.Assignment{proto.CloneOf(n.assigned)}
		}
		n.mu.Unlock()
		if err := errors.Join(stream.Send(first), stream.Send(second)); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (n *fakeNode) RenewLease(_ context.Context, req *agentv1.RenewLeaseRequest) (*agentv1.RenewLeaseResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := req.GetEndpoint(); e.GetAddress() != "127.0.0.1" || e.GetTlsPort() == 0 || e.GetHttpPort() == 0 {
		n.t.Errorf("the agent is at %v", e)
	}
	n.renewals++
	n.noted()
	return &agentv1.RenewLeaseResponse{Held: n.held, Epoch: testLease, Ttl: durationpb.New(15 * time.Second)}, nil
}

// Reconcile thaws the rack, as for an agent that remembers all of its servers.
func (n *fakeNode) Reconcile(_ context.Context, req *agentv1.ReconcileRequest) (*agentv1.ReconcileResponse, error) {
	n.edit(func() {
		n.told = append(n.told, req)
		n.rack = proto.CloneOf(n.rack)
		n.rack.Frozen = false
	})
	return &agentv1.ReconcileResponse{}, nil
}

// ReportStep refuses what the state machine refuses: reports out of order.
func (n *fakeNode) ReportStep(_ context.Context, req *agentv1.ReportStepRequest) (*agentv1.ReportStepResponse, error) {
	n.mu.Lock()
	a := n.assigned
	last := uint64(0)
	if len(n.reports) > 0 {
		last = n.reports[len(n.reports)-1].Sequence
	}
	if a == nil || a.OperationId != req.OperationId || a.Attempt != req.Attempt || a.Epoch != req.Epoch || req.Sequence <= last {
		n.mu.Unlock()
		return nil, rpcerr.Encode(metal.Errorf(metal.CodeStaleAttempt, "stale"), "")
	}
	plan := metal.Plan(metal.OperationKind(a.Kind))
	if len(a.DoneSteps) == len(plan) || string(plan[len(a.DoneSteps)]) != req.Step {
		n.mu.Unlock()
		return nil, rpcerr.Encode(metal.Errorf(metal.CodeConflict, "at another step"), "")
	}
	n.reports = append(n.reports, req)
	n.mu.Unlock()
	n.edit(func() {
		if req.BootId != "" {
			a.BootId = req.BootId
		}
		if req.Phase == "done" {
			a.DoneSteps = append(a.DoneSteps, req.Step)
		}
		if req.Phase == "failed" || len(a.DoneSteps) == len(plan) {
			n.assigned = nil
		}
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	return &agentv1.ReportStepResponse{Revision: n.revision}, nil
}

func (n *fakeNode) ReportProgress(_ context.Context, req *agentv1.ReportProgressRequest) (*agentv1.ReportProgressResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.progress = append(n.progress, req)
	n.noted()
	return &agentv1.ReportProgressResponse{}, nil
}

func (n *fakeNode) ReportObservations(_ context.Context, req *agentv1.ReportObservationsRequest) (*agentv1.ReportObservationsResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, req.GetObservations()...)
	n.noted()
	return &agentv1.ReportObservationsResponse{}, nil
}

func (n *fakeNode) IssueServerCertificate(_ context.Context, req *agentv1.IssueServerCertificateRequest) (*agentv1.IssueServerCertificateResponse, error) {
	cert, err := n.signCSR(req.GetCsr(), "/server/"+req.GetServerId())
	return &agentv1.IssueServerCertificateResponse{Certificate: cert}, err
}

func (n *fakeNode) Tunnels(_ *agentv1.TunnelsRequest, stream grpc.ServerStreamingServer[agentv1.TunnelOffer]) error {
	for {
		select {
		case o := <-n.offers:
			if err := stream.Send(o); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (n *fakeNode) Tunnel(stream grpc.BidiStreamingServer[agentv1.TunnelData, agentv1.TunnelData]) error {
	head, err := stream.Recv()
	if err != nil {
		return err
	}
	side := tunnelSide{head: head, stream: stream, done: make(chan struct{})}
	select {
	case n.tunnels <- side:
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	select {
	case <-side.done:
	case <-stream.Context().Done():
	}
	return nil
}

// edges is what was reported, in order.
func (c *cluster) edges() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, r := range c.reports {
		line := r.Step + " " + r.Phase
		if r.Reason != "" {
			line += " " + r.Reason + ": " + r.Message
		}
		if !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return out
}
