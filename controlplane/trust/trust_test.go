package trust

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA("cluster-a", time.Now().Add(-48*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// member makes an identity whose certificate was issued at a given age.
func member(t *testing.T, ca *CA, role Role, id string, age time.Duration) tls.Certificate {
	t.Helper()
	key, csr, err := NewRequest("cp1.example")
	if err != nil {
		t.Fatal(err)
	}
	ca.now = func() time.Time { return time.Now().Add(-age) }
	var der []byte
	switch role {
	case RoleNode:
		der, err = ca.IssueNode(csr, id, "127.0.0.1:7443")
	case RoleAgent:
		der, err = ca.IssueAgent(csr, id)
	default:
		der, err = ca.IssueServer(csr, id)
	}
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.DER()}, PrivateKey: key}
}

func credentials(t *testing.T, ca *CA, cert tls.Certificate) *Credentials {
	t.Helper()
	c, err := NewCredentials(cert, ca.Certificate(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shake runs a handshake and returns both sides' errors and the server's state.
func shake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	deadline := time.Now().Add(10 * time.Second)
	_ = a.SetDeadline(deadline)
	_ = b.SetDeadline(deadline)
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1}) // TLS 1.3: the client learns of a refusal when it reads
		} else {
			_ = a.Close()
		}
		done <- err
	}()
	err := c.Handshake()
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	} else {
		_ = b.Close()
	}
	return s.ConnectionState(), errors.Join(<-done, err)
}

func TestHandshakes(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	node := credentials(t, ca, member(t, ca, RoleNode, "node-a", 0))
	plain := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ProtoRaft}}
	expired := 24 * 400 * time.Hour
	oldCA, err := NewCA("cluster-a", time.Now().Add(-2*expired))
	if err != nil {
		t.Fatal(err)
	}
	oldNode := credentials(t, oldCA, member(t, oldCA, RoleNode, "node-o", expired))
	for _, c := range []struct {
		name   string
		server *Credentials
		client *tls.Config
		want   string // in the errors; "" for success
	}{
		{"node by raft", node, credentials(t, ca, member(t, ca, RoleNode, "node-b", 0)).Client([]string{ProtoRaft}, RoleNode), ""},
		{"agent by raft", node, credentials(t, ca, member(t, ca, RoleAgent, "agt-b", 0)).Client([]string{ProtoRaft}, RoleNode), "wanted is [node]"},
		{"nobody by raft", node, plain, "showed no certificate"},
		{"agent by gRPC", node, credentials(t, ca, member(t, ca, RoleAgent, "agt-b", 0)).Client([]string{ProtoGRPC}, RoleNode), ""},
		{"other CA", node, credentials(t, other, member(t, other, RoleNode, "node-b", 0)).Client([]string{ProtoRaft}, RoleNode), "certificate signed by unknown authority"},
		{"other CA believed by the client", node, credentials(t, ca, member(t, other, RoleNode, "node-b", 0)).Client([]string{ProtoRaft}, RoleNode), "certificate signed by unknown authority"},
		{"wanted an agent", node, credentials(t, ca, member(t, ca, RoleNode, "node-b", 0)).Client([]string{ProtoGRPC}, RoleAgent), "wanted is [agent]"},
		{"expired nodes by raft", oldNode, credentials(t, oldCA, member(t, oldCA, RoleNode, "node-p", expired)).Client([]string{ProtoRaft}, RoleNode), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := shake(t, c.server.Server(), c.client)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestRecordedKey(t *testing.T) {
	ca := testCA(t)
	cert := member(t, ca, RoleNode, "node-b", 0)
	refuse := errors.New("another key is recorded")
	node, err := NewCredentials(member(t, ca, RoleNode, "node-a", 0), ca.Certificate(), func(Identity) error { return refuse })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shake(t, node.Server(), credentials(t, ca, cert).Client([]string{ProtoRaft}, RoleNode)); !errors.Is(err, refuse) {
		t.Fatalf("got %v", err)
	}
}

func TestIdentify(t *testing.T) {
	ca := testCA(t)
	node := credentials(t, ca, member(t, ca, RoleNode, "node-a", 0))
	agent := credentials(t, ca, member(t, ca, RoleAgent, "agt-b", 29*24*time.Hour))
	cs, err := shake(t, node.Server(), agent.Client([]string{ProtoGRPC}, RoleNode))
	if err != nil {
		t.Fatal(err)
	}
	id, ok := node.Identify(cs)
	if !ok || id.Role != RoleAgent || id.ID != "agt-b" || id.Expired || len(id.KeyHash) != 32 {
		t.Fatalf("got %+v, %v", id, ok)
	}
	if _, ok := node.Identify(tls.ConnectionState{HandshakeComplete: true}); ok {
		t.Fatal("nobody was identified")
	}
}

// A user's client knows only the CA and the node's address.
func TestUsersVerifyNormally(t *testing.T) {
	ca := testCA(t)
	node := credentials(t, ca, member(t, ca, RoleNode, "node-a", 0))
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate())
	for name, ok := range map[string]bool{"127.0.0.1": true, "cp1.example": true, "cp2.example": false} {
		_, err := shake(t, node.Server(), &tls.Config{RootCAs: pool, ServerName: name, NextProtos: []string{ProtoGRPC}})
		if (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPinnedCA(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	node := credentials(t, ca, member(t, ca, RoleNode, "node-a", 0))
	for _, c := range []struct {
		pin *CA
		ok  bool
	}{{ca, true}, {other, false}} {
		cfg := PinnedCA([]string{ProtoGRPC}, func(der []byte) bool { return bytes.Equal(der, c.pin.DER()) })
		if _, err := shake(t, node.Server(), cfg); (err == nil) != c.ok {
			t.Errorf("pinned %v: %v", c.ok, err)
		}
	}
	// An impostor shows the true CA behind a certificate of its own.
	fake := member(t, other, RoleNode, "node-a", 0)
	fake.Certificate[1] = ca.DER()
	cfg := PinnedCA([]string{ProtoGRPC}, func(der []byte) bool { return bytes.Equal(der, ca.DER()) })
	if _, err := shake(t, credentials(t, ca, fake).Server(), cfg); err == nil {
		t.Fatal("an impostor was believed")
	}
}

func TestVerifyAge(t *testing.T) {
	ca, err := NewCA("cluster-a", time.Now().Add(-800*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(ca.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		role    Role
		age     time.Duration
		expired bool
		ok      bool
	}{
		{RoleNode, 366 * 24 * time.Hour, true, true},
		{RoleAgent, 31 * 24 * time.Hour, true, true},
		{RoleAgent, 29 * 24 * time.Hour, false, true},
		{RoleServer, 25 * time.Hour, true, false},
		{RoleServer, 23 * time.Hour, false, true},
	} {
		cert := member(t, ca, c.role, "x-1", c.age)
		leaf, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		id, err := v.Verify([]*x509.Certificate{leaf}, x509.ExtKeyUsageClientAuth)
		if (err == nil) != c.ok || err == nil && id.Expired != c.expired {
			t.Errorf("%s aged %s: %+v, %v", c.role, c.age, id, err)
		}
	}
	if _, err := v.Verify(nil, x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("no certificate was accepted")
	}
}

func TestSeal(t *testing.T) {
	k, err := NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("calvin")
	sealed, err := k.Seal(secret, "srv-a/oob")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Open(sealed, "srv-a/oob"); err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := k.Open(sealed, "srv-b/oob"); err == nil {
		t.Fatal("opened for another server")
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := k.Open(bad, "srv-a/oob"); err == nil {
			t.Fatalf("opened with byte %d altered", i)
		}
		if _, err := k.Open(sealed[:i], "srv-a/oob"); err == nil {
			t.Fatalf("opened when cut to %d", i)
		}
	}
	again, err := k.Seal(secret, "srv-a/oob")
	if err != nil || bytes.Equal(again, sealed) {
		t.Fatal("sealing is not randomised")
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	ca := testCA(t)
	k, err := NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "keyring.json")
	if err := WriteKeyring(path, k); err != nil {
		t.Fatal(err)
	}
	if err := WriteKeyring(path, k); err == nil {
		t.Fatal("a keyring was overwritten")
	}
	got, err := ReadKeyring(path)
	if err != nil || !bytes.Equal(got.MAC([]byte("x")), k.MAC([]byte("x"))) {
		t.Fatalf("read back: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKeyring(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatalf("a public keyring was read: %v", err)
	}
	keyDER, err := ca.KeyDER()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(WriteKeyDER(filepath.Join(dir, "ca.key"), keyDER), WriteCertificate(filepath.Join(dir, "ca.pem"), ca.DER())); err != nil {
		t.Fatal(err)
	}
	der, err := ReadCertificate(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ReadKeyDER(filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	if loaded, err := LoadCA(der, key); err != nil || loaded.ClusterID() != "cluster-a" {
		t.Fatalf("load: %v", err)
	}
	otherKey, err := testCA(t).KeyDER()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(der, otherKey); err == nil {
		t.Fatal("a foreign key was taken")
	}
	for _, bad := range []string{"", "{}", `{"active":"x"}`, `{"activ":"x"}`} {
		if _, err := ParseKeyring([]byte(bad)); err == nil {
			t.Errorf("%q was taken for a keyring", bad)
		}
	}
}

func TestUserToken(t *testing.T) {
	text, id, hash, err := NewUserToken()
	if err != nil {
		t.Fatal(err)
	}
	gotID, secret, ok := ParseUserToken(text + "\n")
	if !ok || gotID != id || !SecretMatches(secret, hash) || SecretMatches(secret+"x", hash) {
		t.Fatalf("%q: %q %v", text, gotID, ok)
	}
	for _, bad := range []string{"", "bmct_", "bmct_x", "bmct_X_y", "bmct_tok-a_"} {
		if _, _, ok := ParseUserToken(bad); ok {
			t.Errorf("%q was taken", bad)
		}
	}
}
