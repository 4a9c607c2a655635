// Package etcd runs real etcd processes on loopback, to measure beside, and speaks
// the little of its protocol that a measurement needs.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"bmc/bench/measure"
	"bmc/bench/process"
)

// Config of a cluster.
type Config struct {
	Program  string
	Dir      string // made; everything of the cluster is in it
	Members  int
	Election time.Duration // heartbeats are a tenth; 0: etcd's defaults (1 s)
	TLS      bool          // for clients and between members, TLS 1.3
}

// Cluster is running members.
type Cluster struct {
	Members []*Member
	conf    Config
	certs   *measure.Certificates // nil: no TLS
}

// Member is one process.
type Member struct {
	Name         string
	peer, client string
	child        *process.Child
	conn         *grpc.ClientConn // for questions about its state
}

// Child is the member's process.
func (m *Member) Child() *process.Child { return m.child }

// Start makes a cluster and waits until all members have caught up. On an error
// nothing is left running.
func Start(ctx context.Context, conf Config) (_ *Cluster, err error) {
	c := &Cluster{conf: conf}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start etcd: %w", err), c.Close())
		}
	}()
	if conf.TLS {
		if c.certs, err = measure.NewCertificates(filepath.Join(conf.Dir, "tls")); err != nil {
			return nil, err
		}
	}
	for i := range conf.Members {
		m := &Member{Name: fmt.Sprintf("e%d", i+1)}
		if m.peer, err = process.FreeAddress(); err != nil {
			return nil, err
		}
		if m.client, err = process.FreeAddress(); err != nil {
			return nil, err
		}
		if m.conn, err = c.Dial(m); err != nil {
			return nil, err
		}
		c.Members = append(c.Members, m)
	}
	for _, m := range c.Members {
		if err := c.run(m); err != nil {
			return nil, err
		}
	}
	return c, c.Ready(ctx)
}

// Endpoint is where clients reach a member, and the file with the CA that it is
// checked by; "" without TLS.
func (c *Cluster) Endpoint(m *Member) (url, caFile string) {
	if c.certs != nil {
		caFile = c.certs.CA
	}
	return c.scheme() + m.client, caFile
}

// Dial opens one more connection to a member. The caller closes it.
func (c *Cluster) Dial(m *Member, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if c.certs != nil {
		creds = credentials.NewTLS(&tls.Config{RootCAs: c.certs.Pool, MinVersion: tls.VersionTLS13})
	}
	return grpc.NewClient("passthrough:///"+m.client, append([]grpc.DialOption{grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 3 * time.Second,
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}})}, opts...)...)
}

func (c *Cluster) scheme() string {
	if c.certs != nil {
		return "https://"
	}
	return "http://"
}

func (c *Cluster) run(m *Member) (err error) {
	var all []string
	for _, o := range c.Members {
		all = append(all, o.Name+"="+c.scheme()+o.peer)
	}
	args := []string{"--name", m.Name, "--data-dir", filepath.Join(c.conf.Dir, m.Name),
		"--listen-peer-urls", c.scheme() + m.peer, "--initial-advertise-peer-urls", c.scheme() + m.peer,
		"--listen-client-urls", c.scheme() + m.client, "--advertise-client-urls", c.scheme() + m.client,
		"--initial-cluster", strings.Join(all, ","), "--initial-cluster-state", "new",
		"--quota-backend-bytes", "8589934592", "--log-level", "warn"}
	if e := c.conf.Election; e > 0 {
		ms := func(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }
		args = append(args, "--heartbeat-interval", ms(e/10), "--election-timeout", ms(e))
	}
	if t := c.certs; t != nil {
		args = append(args, "--cert-file", t.Cert, "--key-file", t.Key, "--tls-min-version", "TLS1.3",
			"--peer-cert-file", t.Cert, "--peer-key-file", t.Key, "--peer-trusted-ca-file", t.CA, "--peer-client-cert-auth")
	}
	m.child, err = process.Start(filepath.Join(c.conf.Dir, m.Name+".log"), c.conf.Program, args...)
	return err
}

func (m *Member) status(ctx context.Context) (etcdStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	b, err := Invoke(ctx, m.conn, methodStatus, nil)
	if err != nil {
		return etcdStatus{}, err
	}
	return parseStatus(b)
}

// Leader asks all members; nil when none that answers is the leader.
func (c *Cluster) Leader(ctx context.Context) *Member {
	for _, m := range c.Members {
		if s, err := m.status(ctx); err == nil && s.leader == s.member && s.leader != 0 {
			return m
		}
	}
	return nil
}

// Restart starts a member again that was killed.
func (c *Cluster) Restart(m *Member) error {
	<-m.child.Done()
	return c.run(m)
}

// Ready waits until all members answer, agree on a leader and lack little.
func (c *Cluster) Ready(ctx context.Context) error {
	return process.Until(ctx, "etcd's members", func() error {
		var all []etcdStatus
		newest := uint64(0)
		for _, m := range c.Members {
			s, err := m.status(ctx)
			if err != nil {
				return err
			}
			all, newest = append(all, s), max(newest, s.applied)
		}
		for _, s := range all {
			if s.leader == 0 || s.leader != all[0].leader || s.applied+64 < newest {
				return errors.New("a member has not caught up")
			}
		}
		return nil
	})
}

// Range reads linearizably.
func (c *Cluster) Range(ctx context.Context, req []byte) (kvs []KV, err error) {
	b, err := Invoke(ctx, c.Members[0].conn, MethodRange, req)
	if err != nil {
		return nil, err
	}
	return KVs(b)
}

// Close ends every member; files stay.
func (c *Cluster) Close() error {
	var errs []error
	for _, m := range c.Members {
		if m.conn != nil {
			errs = append(errs, m.conn.Close())
		}
		if m.child != nil {
			errs = append(errs, m.child.End())
		}
	}
	return errors.Join(errs...)
}
