package controlplane

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"bmc/controlplane/consensus"
	"bmc/controlplane/dispatch"
	"bmc/controlplane/rpc"
	"bmc/controlplane/trust"
	"bmc/fsm"
	"bmc/imagestore"
	"bmc/internal/version"
	"bmc/membership"
	"bmc/metal"
)

// Options of a Node that no file sets.
type Options struct {
	Log      *slog.Logger         // nil: nothing is logged
	Registry *prometheus.Registry // of NewRegistry; nil: no /metrics
	Fatal    func(error)          // what must stop the process at once; it must not return. Nil: panic
	Listener net.Listener         // instead of listening on Config.Listen; tests
}

// Node is one running control-plane node.
type Node struct {
	conf     Config
	opts     Options
	log      *slog.Logger
	id       *identity
	fsm      *fsm.FSM
	measures measures

	stores    *consensus.Stores
	streams   *consensus.Streams // below transport
	transport *raft.NetworkTransport
	raft      *consensus.Node
	gossip    *membership.Membership // nil: none is configured
	dispatch  *dispatch.Dispatcher
	images    *imagestore.Store // nil: none is configured
	peers     *rpc.Peers
	api       *rpc.API
	mux       *mux
	grpc      *grpc.Server
	grpcUp    *health.Server
	http      *http.Server

	opened  time.Time
	open    chan struct{} // closed when all of the above exists
	closing atomic.Bool
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	failed  chan error // capacity 2: why a server ended by itself
}

// Run opens a node, says ready, and closes it when ctx ends.
func Run(ctx context.Context, c Config, o Options, ready func()) error {
	n, err := Open(c, o)
	if err != nil {
		return err
	}
	if ready != nil {
		ready()
	}
	var why error
	select {
	case <-ctx.Done():
	case why = <-n.failed:
	}
	return errors.Join(why, n.Close())
}

// Open starts a node that init or join has set up. It does not wait for a
// leader. Close must be called.
func Open(c Config, o Options) (_ *Node, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	n := &Node{conf: c, opts: o, log: o.Log, measures: newMeasures(), opened: time.Now(), failed: make(chan error, 2), open: make(chan struct{})}
	if n.id, err = c.loadIdentity(); err != nil {
		return nil, err
	}
	if n.id.Recovering {
		return nil, errHalfRecovered()
	}
	n.fsm = fsm.New(fsm.Options{Fatal: o.Fatal, Applied: n.measures.applied})
	creds, err := trust.NewCredentials(n.id.cert, n.id.ca.Certificate(), n.checkKey)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	for _, start := range []func(context.Context, *trust.Credentials) error{n.openPort, n.openRaft, n.openGossip, n.openAPI} {
		if err := start(ctx, creds); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	n.log.Info("node runs", "node", n.id.NodeID, "name", n.id.Name, "cluster", n.id.ClusterID, "addr", c.Advertise, "version", version.String())
	return n, nil
}

// fatal stops the process for a reason that a restart, or a person, must mend.
func (n *Node) fatal(err error) {
	n.log.Error("this node stops", "node", n.id.NodeID, "err", err)
	if n.opts.Fatal == nil {
		panic(err)
	}
	n.opts.Fatal(err)
}

// checkKey refuses a node on the raft protocol that is recorded with another
// key. One that is not recorded here passes by its certificate: this replica
// may be the one that is behind.
func (n *Node) checkKey(id trust.Identity) error {
	if slices.Contains(n.id.Lost, id.ID) {
		return fmt.Errorf("node %s was written off when the cluster was recovered", id.ID)
	}
	known, ok := n.fsm.View().Node(id.ID)
	if ok && subtle.ConstantTimeCompare(known.KeyHash, id.KeyHash) != 1 {
		return fmt.Errorf("node %s is recorded with another key", id.ID)
	}
	return nil
}

func (n *Node) openPort(_ context.Context, creds *trust.Credentials) error {
	l := n.opts.Listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", n.conf.Listen); err != nil {
			return (&metal.Error{Code: metal.CodeInvalid, Field: "listen", Message: "cannot listen on " + n.conf.Listen, Err: err}).WithHint("ss -ltnp")
		}
	}
	n.mux = newMux(l, creds.Server(), n.log)
	return nil
}

func (n *Node) openRaft(_ context.Context, creds *trust.Credentials) (err error) {
	if n.stores, err = consensus.OpenStores(n.conf.DataDir, n.conf.LogStore, n.log); err != nil {
		return err
	}
	who := func(c net.Conn) string {
		t, ok := c.(*tls.Conn)
		if !ok {
			return ""
		}
		id, _ := creds.Identify(t.ConnectionState())
		return id.ID
	}
	n.streams = consensus.NewStreams(n.mux.raft, who, n.conf.Advertise, creds.Client([]string{trust.ProtoRaft}, trust.RoleNode))
	n.transport = consensus.NewTransport(n.streams, n.log)
	n.peers = rpc.NewPeers(credentials.NewTLS(creds.Client([]string{trust.ProtoGRPC}, trust.RoleNode)),
		func() (string, string) { return n.raft.Leader() })
	n.raft, err = consensus.Open(consensus.Config{ID: n.id.NodeID, FSM: timed{n.fsm, n.measures.apply, n.measures.restore}, Logs: n.stores.Logs, Stable: n.stores.Stable,
		Snapshots: n.stores.Snapshots, Transport: n.transport, Log: n.log, AskLeader: n.peers.ReadIndex,
		Streams: n.streams, AskGone: askGone(n.peers),
		Timing: consensus.Timing{Election: n.conf.ElectionTimeout.Std()}, Leading: n.leading, Silence: n.streams.Silence, Fatal: n.fatal})
	return err
}

// leading is what this node does while it leads.
func (n *Node) leading(ctx context.Context, term uint64) {
	select {
	case <-n.open: // everything below exists from then on
	case <-ctx.Done():
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { n.dispatch.Run(ctx, term) })
	wg.Go(func() { promoter{raft: n.raft, fsm: n.fsm, peers: n.peers, log: n.log}.run(ctx) })
	wg.Wait()
}

func (n *Node) openGossip(context.Context, *trust.Credentials) (err error) {
	if n.conf.Gossip == "" {
		return nil
	}
	n.gossip, err = membership.Open(membership.Config{Bind: n.conf.Gossip, Key: n.id.keyring.Gossip, Seeds: n.gossipSeeds, Log: n.log,
		Self: membership.Member{Kind: membership.KindNode, ID: n.id.NodeID, Name: n.id.Name, Address: n.conf.Advertise, Version: version.Version}})
	return err
}

// gossipSeeds are the configured ones and the other nodes' hosts at our own
// gossip port.
func (n *Node) gossipSeeds() []string {
	out := slices.Clone(n.conf.GossipSeeds)
	add := func(tls string) {
		host, _, err := net.SplitHostPort(tls)
		if err != nil {
			return
		}
		if seed := net.JoinHostPort(host, n.conf.gossipPort()); seed != n.conf.Gossip && !slices.Contains(out, seed) {
			out = append(out, seed)
		}
	}
	for node := range n.fsm.View().Nodes() {
		add(node.Address)
	}
	for _, a := range slices.Concat(n.id.Seeds, n.conf.Nodes) {
		add(a)
	}
	return out
}

func (n *Node) openAPI(ctx context.Context, creds *trust.Credentials) error {
	n.dispatch = dispatch.New(leaderSide{n.raft, n.fsm}, n.log)
	deps := rpc.Deps{ClusterID: n.id.ClusterID, NodeID: n.id.NodeID, NodeName: n.id.Name, Proposer: n.raft, Raft: raftAPI{n.raft},
		Authority: authority{n.id.ca, creds, n.id.keyring}, Sealer: n.id.keyring, Leases: leases{n.dispatch},
		Peers: n.peers, Hashes: n.fsm.StateHashAt, Log: n.log, SpoolDir: n.conf.DataDir}
	if n.gossip != nil {
		deps.Membership = n.gossip
	}
	if n.conf.ImageStore != nil {
		store, err := imagestore.Open(*n.conf.ImageStore)
		if err != nil {
			return err
		}
		n.images, deps.Images = store, chunks{store}
	}
	api, err := rpc.New(deps)
	if err != nil {
		return err
	}
	n.api = api
	n.grpc = grpc.NewServer(append(api.ServerOptions(), grpc.Creds(newHandshaken()))...)
	api.Register(n.grpc)
	n.grpcUp = health.NewServer()
	healthpb.RegisterHealthServer(n.grpc, n.grpcUp)
	reflection.Register(n.grpc)
	if n.opts.Registry != nil {
		n.register(n.opts.Registry)
	}
	n.http = &http.Server{Handler: n.handler(n.opts.Registry), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		WriteTimeout: 30 * time.Second, ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug)}
	n.wg.Go(func() { n.serve("gRPC", func() error { return n.grpc.Serve(n.mux.grpc) }) })
	n.wg.Go(func() { n.serve("HTTP", func() error { return n.http.Serve(n.mux.http) }) })
	n.wg.Go(func() { n.watchHealth(ctx) })
	n.wg.Go(func() { n.upkeep(ctx, creds) })
	close(n.open)
	return nil
}

func (n *Node) serve(what string, f func() error) {
	err := f()
	if err == nil || n.closing.Load() || errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return
	}
	n.failed <- fmt.Errorf("serve %s: %w", what, err)
}

// watchHealth keeps gRPC's health service in step with health.
func (n *Node) watchHealth(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		changed := n.raft.Changed()
		status := healthpb.HealthCheckResponse_SERVING
		if n.health() != "" {
			status = healthpb.HealthCheckResponse_NOT_SERVING
		}
		n.grpcUp.SetServingStatus("", status)
		select {
		case <-tick.C:
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
