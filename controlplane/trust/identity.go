package trust

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Role is what an identity is, as its URI says.
type Role string

// The roles: spiffe://<cluster>/<role>/<id>.
const (
	RoleNode   Role = "node"
	RoleAgent  Role = "agent"
	RoleServer Role = "server"
)

const scheme = "spiffe"

func uri(cluster string, role Role, id string) *url.URL {
	return &url.URL{Scheme: scheme, Host: cluster, Path: "/" + string(role) + "/" + id}
}

func validID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	return !strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}

// PeerIdentity reads the identity in a certificate. It proves nothing: the
// certificate must have passed Verifier.Verify, as our tls.Configs make sure.
func PeerIdentity(cert *x509.Certificate) (cluster string, role Role, id string, ok bool) {
	if cert == nil || len(cert.URIs) != 1 || cert.URIs[0].Scheme != scheme {
		return "", "", "", false
	}
	u := cert.URIs[0]
	kind, id, found := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	role = Role(kind)
	if !found || u.Host == "" || !validID(id) || (role != RoleNode && role != RoleAgent && role != RoleServer) {
		return "", "", "", false
	}
	return u.Host, role, id, true
}

// Identity is a peer that has proved who it is.
type Identity struct {
	Role    Role
	ID      string
	KeyHash []byte // SHA-256 of its public key (SPKI)
	Expired bool   // its certificate is outside its time
}

// Verifier checks certificates of one cluster.
type Verifier struct {
	roots   *x509.CertPool
	cluster string
	now     func() time.Time

	mu     sync.Mutex
	proved map[proof]time.Time // chains that led to the CA, and when
}

// proof names a certificate and what it was proved good for.
type proof struct {
	cert  [sha256.Size]byte
	usage x509.ExtKeyUsage
}

// A signature is checked once a minute, not at every call over a connection.
const (
	proofLife = time.Minute
	maxProofs = 4096
)

// NewVerifier takes the CA's certificate.
func NewVerifier(ca *x509.Certificate) (*Verifier, error) {
	if ca == nil || !ca.IsCA || len(ca.URIs) != 1 {
		return nil, errors.New("the certificate is not a cluster's CA")
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &Verifier{roots: pool, cluster: ca.URIs[0].Host, now: time.Now, proved: map[proof]time.Time{}}, nil
}

// Verify checks that the chain leads to the CA and that the leaf has one of the
// roles. It does not refuse a certificate for its age: a site that was off for
// a year must come back by itself. Identity.Expired tells callers that mind;
// servers' certificates, which are for one boot, are refused here.
func (v *Verifier) Verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, roles ...Role) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, errors.New("the peer showed no certificate")
	}
	leaf := chain[0]
	now := v.now()
	at := now // the moment of the leaf's life that is nearest to now
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	} else if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	expired := !at.Equal(now)
	if err := v.prove(leaf, usage, at, now); err != nil {
		return Identity{}, err
	}
	cluster, role, id, ok := PeerIdentity(leaf)
	if !ok || cluster != v.cluster {
		return Identity{}, errors.New("the peer's certificate names no member of this cluster")
	}
	if len(roles) > 0 && !slices.Contains(roles, role) {
		return Identity{}, fmt.Errorf("the peer is %s %s, wanted is %v", role, id, roles)
	}
	if role == RoleServer && expired {
		return Identity{}, fmt.Errorf("the certificate of server %s has expired", id)
	}
	return Identity{Role: role, ID: id, KeyHash: KeyHash(leaf), Expired: expired}, nil
}

// prove has the chain checked unless that was done within proofLife. What fails is
// never remembered.
func (v *Verifier) prove(leaf *x509.Certificate, usage x509.ExtKeyUsage, at, now time.Time) error {
	key := proof{sha256.Sum256(leaf.Raw), usage}
	v.mu.Lock()
	when, ok := v.proved[key]
	v.mu.Unlock()
	if age := now.Sub(when); ok && age >= 0 && age < proofLife {
		return nil
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: v.roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return fmt.Errorf("peer's certificate: %w", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.proved) >= maxProofs {
		clear(v.proved)
	}
	v.proved[key] = now
	return nil
}
