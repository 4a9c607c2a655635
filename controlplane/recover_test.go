package controlplane

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/controlplane/trust"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/internal/jointoken"
	"bmc/metal"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// three is a cluster of three voters.
func three(t *testing.T) *site {
	t.Helper()
	return threeWith(t, 500*time.Millisecond)
}

func threeWith(t *testing.T, election time.Duration) *site {
	t.Helper()
	s := newSiteWith(t, election)
	s.leader()
	s.join("cp2")
	s.join("cp3")
	s.voters(3)
	return s
}

// voters waits until the leader has n.
func (s *site) voters(n int) {
	s.t.Helper()
	s.await("the voters", func() bool {
		got := 0
		for _, m := range s.leader().raft.Members() {
			if m.Voter {
				got++
			}
		}
		return got == n
	})
}

// stock puts a rack with a server, whose secret is sealed, into the inventory.
func (s *site) stock() {
	s.t.Helper()
	c := s.typed()
	_, err := c.Inventory.ApplyInventory(s.t.Context(), &bmcv1.ApplyInventoryRequest{
		Racks: []*bmcv1.RackInput{{Name: "r1", Subnet: "10.77.1.0/24", Gateway: "10.77.1.1", RangeFrom: "10.77.1.10", RangeTo: "10.77.1.200"}},
		Servers: []*bmcv1.ServerInput{{Name: "r1-u01", Rack: "r1", Macs: []string{"52:54:00:00:00:01"},
			Oob: &bmcv1.OOBInput{Protocol: "ipmi", Address: "10.9.1.1", Username: "admin", Password: "secret"}, Wipe: true}}})
	if err != nil {
		s.t.Fatal(err)
	}
}

// agent joins one of rack r1 and returns its credentials.
func (s *site) agent() *trust.Credentials {
	s.t.Helper()
	resp, err := s.typed().Cluster.CreateJoinToken(s.t.Context(), &bmcv1.CreateJoinTokenRequest{Role: "agent", Racks: []string{"r1"}})
	if err != nil {
		s.t.Fatal(err)
	}
	token, err := jointoken.Parse(resp.GetToken())
	if err != nil {
		s.t.Fatal(err)
	}
	key, csr, err := trust.NewRequest()
	if err != nil {
		s.t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+s.nodes[0].conf.Advertise,
		grpc.WithTransportCredentials(credentials.NewTLS(trust.PinnedCA([]string{trust.ProtoGRPC}, token.MatchesCA))))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	joined, err := agentv1.NewEnrollmentClient(conn).JoinAgent(s.t.Context(), &agentv1.JoinAgentRequest{TokenSecret: token.Secret, Csr: csr, Name: "r1-a1"})
	if err != nil {
		s.t.Fatal(err)
	}
	ca, _, err := trust.ParseCA(joined.GetCa())
	if err != nil {
		s.t.Fatal(err)
	}
	creds, err := trust.NewCredentials(certificate(s.t, joined.GetCertificate(), key), ca, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return creds
}

// control is an agent's connection to a node.
func (s *site) control(n *testNode, creds *trust.Credentials) agentv1.ControlClient {
	s.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+n.conf.Advertise,
		grpc.WithTransportCredentials(credentials.NewTLS(creds.Client([]string{trust.ProtoGRPC}, trust.RoleNode))))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return agentv1.NewControlClient(conn)
}

// lose stops nodes for good, and their data with them when destroy is set.
func (s *site) lose(destroy bool, lost ...*testNode) {
	s.t.Helper()
	for _, n := range lost {
		if err := n.Close(); err != nil {
			s.t.Fatal(err)
		}
		s.nodes = slices.DeleteFunc(s.nodes, func(m *testNode) bool { return m == n })
		if destroy {
			if err := os.RemoveAll(n.conf.DataDir); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// Two of three nodes are destroyed. The third becomes the cluster, two new ones
// join it, and all that was acknowledged is there.
func TestRecoverFromLostQuorum(t *testing.T) {
	t.Parallel()
	s := three(t)
	s.stock()
	creds := s.agent()
	last := s.nodes[2]
	var before *agentv1.RenewLeaseResponse
	s.await("the agent has a lease", func() bool {
		var err error
		before, err = s.control(s.leader(), creds).RenewLease(t.Context(), &agentv1.RenewLeaseRequest{Rack: "r1"})
		return err == nil && before.GetHeld()
	})
	if _, err := PlanRecovery(last.conf); metal.CodeOf(err) != metal.CodeBusy || !strings.Contains(err.Error(), "runs") {
		t.Fatalf("a running node is recovered: %v", err)
	}
	s.await("the third has all of it", func() bool { return last.fsm.View().Revision() == s.leader().fsm.View().Revision() })
	revision := last.fsm.View().Revision()
	gone := []string{s.nodes[0].id.NodeID, s.nodes[1].id.NodeID}
	s.lose(true, s.nodes[0], s.nodes[1])
	s.lose(false, last)

	plan, err := PlanRecovery(last.conf)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Revision < revision || // above it: marks of the agent's silence
		plan.Servers != 1 || len(plan.Members) != 3 || !plan.Members[0].Self || plan.NewGeneration <= plan.Generation ||
		!slices.Equal(plan.Racks, []string{"r1"}) || plan.Term == 0 {
		t.Fatalf("the plan is %+v", plan)
	}
	// Looking changes nothing, not a byte of the log: alone, it does not lead.
	logFile := filepath.Join(last.conf.DataDir, "raft", "log.db")
	looked, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	again, err := PlanRecovery(last.conf)
	if err != nil || again.Index != plan.Index {
		t.Fatalf("%+v, %v", again, err)
	}
	if now, err := os.ReadFile(logFile); err != nil || !bytes.Equal(now, looked) {
		t.Fatalf("looking has changed %s: %v", logFile, err)
	}
	if err := plan.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := s.start(last.conf)
	s.leader()
	if !slices.Contains(n.id.Lost, gone[0]) || !slices.Contains(n.id.Lost, gone[1]) {
		t.Errorf("written off are %v", n.id.Lost)
	}
	if err := n.checkKey(trust.Identity{Role: trust.RoleNode, ID: gone[0]}); err == nil {
		t.Error("a node that was written off may speak raft")
	}
	s.join("cp4")
	s.join("cp5")
	s.voters(3)
	for _, n := range s.nodes {
		s.await("all of it is there", func() bool {
			v := n.fsm.View()
			_, err := v.ResolveServer("", true, "r1-u01")
			return err == nil && v.Meta().Generation == plan.NewGeneration && n.fsm.View().Hash() == s.leader().fsm.View().Hash()
		})
	}
	v := s.leader().fsm.View()
	if r, err := v.ResolveRack("r1"); err != nil || !r.Frozen {
		t.Errorf("rack r1 is not frozen: %v", err)
	}
	if _, ok := v.NodeByName("cp2"); ok {
		t.Error("cp2 is a node yet")
	}
	// The agent's certificate counts; its lease of before does not.
	s.await("the agent has a lease again", func() bool {
		after, err := s.control(s.leader(), creds).RenewLease(t.Context(), &agentv1.RenewLeaseRequest{Rack: "r1"})
		if err == nil && after.GetHeld() && after.GetGeneration() <= before.GetGeneration() {
			t.Fatalf("before %v, after %v", before, after)
		}
		return err == nil && after.GetHeld()
	})
}

func TestRecoverRefusals(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.leader()
	if _, err := PlanRecovery(s.conf("cp9")); metal.CodeOf(err) != metal.CodeWrongState {
		t.Errorf("a node that belongs to no cluster: %v", err)
	}
	s.lose(false, n)
	if _, err := PlanRecovery(n.conf); metal.CodeOf(err) != metal.CodeWrongState || !strings.Contains(err.Error(), "needs no other") {
		t.Errorf("a node that is alone anyway: %v", err)
	}
	// An interrupted recovery keeps the node from running, and can be finished.
	id, err := n.conf.loadIdentity()
	if err != nil {
		t.Fatal(err)
	}
	id.Recovering = true
	if err := n.conf.saveRecord(id.record); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(n.conf, Options{}); metal.CodeOf(err) != metal.CodeWrongState || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("a node that is half recovered runs: %v", err)
	}
	plan, err := PlanRecovery(n.conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.start(n.conf)
	if v := s.leader().fsm.View(); v.Meta().Generation != plan.NewGeneration {
		t.Errorf("generation %d", v.Meta().Generation)
	}
}

// saved reads a snapshot through the API into a file.
func (s *site) saved() string {
	s.t.Helper()
	cl, ctx := s.client(s.leader())
	stream, err := cl.SaveSnapshot(ctx, &bmcv1.SaveSnapshotRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	var b bytes.Buffer
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			s.t.Fatal(err)
		}
		b.Write(m.GetData())
	}
	path := filepath.Join(s.dir, "backup")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// All nodes are lost. A backup and the key ring make the cluster again, with
// its racks frozen; agents and users get in with what they have.
func TestInitFromSnapshot(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	old := s.leader()
	s.stock()
	creds := s.agent()
	s.await("the level is the newest", func() bool {
		_, err := s.typed().Cluster.RaiseFeatureLevel(t.Context(), &bmcv1.RaiseFeatureLevelRequest{})
		return err == nil && s.leader().fsm.View().Meta().FeatureLevel == fsm.FeatureLevel
	})
	file := s.saved()
	before := old.fsm.View()
	s.lose(true, old)

	c := s.conf("cp7")
	refuse := func(what string, code metal.Code, file, want string) {
		t.Helper()
		_, err := InitFromSnapshot(t.Context(), c, file, "")
		if metal.CodeOf(err) != code || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Stat(c.DataDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something was changed", what)
		}
	}
	refuse("without the key ring", metal.CodeWrongState, file, "there is no "+c.KeyringFile)
	other := newSite(t)
	other.leader()
	copyFile(t, other.nodes[0].conf.KeyringFile, c.KeyringFile)
	refuse("with another cluster's key ring", metal.CodeInvalid, file, "the key ring of cluster")
	copyFile(t, old.conf.KeyringFile, c.KeyringFile)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{9, len(b) / 2, len(b) - 1} {
		damaged := bytes.Clone(b)
		damaged[at] ^= 1
		path := filepath.Join(s.dir, "damaged")
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		refuse("a flipped bit", metal.CodeInvalid, path, "nothing was changed")
	}
	refuse("a newer feature level", metal.CodeInvalid, newerSnapshot(t, s.dir, before.Meta().ClusterID), "feature level")
	wrongKey(t, c.KeyringFile)
	refuse("another key under the same CA", metal.CodeInvalid, file, "does not open the snapshot's secrets")
	copyFile(t, old.conf.KeyringFile, c.KeyringFile)

	adminFile := filepath.Join(s.dir, "again.token")
	r, err := InitFromSnapshot(t.Context(), c, file, adminFile)
	if err != nil {
		t.Fatal(err)
	}
	if r.ClusterID != before.Meta().ClusterID || r.Revision < before.Revision() || r.Servers != 1 || !slices.Equal(r.Frozen, []string{"r1"}) || !slices.Equal(r.Lost, []string{"cp1"}) {
		t.Fatalf("%+v", r)
	}
	n := s.start(c)
	s.leader()
	v := n.fsm.View()
	if v.Meta().Generation != r.Generation || r.Generation <= before.Meta().Generation {
		t.Errorf("generation %d, was %d", v.Meta().Generation, before.Meta().Generation)
	}
	if rack, err := v.ResolveRack("r1"); err != nil || !rack.Frozen {
		t.Errorf("rack r1 is not frozen: %v", err)
	}
	// Both administrators get in, and so does the agent.
	for _, token := range []string{s.token, read(t, adminFile)} {
		s.token = token
		if _, err := s.typed().Cluster.ListTokens(t.Context(), &bmcv1.ListTokensRequest{}); err != nil {
			t.Error(err)
		}
	}
	var lease *agentv1.RenewLeaseResponse
	s.await("the agent has a lease", func() bool {
		lease, err = s.control(n, creds).RenewLease(t.Context(), &agentv1.RenewLeaseRequest{Rack: "r1"})
		return err == nil && lease.GetHeld()
	})
	// It remembers the server: the rack goes on.
	var id string
	for srv := range v.Servers(state.ServerFilter{}) {
		id = srv.ID
	}
	got, err := s.control(n, creds).Reconcile(t.Context(), &agentv1.ReconcileRequest{Rack: "r1", Generation: lease.GetGeneration(),
		Servers: []*agentv1.KnownServer{{ServerId: id, Name: "r1-u01", State: "enrolling"}}})
	if err != nil || got.GetFrozen() {
		t.Fatalf("%v, %v", got, err)
	}
	s.join("cp8")
	s.voters(2)
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := os.WriteFile(to, []byte(read(t, from)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wrongKey replaces the sealing keys of a key ring.
func wrongKey(t *testing.T, path string) {
	t.Helper()
	ring, err := trust.ReadKeyring(path)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := trust.NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	ring.Active, ring.Keys = fresh.Active, fresh.Keys
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := trust.WriteKeyring(path, ring); err != nil {
		t.Fatal(err)
	}
}

// newerSnapshot is of a cluster whose feature level this program does not know.
func newerSnapshot(t *testing.T, dir, clusterID string) string {
	t.Helper()
	f := fsm.New(fsm.Options{})
	for i, c := range []*logpb.Command{
		{Command: &logpb.Command_InitCluster{InitCluster: &logpb.InitCluster{ClusterId: clusterID, Project: &logpb.Project{Id: "prj-aaaaaaaaaaaaaaaa", Name: "default"},
			Node: &logpb.Node{Id: "node-aaaaaaaaaaaaaaaa", Name: "cp1", Address: "10.0.0.1:7443"}}}},
		{Command: &logpb.Command_RegisterFeatureLevel{RegisterFeatureLevel: &logpb.RegisterFeatureLevel{NodeId: "node-aaaaaaaaaaaaaaaa", Level: fsm.FeatureLevel + 1}}},
		{Command: &logpb.Command_RaiseFeatureLevel{RaiseFeatureLevel: &logpb.RaiseFeatureLevel{Level: fsm.FeatureLevel + 1}}},
	} {
		c.Header = &logpb.Header{Time: 1, Principal: "system", Role: "admin"}
		data, err := fsm.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := f.Apply(&raft.Log{Index: uint64(i + 1), Type: raft.LogCommand, Data: data}).(*fsm.Result); !ok || r.Err != nil {
			t.Fatalf("%v", r)
		}
	}
	path := filepath.Join(dir, "newer")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(fsm.WriteSnapshot(out, f.View()), out.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func certificate(t *testing.T, der []byte, key *ecdsa.PrivateKey) tls.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}
