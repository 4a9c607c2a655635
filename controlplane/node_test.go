package controlplane

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/internal/freeport"
	"bmc/internal/jointoken"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

// Three real nodes: joined by tokens, promoted, one lost, writes go on.
func TestThreeNodes(t *testing.T) {
	s := three(t)
	for _, n := range s.nodes {
		cl, ctx := s.client(n)
		s.await(n.conf.Name+" sees three that vote and live", func() bool { // a follower hears of a promotion later
			resp, err := cl.Peers(ctx, &bmcv1.PeersRequest{})
			if err != nil {
				t.Fatalf("%s: %v", n.conf.Name, err)
			}
			voters := 0
			for _, p := range resp.GetPeers() {
				if p.GetAlive() && p.GetSuffrage() == "voter" {
					voters++
				}
			}
			return voters == 3 && len(resp.GetPeers()) == 3
		})
		s.await("gossip", func() bool { return len(n.gossip.Members()) == 2 })
	}
	old := s.leader()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	fresh := s.leader()
	if fresh == old {
		t.Fatal("a closed node leads")
	}
	for _, n := range s.nodes {
		if n != old {
			s.joinToken(n) // a write by every node that is left
		}
	}
	// The closed node comes back from its disk.
	again := s.start(old.conf)
	s.await("it catches up", func() bool {
		return again.health() == "" && again.fsm.View().Revision() == s.leader().fsm.View().Revision()
	})
	if again.fsm.View().Hash() != s.leader().fsm.View().Hash() {
		t.Error("replicas differ")
	}
}

func TestPort(t *testing.T) {
	s := newSite(t)
	n := s.leader()
	s.await("it is healthy", func() bool { return n.health() == "" })
	if code, body := s.get(n, "/healthz"); code != 200 || !strings.Contains(body, `"healthy":true`) {
		t.Errorf("healthz: %d %s", code, body)
	}
	if code, _ := s.get(n, "/metrics"); code != 404 { // no registry was given
		t.Errorf("metrics: %d", code)
	}
	conn, err := grpc.NewClient("passthrough:///"+n.conf.Advertise, grpc.WithTransportCredentials(credentials.NewTLS(s.tls(n))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s.await("gRPC health", func() bool {
		resp, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		return err == nil && resp.GetStatus() == healthpb.HealthCheckResponse_SERVING
	})
	_, err = bmcv1.NewClusterClient(conn).Status(t.Context(), &bmcv1.StatusRequest{})
	if e, ok := rpcerr.Decode(err); !ok || e.Code != metal.CodeUnauthenticated {
		t.Errorf("without a token: %v", err)
	}
}

func TestSetUpRefusals(t *testing.T) {
	s := newSite(t)
	n := s.nodes[0]
	s.leader()
	code := func(err error) metal.Code { return metal.CodeOf(err) }
	if _, err := Init(t.Context(), n.conf, filepath.Join(s.dir, "other.token")); code(err) != metal.CodeWrongState {
		t.Errorf("init twice: %v", err)
	}
	fresh := s.conf("cp2")
	if _, err := Open(fresh, Options{}); code(err) != metal.CodeWrongState || !strings.Contains(err.Error(), "`init`") {
		t.Errorf("run before init: %v", err)
	}
	token := s.joinToken(n)
	forAgent, expired, foreign, spent := token, token, token, token
	forAgent.Role = jointoken.RoleAgent
	expired.Expires = time.Now().Add(-time.Minute)
	foreign.CASHA256 = strings.Repeat("0", 64)
	spent.Secret = "x"
	for name, c := range map[string]struct {
		token jointoken.Token
		want  metal.Code
	}{
		"an agent's token":  {forAgent, metal.CodeDenied},
		"an expired token":  {expired, metal.CodeTokenExpired},
		"another cluster's": {foreign, metal.CodeNoLeader},
		"a wrong secret":    {spent, metal.CodeUnauthenticated},
	} {
		if _, err := Join(t.Context(), fresh, c.token, s.log()); code(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Join(t.Context(), fresh, token, s.log()); err != nil {
		t.Fatalf("the interrupted join does not go on: %v", err)
	}
	if _, err := Join(t.Context(), s.conf("cp3"), token, s.log()); code(err) != metal.CodeUnauthenticated {
		t.Errorf("a token was spent twice: %v", err)
	}
	if _, err := Join(t.Context(), fresh, token, s.log()); code(err) != metal.CodeWrongState {
		t.Errorf("join twice: %v", err)
	}
}

// A second process on the same data must not start.
func TestDataInUse(t *testing.T) {
	s := newSite(t)
	s.leader()
	other := s.nodes[0].conf
	other.Listen = freeport.Addr(t)
	other.Gossip = ""
	if _, err := Open(other, Options{}); metal.CodeOf(err) != metal.CodeBusy {
		t.Fatalf("got %v", err)
	}
}

func TestConfig(t *testing.T) {
	good := "name: cp1\ndata_dir: /d\nlisten: 127.0.0.1:7443\nkeyring_file: /k.json\n"
	load := func(text string) error {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := LoadConfig(path)
		if err == nil && c.Advertise != c.Listen {
			err = errors.New("advertise has no default")
		}
		return err
	}
	if err := load(good); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		good + "keyring: /x\n":                                             `c.yaml:5: unknown key "keyring"`,
		strings.Replace(good, "/k.json", "/d/k.json", 1):                   "keyring_file: lies in data_dir",
		strings.Replace(good, "127.0.0.1:7443", "0.0.0.0:7443", 1):         "advertise: must be an address",
		strings.Replace(good, "127.0.0.1:7443", "somewhere", 1):            "listen",
		strings.Replace(good, "cp1", "CP 1", 1):                            "name",
		strings.Replace(good, "data_dir: /d\n", "", 1):                     "data_dir: is missing",
		good + "gossip: host:1\n":                                          "gossip",
		good + "log_level: loud\n":                                         "log_level",
		good + "election_timeout: 3\n":                                     "c.yaml:5: wants a duration",
		good + "image_store: {endpoint: ftp://x, bucket: b}\n":             "image_store.endpoint",
		good + "image_store: {endpoint: 'https://x:1', bukket: bmc-img}\n": `did you mean "bucket"?`,
	} {
		if err := load(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// A node whose process dies while it leads is replaced by the word of the others,
// not by the election timeout. Here its sockets are closed, as a kernel does.
func TestDeadLeaderIsSeenAtOnce(t *testing.T) {
	t.Parallel()
	s := threeWith(t, 4*time.Second)
	old := s.leader()
	old.mux.l.Close()
	old.streams.Silence(true)
	stood := uint64(0)
	s.await("another leads", func() bool {
		stood = 0
		for _, n := range s.nodes {
			if n != old && n.raft.IsLeader() {
				stood = n.raft.Stood()
				return true
			}
		}
		return false
	})
	if stood != 1 {
		t.Errorf("the new leader stood %d times because the old one was gone, want 1", stood)
	}
}
