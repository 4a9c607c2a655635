// Package rpc is the edge of a control-plane node: the user's API, the agents'
// API and what nodes ask of one another. It authenticates, authorizes,
// forwards to the leader, validates what needs no state, mints time and IDs,
// proposes, and turns rows into messages.
package rpc

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// Proposer is the consensus of this node.
type Proposer interface {
	// Propose applies a command; leader only. An error other than NO_LEADER
	// (metal.CodeNoLeader: not applied) means that the outcome is unknown.
	Propose(ctx context.Context, cmd *logpb.Command) (*fsm.Result, error)
	// ProposeIn is Propose; NO_LEADER when this node leads in another term by
	// now. 0: in any.
	ProposeIn(ctx context.Context, term uint64, cmd *logpb.Command) (*fsm.Result, error)
	// LinearizableView answers a View that holds every write acknowledged
	// before the call.
	LinearizableView(ctx context.Context) (*state.View, error)
	// ReadIndex is Raft's, at the leader.
	ReadIndex(ctx context.Context) (uint64, error)
	// StaleView is this replica as it stands.
	StaleView() *state.View
	// WaitView returns a View whose revision is greater than after, or ctx's error.
	WaitView(ctx context.Context, after uint64) (*state.View, error)
	IsLeader() bool
	// LeaderTerm is the term in which this node leads, 0 when it does not.
	LeaderTerm() uint64
	// Leader answers empty strings when none is known.
	Leader() (id, addr string)
}

// PeerIdentity is who a client certificate speaks for.
type PeerIdentity struct {
	Role    string // "node", "agent" or "server"
	ID      string
	KeyHash []byte // SHA-256 of the public key (SPKI)
	Expired bool   // an expired agent may only renew
}

// Authority issues certificates with the cluster's CA key.
type Authority interface {
	// Identify tells who is behind a connection; ok is false without a client
	// certificate of this cluster.
	Identify(cs tls.ConnectionState) (id PeerIdentity, ok bool)
	SignNode(csrDER []byte, nodeID, address string) (certDER []byte, err error)
	SignAgent(csrDER []byte, agentID string) (certDER []byte, err error)
	SignServer(csrDER []byte, serverID string) (certDER []byte, err error)
	CA() []byte // DER
	// JoinSecrets are handed to those who proved a join token.
	JoinSecrets() (JoinSecrets, error)
}

// JoinSecrets is what a new member needs beside its certificate.
type JoinSecrets struct {
	GossipKey []byte // 32 bytes
	Keyring   []byte // JSON; nodes only
	CAKey     []byte // PKCS #8, DER; nodes only
}

// Sealer encrypts secrets under the cluster's keyring.
type Sealer interface {
	Seal(plain []byte, associated string) ([]byte, error)
	Open(sealed []byte, associated string) ([]byte, error)
	// MAC is HMAC-SHA256 under a key that every node has and no client.
	MAC(data []byte) []byte
}

// LeaseRenewer grants racks to agents; leader only.
type LeaseRenewer interface {
	RenewLease(ctx context.Context, agentID, rackID string) (Lease, error)
	// Note remembers for a while where an agent is on a rack's network.
	Note(rackID string, e Endpoint)
	// Agents lists the agents that asked for a rack's lease lately, its holder
	// first; partial: this leader is new, and has not heard all of them yet.
	Agents(r *metal.Rack) (known []Endpoint, partial bool)
}

// Endpoint is where a rack's machines reach one of its agents.
type Endpoint struct {
	Agent    string // ID
	Address  string // on the rack's network
	HTTPPort uint32
	TLSPort  uint32
	Ramdisk  string // version of the one that it serves; "": not known
	Unfit    bool   // it says that it cannot run operations
}

// Lease is the answer to a renewal.
type Lease struct {
	Held       bool
	Generation uint64
	Epoch      uint64
	TTL        time.Duration
	Holder     string // agent ID, when not held
}

// ImageStore holds chunks by the SHA-256 of their stored bytes, in hex.
type ImageStore interface {
	Has(ctx context.Context, digests []string) (missing []string, err error)
	Put(ctx context.Context, digest string, size int64, r io.Reader) error
}

// Membership is what gossip knows: a hint.
type Membership interface {
	// Alive says whether gossip has heard of a node or agent lately.
	Alive(id string) bool
}

// Raft is what the cluster calls show and change of the consensus itself.
type Raft interface {
	Status() RaftStatus
	// Hung says whether the log store is: this node can write nothing.
	Hung() bool
	AddNonvoter(ctx context.Context, nodeID, addr string) error
	// Spare refuses what would cost the group its quorum.
	Spare(ctx context.Context, nodeID string) error
	RemoveServer(ctx context.Context, nodeID string) error
	// Move changes a member's address, not its suffrage.
	Move(ctx context.Context, nodeID, addr string) error
	// TransferLeadership hands on to a voter; "": the most up-to-date.
	TransferLeadership(ctx context.Context, nodeID string) error
	// Restore replaces the whole state by a snapshot of the revision above, if it
	// fits the state to be replaced, then runs then, which proposes RaiseGeneration.
	// The other nodes have no vote until they have caught up. Leader only.
	Restore(ctx context.Context, r io.Reader, size int64, above uint64, fits func(*state.View) error, then func(context.Context) error) error
	// LeaderGone says whether this node finds a term's leader gone.
	LeaderGone(ctx context.Context, leaderID string, term uint64) LeaderWord
}

// LeaderWord is a node's word about a term's leader.
type LeaderWord struct {
	Gone                bool
	LastTerm, LastIndex uint64 // the end of that node's log
}

// RaftStatus is this node's view of the consensus.
type RaftStatus struct {
	Term          uint64
	AppliedIndex  uint64
	LeaderContact time.Duration // since this node heard from the leader; 0 at the leader, negative: never
	Members       []RaftMember
	Hung          bool // its log store: this node can write nothing
}

// RaftMember is one entry of the Raft configuration.
type RaftMember struct {
	ID, Address string
	Voter       bool
}

// Deps is all that the API stands on. Fields without a comment are required.
type Deps struct {
	ClusterID  string
	NodeID     string
	NodeName   string
	Proposer   Proposer
	Raft       Raft
	Authority  Authority
	Sealer     Sealer
	Leases     LeaseRenewer
	Images     ImageStore // nil: none is configured
	Membership Membership // nil: nobody is said to be alive
	Peers      *Peers
	Hashes     func(revision uint64) (fsm.HashMark, bool) // fsm.FSM.StateHashAt
	Log        *slog.Logger
	Now        func() time.Time // nil: time.Now
	Rand       io.Reader        // nil: crypto/rand
	LeaderWait time.Duration    // how long a call waits for a leader before the client asks another node; 0: 3 s
	SpoolDir   string           // holds snapshots while they are checked; "": the system's
}

// API serves every service of a node. Make one with New.
type API struct {
	Deps
	progress *progressHub
	watts    *wattsHub
	tunnels  *tunnelSet
	streams  openStreams

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // what spawn started

	mu         sync.Mutex // orders spawn and Close
	lastLeader string     // address that was forwarded to last
}

// New checks the dependencies. The result owns goroutines until Close.
func New(d Deps) (*API, error) {
	if d.Proposer == nil || d.Raft == nil || d.Authority == nil || d.Sealer == nil || d.Leases == nil || d.Peers == nil || d.Hashes == nil {
		return nil, errors.New("rpc: Proposer, Raft, Authority, Sealer, Leases, Peers and Hashes are required")
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Rand == nil {
		d.Rand = rand.Reader
	}
	if d.LeaderWait == 0 {
		d.LeaderWait = 3 * time.Second
	}
	a := &API{Deps: d, progress: newProgressHub(), watts: newWattsHub(), tunnels: newTunnelSet(),
		streams: openStreams{open: map[*openStream]struct{}{}}}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.spawn(a.revoke)
	return a, nil
}

// Close ends streams and waits for the API's goroutines. Call it before the
// gRPC server's GracefulStop, which would wait for open watches.
func (a *API) Close() {
	a.mu.Lock()
	a.cancel()
	a.mu.Unlock()
	a.wg.Wait()
}

// spawn starts a goroutine that Close waits for; it must end with its stream.
// It answers false, and starts nothing, once Close has begun.
func (a *API) spawn(f func()) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx.Err() != nil {
		return false
	}
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		f()
	}()
	return true
}

// ServerOptions are the interceptors and limits that Register's services need.
func (a *API) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(a.unary),
		grpc.ChainStreamInterceptor(a.stream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 4 * time.Second, PermitWithoutStream: true}),
	}
}

// maxMessage bounds one message: a manifest of a large image, an inventory
// file, a page of servers.
const maxMessage = 16 << 20

// window is how much a caller may send before this node has read it, in bytes, of
// one call and of one connection. A size that is set also spares the pings by which
// gRPC would measure one, at nearly every call.
const window = 1 << 20

// streamWorkers are goroutines that run calls one after the other, so that their
// stacks have grown already; calls that find none free get one of their own.
const streamWorkers = 256

// Register adds the services to a server made with ServerOptions.
func (a *API) Register(s grpc.ServiceRegistrar) {
	bmcv1.RegisterServersServer(s, &servers{API: a})
	bmcv1.RegisterInventoryServer(s, &inventory{API: a})
	bmcv1.RegisterOperationsServer(s, &operations{API: a})
	bmcv1.RegisterEventsServer(s, &events{API: a})
	bmcv1.RegisterImagesServer(s, &images{API: a})
	bmcv1.RegisterKeysServer(s, &keys{API: a})
	bmcv1.RegisterClusterServer(s, &cluster{API: a})
	agentv1.RegisterEnrollmentServer(s, &enrollment{API: a})
	agentv1.RegisterControlServer(s, &control{API: a})
	agentv1.RegisterNodesServer(s, &nodes{API: a})
}
