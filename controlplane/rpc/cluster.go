package rpc

import (
	"context"
	"encoding/base64"
	"slices"
	"sync"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/internal/rpcerr"
	"bmc/internal/version"
	"bmc/metal"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Bounds of what the cluster's calls wait for and hand out.
const (
	peerWait        = 2 * time.Second
	successorWait   = time.Second
	defaultJoinLife = time.Hour
	maxJoinLife     = 7 * 24 * time.Hour
	defaultUserLife = 90 * 24 * time.Hour
	maxUserLife     = 2 * 366 * 24 * time.Hour
)

type cluster struct {
	bmcv1.UnimplementedClusterServer
	*API
	removing sync.Mutex // held by who removes a node
}

// Status is this node's word, without asking a leader: it must answer when
// there is none.
func (s *cluster) Status(ctx context.Context, _ *bmcv1.StatusRequest) (*bmcv1.StatusResponse, error) {
	v, raft := s.Proposer.StaleView(), s.Raft.Status()
	leaderID, leaderAddr := s.Proposer.Leader()
	hash := v.Hash()
	resp := &bmcv1.StatusResponse{
		ClusterId: s.ClusterID, NodeId: s.NodeID, LeaderId: leaderID, LeaderAddress: leaderAddr, Term: raft.Term,
		Revision: v.Revision(), AppliedIndex: raft.AppliedIndex, StateHash: hash[:],
		Servers: uint32(v.CountServers("")), Available: uint32(v.CountServers(metal.StateAvailable)),
		Active: uint32(v.CountServers(metal.StateActive)), Failed: uint32(v.CountServers(metal.StateFailed)),
		Peers: s.peers(ctx), FeatureLevel: v.Meta().FeatureLevel, Generation: v.Meta().Generation,
	}
	if raft.LeaderContact >= 0 {
		resp.LeaderContact = durationpb.New(raft.LeaderContact)
	}
	resp.RunningOperations = uint32(v.CountOpenOperations())
	for ag := range v.Agents() {
		resp.Agents++
		if s.agentAlive(ag.ID) {
			resp.AgentsAlive++
		}
	}
	for r := range v.Racks() {
		resp.Racks++
		if r.Frozen || r.Stopped() {
			resp.FrozenRacks++
		}
	}
	return resp, nil
}

func (s *cluster) Peers(ctx context.Context, req *bmcv1.PeersRequest) (*bmcv1.PeersResponse, error) {
	if req.GetLocal() {
		return &bmcv1.PeersResponse{Peers: []*bmcv1.Peer{s.self()}}, nil
	}
	return &bmcv1.PeersResponse{Peers: s.peers(ctx)}, nil
}

// self is this node as it sees itself.
func (s *cluster) self() *bmcv1.Peer {
	v, raft := s.Proposer.StaleView(), s.Raft.Status()
	hash := v.Hash()
	p := &bmcv1.Peer{Id: s.NodeID, Name: s.NodeName, Suffrage: "nonvoter", Leader: s.Proposer.IsLeader(), Alive: true,
		AppliedIndex: raft.AppliedIndex, StateHash: hash[:], Revision: v.Revision(), Software: version.String(), FeatureLevel: fsm.FeatureLevel}
	for _, m := range raft.Members {
		if m.ID == s.NodeID {
			p.Address, p.Suffrage = m.Address, suffrage(m)
		}
	}
	if raft.Hung {
		p.Error = "its log store hangs: it can write nothing, and does not lead until its disk answers"
	}
	return p
}

func suffrage(m RaftMember) string {
	if m.Voter {
		return "voter"
	}
	return "nonvoter"
}

// peers asks every member of the Raft configuration, each for at most 2 s, and for no
// longer than half of the caller's time: what the others say is worth having although
// one says nothing.
func (s *cluster) peers(ctx context.Context) []*bmcv1.Peer {
	members := s.Raft.Status().Members
	v := s.Proposer.StaleView()
	leaderID, _ := s.Proposer.Leader()
	out := make([]*bmcv1.Peer, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		if m.ID == s.NodeID {
			out[i] = s.self()
			continue
		}
		p := &bmcv1.Peer{Id: m.ID, Address: m.Address, Suffrage: suffrage(m)}
		if n, ok := v.Node(m.ID); ok {
			p.Name, p.Software, p.FeatureLevel = n.Name, n.Software, n.FeatureLevel
		}
		out[i] = p
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.ask(ctx, p)
		}()
	}
	wg.Wait()
	for _, p := range out {
		p.Leader = p.GetId() == leaderID
	}
	slices.SortFunc(out, func(a, b *bmcv1.Peer) int { return cmpString(a.GetName()+"/"+a.GetId(), b.GetName()+"/"+b.GetId()) })
	return out
}

// ask fills in what a peer says of itself.
func (s *cluster) ask(ctx context.Context, p *bmcv1.Peer) {
	wait := peerWait
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(end)/2)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	conn, err := s.API.Peers.Conn(p.GetAddress())
	if err == nil {
		var resp *bmcv1.PeersResponse
		if resp, err = bmcv1.NewClusterClient(conn).Peers(ctx, &bmcv1.PeersRequest{Local: true}); err == nil && len(resp.GetPeers()) == 1 {
			got := resp.GetPeers()[0]
			p.Alive, p.AppliedIndex, p.StateHash = true, got.GetAppliedIndex(), got.GetStateHash()
			p.Revision, p.Software, p.FeatureLevel = got.GetRevision(), got.GetSoftware(), got.GetFeatureLevel()
			p.Error = got.GetError()
			return
		}
	}
	if e, ok := rpcerr.Decode(err); ok {
		p.Error, p.Refuses = e.Message, e.Message == errNoNode(s.NodeID).Message
	} else {
		p.Error = "does not answer (" + status.Code(err).String() + ")"
	}
}

func (s *cluster) CreateJoinToken(ctx context.Context, req *bmcv1.CreateJoinTokenRequest) (*bmcv1.CreateJoinTokenResponse, error) {
	kind := "join-" + req.GetRole()
	if kind != kindJoinNode && kind != kindJoinAgent {
		return nil, metal.Invalid("role", "must be node or agent, not %q", req.GetRole()).WithHint("bmc cluster join-token --role agent --rack RACK")
	}
	life := defaultJoinLife
	if d := req.GetExpiresIn(); d != nil && d.AsDuration() != 0 {
		life = d.AsDuration()
	}
	if life < 0 || life > maxJoinLife {
		return nil, metal.Invalid("expires_in", "must be at most 7 days")
	}
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	racks, err := joinRacks(v, kind, req.GetRacks())
	if err != nil {
		return nil, err
	}
	tok, secret, err := s.createToken(ctx, req, &logpb.Token{Kind: kind, Name: req.GetRole(), Racks: racks}, life)
	if err != nil {
		return nil, err
	}
	return &bmcv1.CreateJoinTokenResponse{Token: s.joinToken(tok, req.GetRole(), secret), Expires: stamp(tok.Expires)}, nil
}

func joinRacks(v *state.View, kind string, refs []string) ([]string, error) {
	if kind == kindJoinNode {
		if len(refs) > 0 {
			return nil, metal.Invalid("racks", "are for agents; a node has none")
		}
		return nil, nil
	}
	if len(refs) == 0 {
		return nil, metal.Invalid("racks", "an agent's token needs the racks that it may act on").
			WithHint("bmc cluster join-token --role agent --rack RACK")
	}
	var ids []string
	for _, ref := range refs {
		r, err := v.ResolveRack(ref)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ids, r.ID) {
			ids = append(ids, r.ID)
		}
	}
	return ids, nil
}

func (s *cluster) CreateToken(ctx context.Context, req *bmcv1.CreateTokenRequest) (*bmcv1.CreateTokenResponse, error) {
	if err := metal.ValidateName("name", req.GetName()); err != nil {
		return nil, err
	}
	if rank(metal.Role(req.GetRole())) == 0 {
		return nil, metal.Invalid("role", "must be viewer, member, operator or admin, not %q", req.GetRole()).
			WithHint("bmc token create %s --role member", req.GetName())
	}
	life := defaultUserLife
	if d := req.GetExpiresIn(); d != nil && d.AsDuration() != 0 {
		life = d.AsDuration()
	}
	if life < 0 || life > maxUserLife {
		return nil, metal.Invalid("expires_in", "must be at most two years")
	}
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	project, err := s.projectOf(ctx, v, req.GetProject())
	if err != nil {
		return nil, err
	}
	tok, secret, err := s.createToken(ctx, req, &logpb.Token{Kind: "user", Name: req.GetName(), Role: req.GetRole(), Project: project.ID}, life)
	if err != nil {
		return nil, err
	}
	return &bmcv1.CreateTokenResponse{Token: userTokenPrefix + tok.ID + "_" + secret, Expires: stamp(tok.Expires)}, nil
}

// createToken records a token and returns its secret, which nobody stores. The
// secret is derived from the request, so that a retry answers the same one.
func (s *cluster) createToken(ctx context.Context, req mutation, tok *logpb.Token, life time.Duration) (*metal.Token, string, error) {
	id, err := s.newID("tok")
	if err != nil {
		return nil, "", err
	}
	secret := base64.RawURLEncoding.EncodeToString(s.Sealer.MAC([]byte("token secret\x00" + caller(ctx).principal + "\x00" + req.GetRequestId())))
	tok.Id, tok.Hash = id, hashSecret(secret)
	tok.Expires = s.Now().Add(life).UnixNano()
	res, err := s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{Token: tok}}})
	if err != nil {
		return nil, "", err
	}
	if made, ok := s.Proposer.StaleView().Token(res.ID); ok {
		return made, secret, nil
	}
	return nil, "", metal.Errorf(metal.CodeNotFound, "the request was done before; the token that it made is gone")
}

func (s *cluster) WhoAmI(ctx context.Context, _ *bmcv1.WhoAmIRequest) (*bmcv1.WhoAmIResponse, error) {
	id := caller(ctx)
	project := id.project
	if project != "" {
		project = projectName(s.Proposer.StaleView(), project)
	}
	return &bmcv1.WhoAmIResponse{Principal: id.principal, Role: string(id.role), Project: project, Expires: stamp(id.expires)}, nil
}

func (s *cluster) Version(context.Context, *bmcv1.VersionRequest) (*bmcv1.VersionResponse, error) {
	return &bmcv1.VersionResponse{Version: version.Version, Commit: version.Commit}, nil
}
