package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Roles in the URI of a peer's certificate: spiffe://<cluster>/<role>/<id>.
const (
	roleNode   = "node"
	roleAgent  = "agent"
	roleServer = "server"
)

// identity is what joining has given the agent; it is a file of mode 0600.
type identity struct {
	AgentID     string   `json:"agent_id"`
	ClusterID   string   `json:"cluster_id"`
	Nodes       []string `json:"nodes"` // host:port, as known when it joined
	GossipKey   []byte   `json:"gossip_key"`
	CA          []byte   `json:"ca"`          // DER
	Certificate []byte   `json:"certificate"` // DER
	Key         []byte   `json:"key"`         // PKCS #8, DER
}

func identityPath(dataDir string) string { return filepath.Join(dataDir, "identity.json") }

// loadIdentity returns nil without an error when the agent has not joined.
func loadIdentity(dataDir string) (*identity, error) {
	data, err := os.ReadFile(identityPath(dataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // not joined yet
	}
	if err != nil {
		return nil, err
	}
	id := &identity{}
	if err := json.Unmarshal(data, id); err != nil {
		return nil, fmt.Errorf("%s: %w", identityPath(dataDir), err)
	}
	return id, nil
}

func (id *identity) save(dataDir string) error {
	data, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return writeFile(identityPath(dataDir), data)
}

// writeFile replaces a file of mode 0600, atomically and durably.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // best effort
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// credentials are what the agent shows and whom it believes. The certificate
// may be replaced while connections are open.
type credentials struct {
	ca      *x509.Certificate
	roots   *x509.CertPool
	cluster string
	cert    atomic.Pointer[tls.Certificate]
}

func newCredentials(id *identity) (*credentials, error) {
	ca, err := x509.ParseCertificate(id.CA)
	if err != nil {
		return nil, fmt.Errorf("the cluster's CA: %w", err)
	}
	c := &credentials{ca: ca, roots: x509.NewCertPool(), cluster: id.ClusterID}
	c.roots.AddCert(ca)
	return c, c.set(id)
}

func (c *credentials) set(id *identity) error {
	key, err := x509.ParsePKCS8PrivateKey(id.Key)
	if err != nil {
		return fmt.Errorf("the agent's key: %w", err)
	}
	leaf, err := x509.ParseCertificate(id.Certificate)
	if err != nil {
		return fmt.Errorf("the agent's certificate: %w", err)
	}
	c.cert.Store(&tls.Certificate{Certificate: [][]byte{id.Certificate}, PrivateKey: key, Leaf: leaf})
	return nil
}

func (c *credentials) caPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.Raw}))
}

// client is the TLS configuration for calls to nodes. Names of hosts are not
// looked at: the certificate's URI says who the peer is.
func (c *credentials) client() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.cert.Load(), nil
		},
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection checks chain and role
		VerifyConnection: func(s tls.ConnectionState) error {
			return verifyNode(s.PeerCertificates, c.roots, c.cluster)
		},
	}
}

// agentClient is the TLS configuration for calls to one other agent.
func (c *credentials) agentClient(id string) *tls.Config {
	conf := c.client()
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the agent showed no certificate")
		}
		leaf := s.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
			return fmt.Errorf("the agent's certificate: %w", err)
		}
		if cluster, got, ok := peerID(leaf.URIs, roleAgent); !ok || cluster != c.cluster || got != id {
			return fmt.Errorf("the certificate does not name agent %s of this cluster", id)
		}
		return nil
	}
	return conf
}

// server is the TLS configuration of the Ramdisk service: a client without a
// certificate may only say hello.
func (c *credentials) server() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.VerifyClientCertIfGiven,
		ClientCAs:              c.roots,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.cert.Load(), nil
		},
	}
}

// verifyNode checks that the chain leads to the CA and names a node. Age is not
// looked at: a site that was off for a year must come back by itself.
func verifyNode(chain []*x509.Certificate, roots *x509.CertPool, cluster string) error {
	if len(chain) == 0 {
		return errors.New("the node showed no certificate")
	}
	leaf := chain[0]
	at := time.Now()
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	} else if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return fmt.Errorf("the node's certificate: %w", err)
	}
	if who, _, ok := peerID(leaf.URIs, roleNode); !ok || who != cluster {
		return errors.New("the certificate does not name a node of this cluster")
	}
	return nil
}

// peerID reads the cluster and the ID of a role from a verified certificate.
func peerID(uris []*url.URL, role string) (cluster, id string, ok bool) {
	if len(uris) != 1 || uris[0].Scheme != "spiffe" {
		return "", "", false
	}
	id, ok = strings.CutPrefix(uris[0].Path, "/"+role+"/")
	return uris[0].Host, id, ok && id != "" && !strings.Contains(id, "/")
}

// newKey makes a key (PKCS #8) and a request to certify it (PKCS #10).
func newKey() (key, csr []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if key, err = x509.MarshalPKCS8PrivateKey(k); err != nil {
		return nil, nil, err
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	return key, csr, err
}
