package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"bmc/agent/boot"
	"bmc/agent/cache"
	"bmc/agent/oob"
	"bmc/agent/operation"
	agentv1 "bmc/api/agent/v1"
	"bmc/imagestore"
	"bmc/internal/pause"
	"bmc/internal/version"
	"bmc/membership"
	"bmc/netboot"
)

const (
	restartPause = 5 * time.Second // of a rack's servers that failed
)

// Agent is one rack agent. New, then Run once.
type Agent struct {
	cfg   Config
	log   *slog.Logger
	seams seams

	id          *identity
	creds       *credentials
	racks       []*rack
	leases      map[string]*lease // by rack name
	sightings   map[string]*sightings
	boots       *boot.Service
	strangers   *boot.Discovery
	ops         *operation.Manager
	pool        *oob.Pool
	nodes       *nodes
	cache       *cache.Cache
	chunks      *chunkGrants
	peers       *peers
	progress    *progress
	tunnelSlots chan struct{}
	admission   *admission
	renamed     chan struct{} // of one slot: the list of nodes may have changed

	ctx context.Context // of Run; owns every goroutine
	wg  sync.WaitGroup
}

// seams are what tests replace.
type seams struct {
	netboot func(netboot.Config) (runner, error)
	listen  func(addr string) (net.Listener, error) // of the Ramdisk service
	fetcher cache.Fetcher                           // nil: the configured image store
	timing  operation.Timing
	sshPort string
	ready   func()        // called when everything runs
	stop    time.Duration // how long the end waits for the disk
}

type runner interface{ Run(context.Context) error }

// New checks nothing but the configuration; Run does the work.
func New(cfg Config, log *slog.Logger) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Agent{cfg: cfg, log: log, admission: newAdmission(), seams: seams{
		netboot: func(c netboot.Config) (runner, error) { return netboot.New(c) },
		listen:  func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) },
		stop:    stopLimit,
	}}, nil
}

// OnReady has f called once everything is set up and listens.
func (a *Agent) OnReady(f func()) { a.seams.ready = f }

// Run joins the cluster if need be and serves until ctx ends, or until the nodes
// say that this agent was removed. Machines are answered from the last run's
// knowledge before any node is.
func (a *Agent) Run(ctx context.Context) error {
	if err := os.MkdirAll(a.cfg.DataDir, 0o700); err != nil {
		return err
	}
	id, err := loadIdentity(a.cfg.DataDir)
	if err == nil && id == nil {
		id, err = join(ctx, a.cfg, a.log)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to stop while it was joining
		}
		return err
	}
	a.id = id
	a.log = a.log.With("agent", id.AgentID)
	if err := a.compose(); err != nil {
		return err
	}
	defer a.peers.close()
	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.ctx = runCtx
	gossip, err := a.openGossip()
	if err != nil {
		a.ops.Close()
		a.cache.Close()
		return err
	}
	server := a.serveRamdisks()
	a.start(gossip)
	if a.seams.ready != nil {
		a.seams.ready()
	}
	err = nil
	select {
	case <-ctx.Done():
	case <-a.admission.removed:
		err = errRemoved
		a.log.Error("the nodes say that this agent is no member: it stops", "err", err)
	}
	return errors.Join(err, a.stop(cancel, server, gossip))
}

// compose builds the parts; nothing runs yet.
func (a *Agent) compose() error {
	var err error
	if a.creds, err = newCredentials(a.id); err != nil {
		return err
	}
	if err := a.openCache(); err != nil {
		return err
	}
	if a.chunks, err = newChunkGrants(a.cfg.DataDir, a.cfg.Racks, a.cache.Keep); err != nil {
		return err
	}
	a.pool, a.progress = oob.NewPool(), newProgress()
	a.tunnelSlots, a.renamed = make(chan struct{}, tunnelMax), make(chan struct{}, 1)
	a.leases, a.sightings = make(map[string]*lease), make(map[string]*sightings)
	strangers := boot.NewDiscovery(boot.DiscoveryConfig{CAPEM: a.creds.caPEM(), Endpoint: a.endpointOf, Lend: a.lendAddress,
		Report: a.reportDiscovered, Now: time.Now, Log: a.log})
	a.strangers = strangers
	a.boots = boot.New(boot.Config{Discovery: strangers, CAPEM: a.creds.caPEM(), Endpoint: a.endpoint, Agents: a.agentsOf, Issue: a.issue, Waits: a.waits, Over: a.over, Renew: a.renewFor,
		PeerServer: a.peerServer, Log: a.log})
	dir := filepath.Join(a.cfg.DataDir, "racks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, conf := range a.cfg.Racks {
		r, err := openRack(conf, filepath.Join(dir, conf.Name+".json"), a.boots)
		if err != nil {
			return fmt.Errorf("boot decisions of rack %s: %w", conf.Name, err)
		}
		r.strangers = strangers
		a.racks = append(a.racks, r)
		r.lease = newLease(r, a.endpointIn(conf), a.log)
		a.leases[conf.Name], a.sightings[conf.Name] = r.lease, newSightings()
	}
	a.nodes = &nodes{creds: a.creds, log: a.log, added: a.follows}
	a.ops, err = operation.NewManager(filepath.Join(a.cfg.DataDir, "journal"), a.deps())
	return err
}

func (a *Agent) openCache() error {
	fetcher := a.seams.fetcher
	if fetcher == nil {
		store, err := imagestore.Open(a.cfg.ImageStore)
		if err != nil {
			return err
		}
		fetcher = store
	}
	a.peers = newPeers(a.id.AgentID, a.creds, a.log)
	var err error
	a.cache, err = cache.Open(cache.Config{
		Dir: filepath.Join(a.cfg.DataDir, "cache"), MaxBytes: int64(a.cfg.Cache.MaxBytes), Store: fetcher,
		StoreRate: int64(a.cfg.ImageStore.MaxRate), Self: a.id.AgentID, Peers: a.otherAgents, Log: a.log,
	})
	return err
}

// start launches what runs until Run's context ends.
func (a *Agent) start(gossip *membership.Membership) {
	a.nodes.update(slices.Concat(a.id.Nodes, a.cfg.Nodes, loadNodes(a.cfg.DataDir)))
	for _, r := range a.racks {
		a.wg.Go(func() { a.keepSaved(a.ctx, r) })
		l := a.leases[r.conf.Name]
		a.wg.Go(func() { a.closeSessions(a.ctx, l) })
		a.wg.Go(func() { a.reconcile(a.ctx, r, l) })
		l.serves, l.unfit = a.servedRamdisk, a.ops.Unfit
		a.wg.Go(func() { l.run(a.ctx, a.nodes) })
		w := &warmWatch{agent: a, rack: r, lease: l, now: time.Now}
		a.wg.Go(func() { w.run(a.ctx) })
		a.wg.Go(func() { a.watts(a.ctx, r, l) })
		o := &observer{agent: a, rack: r, lease: l}
		a.wg.Go(func() { o.run(a.ctx) })
	}
	for _, l := range a.listeners() {
		a.wg.Go(func() { a.answer(a.ctx, l) })
	}
	a.wg.Go(func() { a.progress.run(a.ctx, a.nodes) })
	a.wg.Go(func() { a.reassign(a.ctx) })
	a.wg.Go(func() { a.askStandings(a.ctx) })
	a.wg.Go(func() { a.strangers.Run(a.ctx) })
	a.wg.Go(func() { a.renewCertificate(a.ctx) })
	a.wg.Go(func() { a.discover(a.ctx, gossip) })
	a.log.Info("agent runs", "version", version.String(), "racks", len(a.racks))
}

// follows begins what every node gets: a stream for each rack, and one for
// tunnels.
func (a *Agent) follows(n *node) {
	for _, r := range a.racks {
		a.wg.Go(func() {
			ctx, cancel := n.while(a.ctx)
			defer cancel()
			a.watch(ctx, n, r)
		})
	}
	a.wg.Go(func() {
		ctx, cancel := n.while(a.ctx)
		defer cancel()
		a.tunnels(ctx, n)
	})
}

func (a *Agent) chunkHandler() http.Handler {
	return a.cache.Handler(a.chunks.signer, a.chunks.allowed, a.log)
}

// serveRamdisks starts the Ramdisk service on every address.
func (a *Agent) serveRamdisks() *grpc.Server {
	server := grpc.NewServer(
		grpc.Creds(grpccreds.NewTLS(a.creds.server())),
		grpc.ConnectionTimeout(15*time.Second),
		grpc.MaxRecvMsgSize(1<<20), grpc.MaxConcurrentStreams(64),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	agentv1.RegisterRamdiskServer(server, a.boots)
	agentv1.RegisterPeersServer(server, &peerService{cluster: a.creds.cluster, cache: a.cache, racks: a.racks})
	for _, l := range a.listeners() {
		addr := net.JoinHostPort(l.conf.addr().String(), strconv.Itoa(a.cfg.TLSPort))
		a.wg.Go(func() { a.serveOn(server, addr) })
	}
	return server
}

func (a *Agent) serveOn(server *grpc.Server, addr string) {
	for {
		lis, err := a.seams.listen(addr)
		if err == nil {
			err = server.Serve(lis)
		}
		if err == nil || errors.Is(err, grpc.ErrServerStopped) || a.ctx.Err() != nil {
			return
		}
		a.log.Error("Ramdisk service is down", "addr", addr, "err", err)
		if pause.For(a.ctx, restartPause) != nil {
			return
		}
	}
}
