// Package cluster runs real bmc-controlplane processes on loopback for
// measurements: each with its own directory, port and log.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/process"
	"bmc/client"
)

const (
	pollEvery = 50 * time.Millisecond
	setUpWait = 60 * time.Second // for one node to enter
	readyWait = 90 * time.Second // for nodes to be voters that have caught up
	closeLag  = 64               // entries that a node may lack to count as caught up under load
)

// Config of a cluster.
type Config struct {
	Dir      string // made; everything of the cluster is in it
	Program  string // bmc-controlplane
	Nodes    int
	Election time.Duration // 0: the product's default
	LogStore string        // "": the product's default
}

// Node is one process and its files.
type Node struct {
	Name, Address string
	dir           string
	child         *process.Child // nil: not running
}

// Cluster is running nodes and an administrator's client.
type Cluster struct {
	Nodes  []*Node
	Client *client.Client

	conf  Config
	token string
	ca    []byte
}

// Start makes a cluster and waits until every node is a voter. On an error
// nothing is left running.
func Start(ctx context.Context, c Config) (_ *Cluster, err error) {
	cl := &Cluster{conf: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, cl.Close())
		}
	}()
	for i := range c.Nodes {
		if err := cl.addNode(ctx, fmt.Sprintf("cp%d", i+1)); err != nil {
			return nil, err
		}
	}
	if err := cl.connect(); err != nil { // again: with every address
		return nil, err
	}
	return cl, cl.Ready(ctx)
}

func (c *Cluster) addNode(ctx context.Context, name string) error {
	addr, err := process.FreeAddress()
	if err != nil {
		return err
	}
	n := &Node{Name: name, Address: addr, dir: filepath.Join(c.conf.Dir, name)}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	text := fmt.Sprintf("name: %s\ndata_dir: %s\nkeyring_file: %s\nlisten: %s\nlog_level: info\n",
		name, n.path("data"), n.path("keyring.json"), addr)
	if c.conf.Election > 0 {
		text += fmt.Sprintf("election_timeout: %v\n", c.conf.Election)
	}
	if c.conf.LogStore != "" {
		text += fmt.Sprintf("log_store: %s\n", c.conf.LogStore)
	}
	if err := os.WriteFile(n.path("config.yaml"), []byte(text), 0o600); err != nil {
		return err
	}
	first := len(c.Nodes) == 0
	args := []string{"init", "--config", n.path("config.yaml"), "--admin-token-file", filepath.Join(c.conf.Dir, "admin.token")}
	if !first {
		if err := c.joinToken(ctx, n.path("join.token")); err != nil {
			return err
		}
		args = []string{"join", "--config", n.path("config.yaml"), "--token-file", n.path("join.token")}
	}
	setUp, err := process.Start(n.path("log"), c.conf.Program, args...)
	if err != nil {
		return err
	}
	if err := setUp.Wait(setUpWait); err != nil {
		return fmt.Errorf("%s %s: %w (see its log)", name, args[0], err)
	}
	c.Nodes = append(c.Nodes, n)
	if err := c.Restart(n); err != nil {
		return err
	}
	if first {
		if err := c.readSecrets(); err != nil {
			return err
		}
		if err := c.connect(); err != nil {
			return err
		}
	}
	return c.Ready(ctx)
}

func (n *Node) path(name string) string { return filepath.Join(n.dir, name) }

func (c *Cluster) readSecrets() error {
	token, err := os.ReadFile(filepath.Join(c.conf.Dir, "admin.token"))
	if err != nil {
		return err
	}
	c.token = strings.TrimSpace(string(token))
	c.ca, err = os.ReadFile(c.Nodes[0].path("data/ca.pem"))
	return err
}

func (c *Cluster) connect() error {
	fresh, err := c.NewClient(0)
	if err != nil {
		return err
	}
	if c.Client != nil {
		err = c.Client.Close()
	}
	c.Client = fresh
	return err
}

// CAFile holds the CA that nodes are checked by.
func (c *Cluster) CAFile() string { return c.Nodes[0].path("data/ca.pem") }

// NewClient is one more client, which begins at the node of that number. The
// caller closes it.
func (c *Cluster) NewClient(first int) (*client.Client, error) {
	cfg := client.Config{Token: c.token, CACert: c.ca}
	for i := range c.Nodes {
		cfg.Addresses = append(cfg.Addresses, c.Nodes[(first+i)%len(c.Nodes)].Address)
	}
	return client.New(cfg)
}

// ClientOf asks one node alone. The caller closes it.
func (c *Cluster) ClientOf(n *Node) (*client.Client, error) {
	return client.New(client.Config{Addresses: []string{n.Address}, Token: c.token, CACert: c.ca})
}

func (c *Cluster) joinToken(ctx context.Context, path string) error {
	r, err := c.Client.Cluster.CreateJoinToken(ctx, &bmcv1.CreateJoinTokenRequest{Role: "node"})
	if err != nil {
		return fmt.Errorf("make a join token: %w", err)
	}
	return os.WriteFile(path, []byte(r.GetToken()+"\n"), 0o600)
}

// Restart starts a node that does not run.
func (c *Cluster) Restart(n *Node) error {
	child, err := process.Start(n.path("log"), c.conf.Program, "run", "--config", n.path("config.yaml"))
	if err != nil {
		return err
	}
	n.child = child
	return nil
}

// LastSnapshot is the index of the newest snapshot that raft has taken on the
// node, 0 for none (its directories are named term-index-time).
func (n *Node) LastSnapshot() uint64 {
	var newest uint64
	entries, err := os.ReadDir(n.path("data/raft/snapshots"))
	if err != nil {
		return 0
	}
	for _, e := range entries {
		var term, index, at uint64
		if k, _ := fmt.Sscanf(e.Name(), "%d-%d-%d", &term, &index, &at); k == 3 {
			newest = max(newest, index)
		}
	}
	return newest
}

// Child is the node's process.
func (n *Node) Child() *process.Child { return n.child }

// Leader is the node that the others follow.
func (c *Cluster) Leader(ctx context.Context) (*Node, error) {
	var found *Node
	err := poll(ctx, readyWait, "a leader", func(ctx context.Context) error {
		s, err := c.Client.Cluster.Status(ctx, &bmcv1.StatusRequest{})
		if err != nil {
			return err
		}
		for _, n := range c.Nodes {
			if n.Address == s.GetLeaderAddress() {
				found = n
				return nil
			}
		}
		return errors.New("no node says who leads")
	})
	return found, err
}

// Ready waits until every node answers, is a voter and lacks next to nothing.
func (c *Cluster) Ready(ctx context.Context) error {
	return poll(ctx, readyWait, "all nodes to be there", func(ctx context.Context) error {
		r, err := c.Client.Cluster.Peers(ctx, &bmcv1.PeersRequest{})
		if err != nil {
			return err
		}
		voters, leaders, newest := 0, 0, uint64(0)
		for _, p := range r.GetPeers() {
			newest = max(newest, p.GetAppliedIndex())
		}
		for _, p := range r.GetPeers() {
			if p.GetAlive() && p.GetSuffrage() == "voter" && p.GetAppliedIndex()+closeLag >= newest {
				voters++
			}
			if p.GetLeader() {
				leaders++
			}
		}
		if voters != len(c.Nodes) || leaders != 1 {
			return fmt.Errorf("%d of %d nodes are voters that have caught up, %d leaders", voters, len(c.Nodes), leaders)
		}
		return nil
	})
}

// poll tries until f says nil, for at most limit.
func poll(ctx context.Context, limit time.Duration, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w; the last answer: %w", what, ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// Close ends every node and the client; files stay.
func (c *Cluster) Close() error {
	var errs []error
	if c.Client != nil {
		errs = append(errs, c.Client.Close())
	}
	for _, n := range c.Nodes {
		if n.child != nil {
			errs = append(errs, n.child.End())
		}
	}
	return errors.Join(errs...)
}
