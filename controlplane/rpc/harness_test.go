package rpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/internal/rpcerr"
	"bmc/metal"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

const (
	testCluster = "c-test"
	testProject = "prj-aaaaaaaaaaaaaaaa"
	otherProj   = "prj-bbbbbbbbbbbbbbbb"
)

// bed is a cluster in one process: every node's API over TLS and bufconn, one
// real state machine, and a leader that the test chooses.
type bed struct {
	t     *testing.T
	fsm   *fsm.FSM
	ca    *testCA
	nodes []*testNode
	store *memStore

	mu     sync.Mutex
	index  uint64
	leader int    // -1: none
	term   uint64 // grows with each change of it
	clock  time.Time
	stuck  bool // proposals get no answer
	hung   int  // node whose log store hangs; -1: none
	handed int  // transfers of leadership that were begun
	// beforePropose, when set, may fail a proposal; applied says whether the
	// command is applied all the same.
	confirmed     atomic.Int64 // linearizable views that were asked for
	beforePropose func(cmd *logpb.Command) (applied bool, err error)
	beforeRestore func()              // when set, once, before a prepared snapshot is restored
	noted         map[string]Endpoint // by rack: who asked last for its lease
}

type testNode struct {
	bed  *bed
	i    int
	id   string
	addr string
	api  *API
	lis  *bufconn.Listener
}

// newBed starts n nodes; node 0 leads.
func newBed(t *testing.T, n int) *bed {
	t.Helper()
	b := &bed{t: t, term: 1, hung: -1, fsm: fsm.New(fsm.Options{}), ca: newTestCA(t), store: &memStore{chunks: map[string][]byte{}},
		clock: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	b.must(&logpb.Command{Command: &logpb.Command_InitCluster{InitCluster: &logpb.InitCluster{ClusterId: testCluster,
		Project: &logpb.Project{Id: testProject, Name: "default"}}}})
	b.must(&logpb.Command{Command: &logpb.Command_CreateProject{CreateProject: &logpb.CreateProject{
		Project: &logpb.Project{Id: otherProj, Name: "other"}}}})
	for i := range n {
		b.addNode(i)
	}
	return b
}

func (b *bed) addNode(i int) {
	t := b.t
	n := &testNode{bed: b, i: i, id: fmt.Sprintf("node-%016d", i), addr: fmt.Sprintf("10.0.0.%d:7443", i+1), lis: bufconn.Listen(1 << 20)}
	key, cert := b.ca.issue(t, "node", n.id)
	sum := sha256.Sum256(mustSPKI(t, key))
	secret := "join-" + n.id
	b.must(&logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{Token: &logpb.Token{
		Id: fmt.Sprintf("tok-node%012d", i), Hash: hashSecret(secret), Kind: kindJoinNode, Name: "node", Expires: b.now().Add(time.Hour).UnixNano()}}}})
	b.must(&logpb.Command{Command: &logpb.Command_JoinNode{JoinNode: &logpb.JoinNode{TokenId: fmt.Sprintf("tok-node%012d", i), TokenHash: hashSecret(secret),
		Node: &logpb.Node{Id: n.id, Name: fmt.Sprintf("cp%d", i+1), Address: n.addr, KeyHash: sum[:]}}}})
	creds := credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // test
	peers := NewPeers(creds, func() (string, string) { return n.Leader() },
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			for _, m := range b.nodes {
				if m.addr == addr {
					return m.lis.DialContext(ctx)
				}
			}
			return nil, errors.New("no such node")
		}))
	api, err := New(Deps{ClusterID: testCluster, NodeID: n.id, NodeName: fmt.Sprintf("cp%d", i+1), Proposer: n, Raft: n, Authority: b.ca,
		Sealer: fakeSealer{}, Leases: n, Images: b.store, Peers: peers, Hashes: b.fsm.StateHashAt, Now: b.now, LeaderWait: 400 * time.Millisecond,
		SpoolDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	n.api = api
	b.mu.Lock()
	b.nodes = append(b.nodes, n)
	b.mu.Unlock()
	srv := grpc.NewServer(append(api.ServerOptions(), grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2"}})))...)
	api.Register(srv)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(n.lis)
	}()
	t.Cleanup(func() {
		_ = peers.Close()
		stopped := make(chan struct{})
		go func() { api.Close(); close(stopped) }()
		srv.Stop()
		<-done
		<-stopped
	})
}

// testWriter keeps log lines out of passing tests' output.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func (b *bed) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clock = b.clock.Add(time.Millisecond)
	return b.clock
}

func (b *bed) advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clock = b.clock.Add(d)
}

func (b *bed) lead(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leader = i
	b.term++
}

// must applies a system command.
func (b *bed) must(cmd *logpb.Command) *fsm.Result {
	b.t.Helper()
	if cmd.Header == nil {
		cmd.Header = &logpb.Header{Time: b.now().UnixNano(), Principal: "system", Role: "admin"}
	}
	res, err := b.apply(cmd)
	if err != nil {
		b.t.Fatal(err)
	}
	if res.Err != nil {
		b.t.Fatalf("%s: %v", fsm.Name(cmd), res.Err)
	}
	return res
}

func (b *bed) apply(cmd *logpb.Command) (*fsm.Result, error) {
	data, err := fsm.Encode(cmd)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.index++
	res, ok := b.fsm.Apply(&raft.Log{Index: b.index, Type: raft.LogCommand, Data: data}).(*fsm.Result)
	if !ok {
		return nil, errors.New("apply answered no result")
	}
	return res, nil
}

// The fake consensus.

func (n *testNode) IsLeader() bool {
	n.bed.mu.Lock()
	defer n.bed.mu.Unlock()
	return n.bed.leader == n.i
}

// LeaderTerm grows with each change of leadership.
func (n *testNode) LeaderTerm() uint64 {
	n.bed.mu.Lock()
	defer n.bed.mu.Unlock()
	if n.bed.leader != n.i {
		return 0
	}
	return n.bed.term
}

func (n *testNode) ProposeIn(ctx context.Context, term uint64, cmd *logpb.Command) (*fsm.Result, error) {
	if now := n.LeaderTerm(); term != 0 && term != now {
		return nil, metal.Errorf(metal.CodeNoLeader, "not the leader in term %d", term)
	}
	return n.Propose(ctx, cmd)
}

func (n *testNode) Leader() (string, string) {
	n.bed.mu.Lock()
	defer n.bed.mu.Unlock()
	if n.bed.leader < 0 || n.bed.leader >= len(n.bed.nodes) {
		return "", ""
	}
	l := n.bed.nodes[n.bed.leader]
	return l.id, l.addr
}

func (n *testNode) Propose(ctx context.Context, cmd *logpb.Command) (*fsm.Result, error) {
	if !n.IsLeader() {
		return nil, metal.Errorf(metal.CodeNoLeader, "not the leader")
	}
	if n.bed.stuck {
		<-ctx.Done()
		return nil, metal.Errorf(metal.CodeUnknownOutcome, "no answer")
	}
	n.bed.mu.Lock()
	hook := n.bed.beforePropose
	n.bed.mu.Unlock()
	if hook != nil {
		applied, err := hook(cmd)
		if err != nil {
			if applied {
				_, _ = n.bed.apply(cmd)
			}
			return nil, err
		}
	}
	return n.bed.apply(cmd)
}

func (n *testNode) ReadIndex(context.Context) (uint64, error) { return n.bed.fsm.CommandIndex(), nil }

func (n *testNode) LinearizableView(ctx context.Context) (*state.View, error) {
	n.bed.confirmed.Add(1)
	if n.IsLeader() {
		return n.bed.fsm.View(), nil
	}
	idx, err := n.api.Peers.ReadIndex(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.bed.fsm.WaitCommandIndex(ctx, idx); err != nil {
		return nil, err
	}
	return n.bed.fsm.View(), nil
}

func (n *testNode) StaleView() *state.View { return n.bed.fsm.View() }

func (n *testNode) WaitView(ctx context.Context, after uint64) (*state.View, error) {
	return n.bed.fsm.Wait(ctx, after)
}

func (n *testNode) Status() RaftStatus {
	n.bed.mu.Lock()
	defer n.bed.mu.Unlock()
	st := RaftStatus{Term: 1, AppliedIndex: n.bed.index, Hung: n.bed.hung == n.i, LeaderContact: time.Minute}
	for _, m := range n.bed.nodes {
		st.Members = append(st.Members, RaftMember{ID: m.id, Address: m.addr, Voter: true})
	}
	return st
}

func (n *testNode) Hung() bool { return n.Status().Hung }

func (n *testNode) LeaderGone(context.Context, string, uint64) LeaderWord { return LeaderWord{} }

func (n *testNode) AddNonvoter(context.Context, string, string) error { return nil }
func (n *testNode) Spare(context.Context, string) error               { return nil }
func (n *testNode) RemoveServer(context.Context, string) error        { return nil }
func (n *testNode) Move(context.Context, string, string) error        { return nil }
func (n *testNode) TransferLeadership(_ context.Context, id string) error {
	n.bed.mu.Lock()
	n.bed.handed++
	n.bed.mu.Unlock()
	for i, m := range n.bed.nodes {
		if m.id == id || id == "" && i != n.i {
			n.bed.lead(i)
			return nil
		}
	}
	return errors.New("no such node")
}

func (n *testNode) Restore(ctx context.Context, r io.Reader, _ int64, _ uint64, fits func(*state.View) error, then func(context.Context) error) error {
	if f := n.bed.beforeRestore; f != nil {
		n.bed.beforeRestore = nil
		f()
	}
	if err := fits(n.bed.fsm.View()); err != nil {
		return err
	}
	if err := n.bed.fsm.Restore(io.NopCloser(r)); err != nil {
		return err
	}
	return then(context.WithoutCancel(ctx))
}

func (n *testNode) RenewLease(ctx context.Context, agent, rack string) (Lease, error) {
	v := n.StaleView()
	r, _ := v.Rack(rack)
	if r.Lease.Agent != "" && r.Lease.Agent != agent {
		return Lease{Holder: r.Lease.Agent}, nil
	}
	if r.Lease.Agent == "" {
		n.bed.must(&logpb.Command{Command: &logpb.Command_GrantLease{GrantLease: &logpb.GrantLease{RackId: rack, AgentId: agent, ExpectedEpoch: r.Lease.Epoch}}})
		r, _ = n.StaleView().Rack(rack)
	}
	return Lease{Held: true, Generation: r.Lease.Generation, Epoch: r.Lease.Epoch, TTL: 15 * time.Second}, ctx.Err()
}

func (n *testNode) Note(rack string, e Endpoint) {
	n.bed.mu.Lock()
	defer n.bed.mu.Unlock()
	if n.bed.noted == nil {
		n.bed.noted = map[string]Endpoint{}
	}
	n.bed.noted[rack] = e
}

func (n *testNode) Agents(r *metal.Rack) ([]Endpoint, bool) {
	n.bed.mu.Lock()
	defer n.bed.mu.Unlock()
	if e, ok := n.bed.noted[r.ID]; ok {
		return []Endpoint{e}, true
	}
	return nil, true
}

// conn dials a node, with a client certificate or without.
func (b *bed) conn(node int, cert *tls.Certificate) *grpc.ClientConn {
	b.t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}} //nolint:gosec // test
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	c, err := grpc.NewClient("passthrough:///node", grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.nodes[node].lis.DialContext(ctx) }))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

// token makes a user's token and returns a context that shows it.
func (b *bed) token(name string, role metal.Role, project string) context.Context {
	b.t.Helper()
	id := "tok-" + strings.Repeat("x", 16-len(name)) + name
	secret := "s3cret_with-odd_characters"
	if _, ok := b.fsm.View().Token(id); !ok {
		b.must(&logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{Token: &logpb.Token{
			Id: id, Hash: hashSecret(secret), Kind: "user", Name: name, Role: string(role), Project: project,
			Expires: b.now().Add(time.Hour * 24).UnixNano()}}}})
	}
	return bearer(b.t.Context(), userTokenPrefix+id+"_"+secret)
}

// patience is what a busy machine may need for what takes a second or two alone.
const patience = time.Minute

func bearer(ctx context.Context, token string) context.Context {
	ctx, cancel := context.WithTimeout(ctx, patience)
	context.AfterFunc(ctx, cancel)
	return metadata.AppendToOutgoingContext(ctx, mdAuthorization, "Bearer "+token)
}

func (b *bed) admin() context.Context { return b.token("root", metal.RoleAdmin, testProject) }

// refused checks an error's gRPC code, reason and hint.
func refused(t *testing.T, err error, code codes.Code, reason metal.Code, hint string) *metal.Error {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s", reason)
	}
	e, ok := rpcerr.Decode(err)
	if !ok {
		t.Fatalf("not one of our errors: %v", err)
	}
	if e.Code != reason {
		t.Fatalf("reason %s (%v), want %s", e.Code, err, reason)
	}
	if got := status.Code(err); got != code {
		t.Fatalf("code %v, want %v", got, code)
	}
	if e.Message == "" {
		t.Fatal("no message")
	}
	if hint != "" && !strings.Contains(e.Hint, hint) {
		t.Fatalf("hint %q, want one with %q", e.Hint, hint)
	}
	return e
}

// Clients.

type clients struct {
	bmcv1.ServersClient
	inv  bmcv1.InventoryClient
	ops  bmcv1.OperationsClient
	ev   bmcv1.EventsClient
	img  bmcv1.ImagesClient
	keys bmcv1.KeysClient
	clu  bmcv1.ClusterClient
}

func (b *bed) user(node int) clients {
	c := b.conn(node, nil)
	return clients{bmcv1.NewServersClient(c), bmcv1.NewInventoryClient(c), bmcv1.NewOperationsClient(c), bmcv1.NewEventsClient(c),
		bmcv1.NewImagesClient(c), bmcv1.NewKeysClient(c), bmcv1.NewClusterClient(c)}
}

// eventually waits for a condition without sleeping between state changes.
func (b *bed) eventually(what string, ok func() bool) {
	b.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			b.t.Fatalf("timed out: %s", what)
		}
	}
}

func rackFile(name string, net int) *bmcv1.RackInput {
	p := fmt.Sprintf("10.77.%d.", net)
	return &bmcv1.RackInput{Name: name, Subnet: p + "0/24", Gateway: p + "1", Dns: []string{p + "1"}, Domain: "test", RangeFrom: p + "10", RangeTo: p + "200"}
}

func serverFile(rack string, n, net int) *bmcv1.ServerInput {
	return &bmcv1.ServerInput{Name: fmt.Sprintf("%s-u%02d", rack, n), Rack: rack, Macs: []string{fmt.Sprintf("52:54:00:00:%02x:%02x", net, n)},
		Oob: &bmcv1.OOBInput{Protocol: "ipmi", Address: fmt.Sprintf("10.9.%d.%d", net, n), Username: "admin", Password: fmt.Sprintf("pw-%d", n)}, Wipe: true,
		Labels: map[string]string{"n": fmt.Sprint(n % 2)}}
}

// apply puts a rack with servers into the inventory.
func (b *bed) inventory(rack string, net, n int) *bmcv1.ApplyInventoryResponse {
	b.t.Helper()
	req := &bmcv1.ApplyInventoryRequest{Racks: []*bmcv1.RackInput{rackFile(rack, net)}, Sizes: []*bmcv1.SizeInput{{Name: "small", MinCpuThreads: 1}}}
	for i := range n {
		req.Servers = append(req.Servers, serverFile(rack, i+1, net))
	}
	resp, err := b.user(0).inv.ApplyInventory(b.admin(), req)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp
}

// agent is a fake rack agent.
type testAgent struct {
	b    *bed
	id   string
	rack string // ID
	cert tls.Certificate
	ctl  agentv1.ControlClient
	ctx  context.Context
	seq  uint64
}

func newCSR(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

// join enrolls an agent for a rack through the API, by way of a node.
func (b *bed) join(name, rack string, node int) *testAgent {
	b.t.Helper()
	tok, err := b.user(node).clu.CreateJoinToken(b.admin(), &bmcv1.CreateJoinTokenRequest{Role: "agent", Racks: []string{rack}})
	if err != nil {
		b.t.Fatal(err)
	}
	key, csr := newCSR(b.t)
	resp, err := agentv1.NewEnrollmentClient(b.conn(node, nil)).JoinAgent(b.t.Context(), &agentv1.JoinAgentRequest{
		TokenSecret: joinSecret(b.t, tok.GetToken()), Csr: csr, Name: name, Software: "test"})
	if err != nil {
		b.t.Fatal(err)
	}
	a := &testAgent{b: b, id: resp.GetAgentId(), cert: tls.Certificate{Certificate: [][]byte{resp.GetCertificate()}, PrivateKey: key}}
	a.ctl = agentv1.NewControlClient(b.conn(node, &a.cert))
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	b.t.Cleanup(cancel)
	a.ctx = ctx
	r, err := b.fsm.View().ResolveRack(rack)
	if err != nil {
		b.t.Fatal(err)
	}
	a.rack = r.ID
	return a
}

// run plays the operation that a server has open to its end: takes the lease,
// is assigned it, and reports each step.
func (a *testAgent) run(server string) *metal.Operation {
	a.b.t.Helper()
	op := a.begin(server)
	for _, s := range metal.Plan(op.Kind) {
		a.step(op.ID, s)
	}
	op, _ = a.b.fsm.View().Operation(op.ID)
	return op
}

// begin takes the lease and is assigned the server's open operation.
func (a *testAgent) begin(server string) *metal.Operation {
	t := a.b.t
	t.Helper()
	lease, err := a.ctl.RenewLease(a.ctx, &agentv1.RenewLeaseRequest{Rack: a.rack})
	if err != nil || !lease.GetHeld() {
		t.Fatalf("lease %v: %v", lease, err)
	}
	srv, err := a.b.fsm.View().ResolveServer(testProject, true, server)
	if err != nil {
		t.Fatal(err)
	}
	op, ok := a.b.fsm.View().Operation(srv.Operation)
	if !ok {
		t.Fatalf("server %s has no operation", server)
	}
	a.b.must(&logpb.Command{Command: &logpb.Command_AssignOperation{AssignOperation: &logpb.AssignOperation{
		OperationId: op.ID, Attempt: int64(op.Attempt), AgentId: a.id, Epoch: lease.GetEpoch()}}})
	op, _ = a.b.fsm.View().Operation(op.ID)
	a.seq = 0
	return op
}

func (a *testAgent) report(op string, step metal.Step, phase string, edit func(*agentv1.ReportStepRequest)) error {
	cur, _ := a.b.fsm.View().Operation(op)
	a.seq++
	req := &agentv1.ReportStepRequest{OperationId: op, Attempt: uint32(cur.Attempt), Epoch: cur.Epoch, Sequence: a.seq, Step: string(step), Phase: phase}
	if edit != nil {
		edit(req)
	}
	_, err := a.ctl.ReportStep(a.ctx, req)
	return err
}

func (a *testAgent) step(op string, step metal.Step) {
	t := a.b.t
	t.Helper()
	if err := a.report(op, step, "started", nil); err != nil {
		t.Fatalf("%s started: %v", step, err)
	}
	err := a.report(op, step, "done", func(r *agentv1.ReportStepRequest) {
		switch step {
		case metal.StepInspect:
			o, _ := a.b.fsm.View().Operation(op)
			srv, _ := a.b.fsm.View().Server(o.ServerID)
			r.Hardware = &agentv1.Hardware{Nics: []*agentv1.NIC{{Name: "eth0", Mac: srv.MACs[0], Link: true}}, Serial: "S1", Uuid: "11111111-2222-3333-4444-555555555555", Vendor: "v", Product: "p", Firmware: "bios", Arch: "x86_64",
				CpuModel: "c", CpuThreads: 2, MemoryBytes: 1 << 30, Disks: []*agentv1.Disk{{Name: "vda", SizeBytes: 8 << 30, Kind: "virtual", SectorSize: 512}}}
		case metal.StepConfigure:
			r.Installed = &agentv1.Installed{SshHostKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFakeFake host"}, RootDisk: "vda"}
		case metal.StepWipe:
			r.Wipes = []*agentv1.WipeEvidence{{Disk: "vda", Method: "overwrite", Bytes: 8 << 30, BytesReadBack: 8 << 30}}
		}
	})
	if err != nil {
		t.Fatalf("%s done: %v", step, err)
	}
}
