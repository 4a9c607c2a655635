package rpc

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// Credentials.

type testCA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bmc test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ca := &testCA{key: key, cert: cert, pool: x509.NewCertPool()}
	ca.pool.AddCert(cert)
	return ca
}

func (c *testCA) sign(pub any, role, id string) ([]byte, error) {
	return c.signUntil(pub, role, id, time.Now().Add(24*time.Hour))
}

func (c *testCA) signUntil(pub any, role, id string, until time.Time) ([]byte, error) {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		URIs:        []*url.URL{{Scheme: "spiffe", Host: testCluster, Path: "/" + role + "/" + id}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	return x509.CreateCertificate(rand.Reader, tmpl, c.cert, pub, c.key)
}

func (c *testCA) issue(t *testing.T, role, id string) (*ecdsa.PrivateKey, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := c.sign(key.Public(), role, id)
	if err != nil {
		t.Fatal(err)
	}
	return key, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// issueUntil makes a certificate that ends at a time.
func (c *testCA) issueUntil(t *testing.T, role, id string, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := c.signUntil(key.Public(), role, id, until)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func mustSPKI(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (c *testCA) Identify(cs tls.ConnectionState) (PeerIdentity, bool) {
	if len(cs.PeerCertificates) == 0 {
		return PeerIdentity{}, false
	}
	cert := cs.PeerCertificates[0]
	if _, err := cert.Verify(x509.VerifyOptions{Roots: c.pool, CurrentTime: cert.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil || len(cert.URIs) != 1 {
		return PeerIdentity{}, false
	}
	parts := strings.Split(strings.Trim(cert.URIs[0].Path, "/"), "/")
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return PeerIdentity{Role: parts[0], ID: parts[1], KeyHash: sum[:], Expired: time.Now().After(cert.NotAfter)}, true
}

func (c *testCA) signCSR(csrDER []byte, role, id string) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, err
	}
	return c.sign(csr.PublicKey, role, id)
}

func (c *testCA) SignNode(csr []byte, id, _ string) ([]byte, error) {
	return c.signCSR(csr, "node", id)
}
func (c *testCA) SignAgent(csr []byte, id string) ([]byte, error) { return c.signCSR(csr, "agent", id) }
func (c *testCA) SignServer(csr []byte, id string) ([]byte, error) {
	return c.signCSR(csr, "server", id)
}
func (c *testCA) CA() []byte { return c.cert.Raw }
func (c *testCA) JoinSecrets() (JoinSecrets, error) {
	return JoinSecrets{GossipKey: bytes.Repeat([]byte{7}, 32), Keyring: []byte("{}"), CAKey: []byte("ca-key")}, nil
}

// fakeSealer checks the associated data, and that is all.
type fakeSealer struct{}

func (fakeSealer) Seal(plain []byte, ad string) ([]byte, error) {
	var nonce [4]byte
	_, _ = rand.Read(nonce[:])
	return []byte("sealed|" + hex.EncodeToString(nonce[:]) + "|" + ad + "|" + hex.EncodeToString(plain)), nil
}

func (fakeSealer) Open(sealed []byte, ad string) ([]byte, error) {
	p := strings.SplitN(string(sealed), "|", 4)
	if len(p) != 4 || p[2] != ad {
		return nil, fmt.Errorf("associated data %q is not that of %q", ad, sealed)
	}
	return hex.DecodeString(p[3])
}

func (fakeSealer) MAC(data []byte) []byte {
	h := hmac.New(sha256.New, []byte("test key"))
	h.Write(data)
	return h.Sum(nil)
}

// memStore is an image store.
type memStore struct {
	mu     sync.Mutex
	chunks map[string][]byte
}

func (m *memStore) Has(_ context.Context, digests []string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var missing []string
	for _, d := range digests {
		if _, ok := m.chunks[d]; !ok {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

func (m *memStore) Put(_ context.Context, digest string, _ int64, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.chunks[digest] = b
	return nil
}
