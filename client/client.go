// Package client is the typed Go client of a bmc cluster. Any node answers any
// call; the client holds several addresses and moves on when one does not
// answer or knows no leader. A mutation gets a request ID before its first try,
// so that trying again has one effect.
package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"

	"google.golang.org/grpc"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

// Config says where a cluster is and who calls. The zero value of a field means
// its default.
type Config struct {
	// Addresses are host:port of control-plane nodes, tried in order.
	Addresses []string
	// Token is the bearer credential; empty for calls that need none.
	Token string
	// CACert is the cluster's CA, PEM; empty: the system's roots.
	CACert []byte
	// Patience is how long a call goes on trying while no node answers or no
	// leader is known; 0: 10 s.
	Patience time.Duration
	// CallTimeout bounds a unary call whose context has no deadline; 0: 60 s.
	CallTimeout time.Duration
	// OnRetry is told, once a call, that it is being tried again and why. It
	// may be nil and must not block.
	OnRetry func(reason string)
	// OnResend is told of each further attempt at a call, whatever became of those
	// before it. It may be nil and must not block.
	OnResend func()
	// Dial replaces the network connection, for tests; nil: TLS over TCP.
	Dial []grpc.DialOption

	answerWait, hedgeAfter time.Duration // of tests; 0: the constants
}

// Client calls a cluster. It is safe for concurrent use.
type Client struct {
	conn *failover

	Servers    bmcv1.ServersClient
	Inventory  bmcv1.InventoryClient
	Operations bmcv1.OperationsClient
	Events     bmcv1.EventsClient
	Images     bmcv1.ImagesClient
	Keys       bmcv1.KeysClient
	Cluster    bmcv1.ClusterClient
}

// New returns a client; it connects when the first call needs it. The error is
// a *metal.Error when the configuration cannot work.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addresses) == 0 {
		return nil, metal.Errorf(metal.CodeInvalid, "no control-plane address is known").
			WithHint("bmc context set NAME --addr HOST:PORT --cacert FILE, or set BMC_ADDR")
	}
	for _, a := range cfg.Addresses {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return nil, metal.Invalid("address", "%q is not host:port", a)
		}
	}
	if cfg.Patience == 0 {
		cfg.Patience = 10 * time.Second
	}
	if cfg.answerWait == 0 {
		cfg.answerWait = answerWait
	}
	if cfg.hedgeAfter == 0 {
		cfg.hedgeAfter = hedgeAfter
	}
	if cfg.CallTimeout == 0 {
		cfg.CallTimeout = time.Minute
	}
	tlsConfig, err := tlsFor(cfg.CACert)
	if err != nil {
		return nil, err
	}
	f, err := newFailover(cfg, tlsConfig)
	if err != nil {
		return nil, err
	}
	return &Client{
		conn:       f,
		Servers:    bmcv1.NewServersClient(f),
		Inventory:  bmcv1.NewInventoryClient(f),
		Operations: bmcv1.NewOperationsClient(f),
		Events:     bmcv1.NewEventsClient(f),
		Images:     bmcv1.NewImagesClient(f),
		Keys:       bmcv1.NewKeysClient(f),
		Cluster:    bmcv1.NewClusterClient(f),
	}, nil
}

// Revision is the highest that this client has seen in any answer. Reads that may be
// stale wait for it, so that a caller reads what it wrote, at whatever node; the
// others are of now anyway.
func (c *Client) Revision() uint64 { return c.conn.seen.revision.Load() }

// Close ends every connection; calls under way fail.
func (c *Client) Close() error { return c.conn.close() }

func tlsFor(pem []byte) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if len(pem) == 0 {
		return cfg, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, metal.Invalid("cacert", "holds no PEM certificate")
	}
	cfg.RootCAs = pool
	return cfg, nil
}

// ErrUnreachable is wrapped by the error of a call that no node answered.
var ErrUnreachable = errors.New("no control-plane node answered")

// unreachable says who was tried and, where known, why each was not reached.
func unreachable(tried string, last error) error {
	return &metal.Error{
		Code:    metal.CodeNoLeader,
		Message: "no control-plane node answered" + tried,
		Hint:    "bmc doctor",
		Err:     errors.Join(ErrUnreachable, last),
	}
}
