package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/controlplane/trust"
	"bmc/internal/config"
	"bmc/internal/freeport"
	"bmc/internal/jointoken"
)

// site is a cluster of real nodes on loopback: TLS, boltdb, gossip.
type site struct {
	t     *testing.T
	dir   string
	nodes []*testNode
	token string

	election time.Duration
}

type testNode struct {
	conf Config
	died *fatalOnce
	*Node
}

// fatalOnce collects what would have stopped a process.
type fatalOnce struct {
	mu  sync.Mutex
	err error
}

func (f *fatalOnce) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = errors.Join(f.err, err)
}

func (f *fatalOnce) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (s *site) conf(name string) Config {
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	c := Config{Name: name, DataDir: filepath.Join(dir, "data"), KeyringFile: filepath.Join(dir, "keyring.json"),
		Listen: freeport.Addr(s.t), Gossip: freeport.Addr(s.t), TLSNames: []string{"localhost"},
		ElectionTimeout: config.Duration(s.election)}
	if len(s.nodes) > 0 {
		c.GossipSeeds = []string{s.nodes[0].conf.Gossip}
	}
	if err := c.check(); err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *site) log() *slog.Logger {
	if os.Getenv("BMC_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(s.t.Output(), nil))
}

// newSite starts a cluster of one.
func newSite(t *testing.T) *site {
	t.Helper()
	return newSiteWith(t, 500*time.Millisecond)
}

func newSiteWith(t *testing.T, election time.Duration) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), election: election}
	c := s.conf("cp1")
	tokenFile := filepath.Join(s.dir, "admin.token")
	if _, err := Init(t.Context(), c, tokenFile); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(tokenFile)
	if err != nil {
		t.Fatal(err)
	}
	s.token = strings.TrimSpace(string(b))
	s.start(c)
	t.Cleanup(func() {
		for _, n := range s.nodes {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func (s *site) start(c Config) *testNode {
	s.t.Helper()
	died := &fatalOnce{}
	n, err := Open(c, Options{Log: s.log().With("at", c.Name), Fatal: died.set})
	if err != nil {
		s.t.Fatal(err)
	}
	made := &testNode{c, died, n}
	s.nodes = append(s.nodes, made)
	return made
}

// client calls one node as the administrator, trusting the CA alone.
func (s *site) client(n *testNode) (bmcv1.ClusterClient, context.Context) {
	s.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+n.conf.Advertise, grpc.WithTransportCredentials(credentials.NewTLS(s.tls(n))))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	s.t.Cleanup(cancel)
	return bmcv1.NewClusterClient(conn), metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+s.token)
}

func (s *site) tls(n *testNode) *tls.Config {
	der, err := trust.ReadCertificate(n.conf.file(fileCA))
	if err != nil {
		s.t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
}

// joinToken asks any node, which forwards to the leader.
func (s *site) joinToken(at *testNode) jointoken.Token {
	s.t.Helper()
	cl, ctx := s.client(at)
	resp, err := cl.CreateJoinToken(ctx, &bmcv1.CreateJoinTokenRequest{Role: "node"})
	if err != nil {
		s.t.Fatal(err)
	}
	token, err := jointoken.Parse(resp.GetToken())
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

func (s *site) join(name string) *testNode {
	s.t.Helper()
	c := s.conf(name)
	if _, err := Join(s.t.Context(), c, s.joinToken(s.nodes[len(s.nodes)-1]), s.log()); err != nil {
		s.t.Fatal(err)
	}
	return s.start(c)
}

// await polls: what it waits for is in other processes' hands in real life.
func (s *site) await(what string, cond func() bool) {
	s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(60 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("never: %s", what)
		}
	}
}

func (s *site) leader() *testNode {
	s.t.Helper()
	var found *testNode
	s.await("somebody leads", func() bool {
		for _, n := range s.nodes {
			if !n.closing.Load() && n.raft.IsLeader() {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

// get reads a page of a node's HTTP side.
func (s *site) get(n *testNode, path string) (int, string) {
	s.t.Helper()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: s.tls(n)}, Timeout: 10 * time.Second}
	defer c.CloseIdleConnections()
	resp, err := c.Get(fmt.Sprintf("https://%s%s", n.conf.Advertise, path))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
