package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"bmc/agent/cache"
	agentv1 "bmc/api/agent/v1"
	"bmc/imagestore"
	"bmc/internal/freeport"
	"bmc/internal/manifest"
	"bmc/ramdisk/imaging"
)

// rackAgent is an agent's image path and nothing else: its cache, its HTTP server for
// machines, and its service for other agents.
type rackAgent struct {
	id       string
	endpoint *agentv1.Endpoint
	cache    *cache.Cache
	chunkURL string
	stop     func()
}

// credentialsOf is a member of the test's cluster.
func (c *cluster) credentialsOf(t *testing.T, role, id string) *credentials {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := newCredentials(&identity{AgentID: id, ClusterID: testCluster, CA: c.ca.Raw, Certificate: c.sign(key.Public(), "/"+role+"/"+id), Key: der})
	if err != nil {
		t.Fatal(err)
	}
	return creds
}

func startRackAgent(t *testing.T, c *cluster, id string, store cache.Fetcher, others func() []*agentv1.Endpoint) *rackAgent {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	creds := c.credentialsOf(t, roleAgent, id)
	p := newPeers(id, creds, log)
	ca, err := cache.Open(cache.Config{Dir: t.TempDir(), MaxBytes: 1 << 30, Store: store, Self: id, Log: log,
		Peers: func() []cache.Peer { return p.know(others()) }})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(grpccreds.NewTLS(creds.server())))
	agentv1.RegisterPeersServer(server, &peerService{cluster: testCluster, cache: ca})
	go func() { _ = server.Serve(lis) }() // ends with Stop
	signer := cache.NewSigner([]byte("a key of sixteen"))
	machines := httptest.NewServer(ca.Handler(signer, nil, log))
	a := &rackAgent{id: id, cache: ca, chunkURL: signer.Template(strings.TrimPrefix(machines.URL, "http://"), "op", time.Now().Add(time.Hour)),
		endpoint: &agentv1.Endpoint{Address: "127.0.0.1", TlsPort: uint32(lis.Addr().(*net.TCPAddr).Port), AgentId: id}}
	a.stop = sync.OnceFunc(func() {
		machines.Close()
		server.Stop()
		ca.Close()
		p.close()
	})
	t.Cleanup(a.stop)
	return a
}

// fakeS3 answers GET of objects named by their digest, and counts.
type fakeS3 struct {
	image image
	mu    sync.Mutex
	gets  map[string]int
	down  bool
}

func (s *fakeS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.Path)
	d, err := manifest.ParseDigest(name)
	data, ok := s.image.chunks[d]
	s.mu.Lock()
	down := s.down
	s.gets[name]++
	s.mu.Unlock()
	switch {
	case down:
		w.WriteHeader(http.StatusServiceUnavailable)
	case err != nil || !ok || r.Method != http.MethodGet:
		w.WriteHeader(http.StatusNotFound)
	default:
		w.Header().Set("ETag", `"x"`)
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data) // the client sees it
	}
}

func newFakeS3(t *testing.T) (*fakeS3, *manifest.Manifest, cache.Fetcher) {
	t.Helper()
	s := &fakeS3{image: buildImage(t, 6<<20, manifest.MinChunkSize), gets: map[string]int{}}
	m, err := manifest.Parse(s.image.manifest)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	store, err := imagestore.Open(imagestore.Config{Endpoint: srv.URL, Bucket: "bmc-images", AccessKey: "bmc", SecretKey: "secret-secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return s, m, store
}

// fetchAll is a machine that wants the whole image, some chunks earlier than others.
func fetchAll(ctx context.Context, chunkURL string, m *manifest.Manifest, from int) error {
	f, err := imaging.NewFetcher(chunkURL, imaging.Connections)
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(m.ChunkSize)
	buf := make([]byte, size+manifest.MaxStoredSize(size))
	for i := range m.Chunks {
		c := m.Chunks[(i+from)%len(m.Chunks)]
		raw, err := f.Get(ctx, c, buf[size:], buf[:0:c.Size])
		if err == nil {
			err = manifest.VerifyRaw(c, raw)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Twenty machines write one image by way of two agents: each chunk is read from the
// store once, although the agents had nothing. Then one agent dies, and the store with
// it: the other has everything.
func TestRackFetchesAnImageOnce(t *testing.T) {
	c := newCluster(t, 0)
	s3, m, store := newFakeS3(t)
	var mu sync.Mutex
	var endpoints []*agentv1.Endpoint
	known := func() []*agentv1.Endpoint {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(endpoints)
	}
	agents := []*rackAgent{startRackAgent(t, c, "agt-1", store, known), startRackAgent(t, c, "agt-2", store, known)}
	mu.Lock()
	for _, a := range agents {
		endpoints = append(endpoints, a.endpoint)
	}
	mu.Unlock()
	write := func(a func(n int) *rackAgent) {
		t.Helper()
		var wg sync.WaitGroup
		for n := range 20 {
			wg.Go(func() {
				if err := fetchAll(t.Context(), a(n).chunkURL, m, n); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	write(func(n int) *rackAgent { return agents[n%2] })
	for _, a := range agents {
		if n := a.cache.Stats().Fetched; n < 20 {
			t.Errorf("%s read %d of %d chunks from the store: the work is not shared", a.id, n, len(m.Chunks))
		}
	}
	if len(s3.gets) != len(m.Chunks) {
		t.Errorf("%d chunks were read of %d", len(s3.gets), len(m.Chunks))
	}
	for d, n := range s3.gets {
		if n != 1 {
			t.Errorf("chunk %s was read from the store %d times", d, n)
		}
	}
	s3.mu.Lock()
	s3.down = true
	s3.mu.Unlock()
	agents[0].stop()
	write(func(int) *rackAgent { return agents[1] })
}

// An agent that has died, or hangs, costs some seconds once; the store is left.
func TestPeerThatIsGone(t *testing.T) {
	c := newCluster(t, 0)
	hung, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	for name, port := range map[string]uint32{"dead": uint32(freeport.Port(t)), "hung": uint32(hung.Addr().(*net.TCPAddr).Port)} {
		_, m, store := newFakeS3(t)
		a := startRackAgent(t, c, "agt-1", store, func() []*agentv1.Endpoint {
			return []*agentv1.Endpoint{{Address: "127.0.0.1", TlsPort: port, AgentId: "agt-2"}}
		})
		began := time.Now()
		if err := fetchAll(t.Context(), a.chunkURL, m, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took > 12*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

// Chunks are for agents of the cluster, and come from the agent that was meant.
func TestPeersAreAgents(t *testing.T) {
	c := newCluster(t, 0)
	_, m, store := newFakeS3(t)
	a := startRackAgent(t, c, "agt-1", store, func() []*agentv1.Endpoint { return nil })
	ask := func(creds *credentials, wants string) error {
		p := newPeers("agt-9", creds, slog.New(slog.DiscardHandler))
		defer p.close()
		e := &agentv1.Endpoint{Address: a.endpoint.Address, TlsPort: a.endpoint.TlsPort, AgentId: wants}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		body, _, err := p.know([]*agentv1.Endpoint{e})[0].Chunk(ctx, m.Chunks[0].StoredSHA256, true)
		if err != nil {
			return err
		}
		defer body.Close()
		data, err := io.ReadAll(body)
		if err == nil && manifest.Sum(data) != m.Chunks[0].StoredSHA256 {
			err = errors.New("other bytes")
		}
		return err
	}
	if err := ask(c.credentialsOf(t, roleAgent, "agt-9"), "agt-1"); err != nil {
		t.Error(err)
	}
	if ask(c.credentialsOf(t, roleServer, "srv-9"), "agt-1") == nil {
		t.Error("a machine was answered as an agent")
	}
	if ask(newCluster(t, 0).credentialsOf(t, roleAgent, "agt-9"), "agt-1") == nil {
		t.Error("an agent of another cluster was answered")
	}
	if ask(c.credentialsOf(t, roleAgent, "agt-9"), "agt-2") == nil {
		t.Error("an agent was taken for another")
	}
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", a.endpoint.TlsPort), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := agentv1.NewPeersClient(conn).Chunk(t.Context(), &agentv1.ChunkRequest{Digest: m.Chunks[0].StoredSHA256[:], Fetch: true})
	if err == nil {
		_, err = stream.Recv()
	}
	if err == nil {
		t.Error("a caller without TLS was answered")
	}
}
