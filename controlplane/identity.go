package controlplane

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"bmc/controlplane/trust"
	"bmc/metal"
)

// Files in the data directory.
const (
	fileCA      = "ca.pem"
	fileCAKey   = "ca.key"
	fileCert    = "node.pem"
	fileKey     = "node.key"
	fileRequest = "join.csr" // of a join whose answer has not come yet
	fileNode    = "node.json"
)

// record says who this node is. It is written last: its presence means that
// init or join went through.
type record struct {
	ClusterID string   `json:"cluster_id"`
	NodeID    string   `json:"node_id"`
	Name      string   `json:"name"`
	Seeds     []string `json:"seeds,omitempty"` // the other nodes' TLS ports when this one joined
	// Lost are nodes that a recovery has written off. Should one wake up, it
	// must not replace this node's log with its own.
	Lost []string `json:"lost,omitempty"`
	// Recovering is set while a recovery is under way: the node must not run.
	Recovering bool `json:"recovering,omitempty"`
}

// identity is everything that makes a node itself.
type identity struct {
	record
	ca      *trust.CA
	cert    tls.Certificate // with the CA in its chain, for newcomers that know its hash only
	keyring *trust.Keyring
}

func (c *Config) file(name string) string { return filepath.Join(c.DataDir, name) }

// errNotSetUp explains what comes before `run`.
func (c *Config) errNotSetUp() error {
	return metal.Errorf(metal.CodeWrongState, "this node belongs to no cluster yet: %s has no %s. "+
		"Start a new cluster with `init`, or enter one with `join` and a token", c.DataDir, fileNode).
		WithHint("bmc-controlplane init --config FILE --admin-token-file FILE")
}

// loadIdentity reads what init or join has written.
func (c *Config) loadIdentity() (*identity, error) {
	b, err := os.ReadFile(c.file(fileNode))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, c.errNotSetUp()
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's identity: %w", err)
	}
	id := &identity{}
	if err := json.Unmarshal(b, &id.record); err != nil {
		return nil, fmt.Errorf("%s: %w", c.file(fileNode), err)
	}
	caDER, err := trust.ReadCertificate(c.file(fileCA))
	if err != nil {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	caKey, err := trust.ReadKeyDER(c.file(fileCAKey))
	if err != nil {
		return nil, fmt.Errorf("read the CA's key: %w", err)
	}
	if id.ca, err = trust.LoadCA(caDER, caKey); err != nil {
		return nil, err
	}
	if id.ca.ClusterID() != id.ClusterID {
		return nil, fmt.Errorf("%s is of cluster %s, the CA of %s", c.file(fileNode), id.ClusterID, id.ca.ClusterID())
	}
	if id.keyring, err = trust.ReadKeyring(c.KeyringFile); err != nil {
		return nil, fmt.Errorf("read the keyring: %w", err)
	}
	if id.cert, err = c.loadCertificate(id.ca, id.NodeID); err != nil {
		return nil, err
	}
	return id, nil
}

func (c *Config) loadCertificate(ca *trust.CA, nodeID string) (tls.Certificate, error) {
	der, err := trust.ReadCertificate(c.file(fileCert))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the node's certificate: %w", err)
	}
	key, err := trust.ReadKey(c.file(fileKey))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the node's key: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("parse the node's certificate: %w", err)
	}
	_, role, id, ok := trust.PeerIdentity(leaf)
	if !ok || role != trust.RoleNode || id != nodeID || !key.PublicKey.Equal(leaf.PublicKey) {
		return tls.Certificate{}, errors.New("the node's certificate, its key and its record do not belong together")
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.DER()}, PrivateKey: key, Leaf: leaf}, nil
}

// saveRecord completes init or join.
func (c *Config) saveRecord(r record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the node's record: %w", err)
	}
	return trust.WriteFile(c.file(fileNode), append(b, '\n'), 0o644)
}

// checkEmpty refuses a data directory that is in use, and says how it came so.
func (c *Config) checkEmpty(allowed ...string) error {
	if _, err := os.Lstat(c.file(fileNode)); err == nil {
		return metal.Errorf(metal.CodeWrongState, "%s holds a node of a cluster already; nothing was changed", c.DataDir).
			WithHint("bmc-controlplane run --config FILE")
	}
	entries, err := os.ReadDir(c.DataDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look into the data directory: %w", err)
	}
	may := map[string]bool{"lost+found": true}
	for _, a := range allowed {
		may[a] = true
	}
	for _, e := range entries {
		if !may[e.Name()] {
			return metal.Errorf(metal.CodeWrongState, "%s is not empty (%s): an earlier init or join may have been interrupted; nothing was changed",
				c.DataDir, e.Name()).WithHint("ls -la %s", c.DataDir)
		}
	}
	return nil
}

func (c *Config) makeDataDir() error {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	return nil
}
