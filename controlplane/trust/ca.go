// Package trust is the cluster's own authority: its CA and the identities that
// it issues, the TLS that proves them, users' tokens, and the keyring that
// seals secrets before they enter the log.
package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"
)

// How long certificates live. Issued ones begin an hour ago, so that a clock
// that is a little behind accepts them.
const (
	caLife     = 20 * 365 * 24 * time.Hour
	nodeLife   = 365 * 24 * time.Hour
	agentLife  = 30 * 24 * time.Hour
	serverLife = 24 * time.Hour
	backdate   = time.Hour
)

const maxNames = 32 // SANs that a node's request may ask for

// CA issues the identities of one cluster.
type CA struct {
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	cluster string
	now     func() time.Time
}

// NewCA makes the CA of a new cluster.
func NewCA(clusterID string, now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the CA's key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "bmc cluster " + clusterID},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		URIs:                  []*url.URL{{Scheme: scheme, Host: clusterID}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the CA's certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the CA's key: %w", err)
	}
	return LoadCA(der, keyDER)
}

// LoadCA takes the certificate (DER) and the key (PKCS #8, DER), which must
// belong together.
func LoadCA(certDER, keyDER []byte) (*CA, error) {
	cert, cluster, err := ParseCA(certDER)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return nil, fmt.Errorf("parse the CA's key: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the CA's key does not belong to its certificate")
	}
	return &CA{cert: cert, key: key, cluster: cluster, now: time.Now}, nil
}

// ParseCA reads a CA certificate (DER) and the cluster's ID in it.
func ParseCA(der []byte) (*x509.Certificate, string, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, "", fmt.Errorf("parse the CA's certificate: %w", err)
	}
	if !cert.IsCA || len(cert.URIs) != 1 || cert.URIs[0].Scheme != scheme || cert.URIs[0].Host == "" || cert.URIs[0].Path != "" {
		return nil, "", errors.New("the certificate is not a cluster's CA")
	}
	return cert, cert.URIs[0].Host, nil
}

// Certificate is the CA's own.
func (c *CA) Certificate() *x509.Certificate { return c.cert }

// DER is the CA's certificate, encoded.
func (c *CA) DER() []byte { return c.cert.Raw }

// ClusterID is the trust domain of every identity.
func (c *CA) ClusterID() string { return c.cluster }

// KeyDER is the private key in PKCS #8: for another node's hands only.
func (c *CA) KeyDER() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(c.key) }

// IssueNode signs a node's request for a year. Beside the identity the
// certificate carries the host of the advertised address and the IP and DNS
// names in the request, so that users' clients verify it normally: whoever
// holds a node's token gets the CA's key anyway.
func (c *CA) IssueNode(csrDER []byte, nodeID, address string) ([]byte, error) {
	csr, err := parseCSR(csrDER)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("advertised address: %w", err)
	}
	if len(csr.DNSNames)+len(csr.IPAddresses) > maxNames {
		return nil, fmt.Errorf("the request asks for more than %d names", maxNames)
	}
	ips, names := slices.Clone(csr.IPAddresses), slices.Clone(csr.DNSNames)
	ips, names = addName(ips, names, host)
	return c.issue(csr, RoleNode, nodeID, nodeLife, func(t *x509.Certificate) {
		t.IPAddresses, t.DNSNames = ips, names
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	})
}

// IssueAgent signs an agent's request for 30 days.
func (c *CA) IssueAgent(csrDER []byte, agentID string) ([]byte, error) {
	csr, err := parseCSR(csrDER)
	if err != nil {
		return nil, err
	}
	return c.issue(csr, RoleAgent, agentID, agentLife, func(t *x509.Certificate) {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	})
}

// IssueServer signs a ramdisk's request for a day.
func (c *CA) IssueServer(csrDER []byte, serverID string) ([]byte, error) {
	csr, err := parseCSR(csrDER)
	if err != nil {
		return nil, err
	}
	return c.issue(csr, RoleServer, serverID, serverLife, func(t *x509.Certificate) {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
}

func (c *CA) issue(csr *x509.CertificateRequest, role Role, id string, life time.Duration, more func(*x509.Certificate)) ([]byte, error) {
	if !validID(id) {
		return nil, fmt.Errorf("%q is no identity", id)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := c.now()
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: id},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{uri(c.cluster, role, id)},
	}
	more(t)
	der, err := x509.CreateCertificate(rand.Reader, t, c.cert, csr.PublicKey, c.key)
	if err != nil {
		return nil, fmt.Errorf("sign a %s's certificate: %w", role, err)
	}
	return der, nil
}

func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("parse certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return csr, nil
}

// NewRequest makes a key and a certificate request (DER) for it; names are DNS
// names or IP addresses.
func NewRequest(names ...string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err := RequestFor(key, names...)
	return key, csr, err
}

// RequestFor makes a certificate request (DER) for a key at hand.
func RequestFor(key *ecdsa.PrivateKey, names ...string) ([]byte, error) {
	t := &x509.CertificateRequest{}
	for _, n := range names {
		t.IPAddresses, t.DNSNames = addName(t.IPAddresses, t.DNSNames, n)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return der, nil
}

func addName(ips []net.IP, names []string, host string) ([]net.IP, []string) {
	if ip := net.ParseIP(host); ip != nil {
		if !slices.ContainsFunc(ips, ip.Equal) {
			ips = append(ips, ip)
		}
	} else if host != "" && !slices.Contains(names, host) {
		names = append(names, host)
	}
	return ips, names
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// KeyHash is how a member's key is recorded: SHA-256 of its SPKI.
func KeyHash(cert *x509.Certificate) []byte {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return sum[:]
}
