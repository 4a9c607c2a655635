package rpc

import (
	"cmp"
	"context"
	"slices"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/internal/pause"
	"bmc/metal"
)

// node finds a control-plane node by name or ID.
func findNode(v *state.View, ref string) (*metal.Node, error) {
	if n, ok := v.Node(ref); ok {
		return n, nil
	}
	if n, ok := v.NodeByName(ref); ok && ref != "" {
		return n, nil
	}
	return nil, metal.Errorf(metal.CodeNotFound, "there is no control-plane node %q", ref).WithHint("bmc cluster peers")
}

// RemoveNode takes a node out for good. Its row goes first: from then on its
// certificate opens nothing, and the leader's loop finishes what is interrupted
// here.
func (s *cluster) RemoveNode(ctx context.Context, req *bmcv1.RemoveNodeRequest) (*bmcv1.RemoveNodeResponse, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	if done, err := s.replayed(ctx, v, req); done != nil || err != nil {
		return &bmcv1.RemoveNodeResponse{}, err
	}
	n, err := findNode(v, req.GetRef())
	if err != nil {
		return nil, err
	}
	// Of two at once the second finds the group without the first.
	s.removing.Lock()
	defer s.removing.Unlock()
	if err := s.mayRemove(ctx, n, req.GetForce()); err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_RemoveNode{RemoveNode: &logpb.RemoveNode{NodeId: n.ID}}}); err != nil {
		return nil, err
	}
	if err := s.Raft.RemoveServer(ctx, n.ID); err != nil {
		s.Log.Warn("a removed node is still in raft's configuration; the leader tries again", "node", n.ID, "err", err)
	}
	return &bmcv1.RemoveNodeResponse{}, nil
}

// mayRemove keeps a cluster from losing its quorum by mistake. Force is for nodes
// that answer the leader's log, whatever their API does: without a majority of those
// that are left the removal itself could not be committed.
func (s *cluster) mayRemove(ctx context.Context, n *metal.Node, force bool) error {
	voters, alive, isVoter, dead := 0, 0, false, ""
	for _, p := range s.peers(ctx) {
		if p.GetSuffrage() != "voter" {
			continue
		}
		if p.GetId() == n.ID {
			isVoter = true
			continue
		}
		voters++
		if p.GetAlive() && p.GetError() == "" {
			alive++
		} else {
			dead = p.GetName()
		}
	}
	switch {
	case !isVoter:
		return nil
	case voters == 0:
		return metal.Errorf(metal.CodeWrongState, "%s is the only voter: without it there is no cluster. Let another node join first", n.Name).
			WithHint("bmc cluster join-token --role node")
	case n.ID == s.NodeID:
		return metal.Errorf(metal.CodeWrongState, "%s leads: hand leadership on first", n.Name).WithHint("bmc cluster transfer-leader")
	case alive < voters/2+1 && !force:
		return metal.Errorf(metal.CodeWrongState, "without %s, %d of %d voters answer: nothing could be changed any more. Start the others first, or remove those first if they are gone for good", n.Name, alive, voters).
			WithHint("bmc cluster remove-node %s", dead)
	}
	return s.Raft.Spare(ctx, n.ID)
}

// RemoveAgent revokes an agent. Its streams end, its certificate opens nothing.
func (s *cluster) RemoveAgent(ctx context.Context, req *bmcv1.RemoveAgentRequest) (*bmcv1.RemoveAgentResponse, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	if done, err := s.replayed(ctx, v, req); done != nil || err != nil {
		return &bmcv1.RemoveAgentResponse{}, err
	}
	for ag := range v.Agents() {
		if ag.ID == req.GetRef() || ag.Name == req.GetRef() {
			_, err := s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_RemoveAgent{RemoveAgent: &logpb.RemoveAgent{AgentId: ag.ID}}})
			return &bmcv1.RemoveAgentResponse{}, err
		}
	}
	return nil, metal.Errorf(metal.CodeNotFound, "there is no agent %q", req.GetRef()).WithHint("bmc agent list")
}

// TransferLeader hands leadership on. The answer comes once the other leads.
func (s *cluster) TransferLeader(ctx context.Context, req *bmcv1.TransferLeaderRequest) (*bmcv1.TransferLeaderResponse, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	id := ""
	if req.GetRef() != "" {
		n, err := findNode(v, req.GetRef())
		if err != nil {
			return nil, err
		}
		id = n.ID
	}
	if id != s.NodeID {
		if id, err = s.successor(ctx, id); err != nil {
			return nil, err
		}
		if err := s.Raft.TransferLeadership(ctx, id); err != nil {
			return nil, err
		}
	}
	now, _ := s.Proposer.Leader()
	for now == "" || now == s.NodeID && id != s.NodeID {
		if err := pause.For(ctx, leaderPoll); err != nil {
			return nil, err
		}
		now, _ = s.Proposer.Leader()
	}
	out := &bmcv1.TransferLeaderResponse{LeaderId: now}
	if n, ok := v.Node(now); ok {
		out.LeaderName = n.Name
	}
	return out, nil
}

// successor is the voter to hand leadership to: the one asked for, or for "" the
// most up-to-date of those that answer; "" where there is no other voter. A node
// that is dead, stopped or cannot write is refused here: once a transfer has begun,
// raft takes no write until the target leads or an election timeout has passed.
func (s *cluster) successor(ctx context.Context, id string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, successorWait)
	defer cancel()
	best, others := (*bmcv1.Peer)(nil), 0
	for _, p := range s.peers(ctx) {
		if p.GetId() == s.NodeID || p.GetSuffrage() != "voter" && p.GetId() != id {
			continue
		}
		others++
		name := cmp.Or(p.GetName(), p.GetId())
		switch well := p.GetAlive() && p.GetError() == ""; {
		case p.GetId() == id && !p.GetAlive():
			return "", metal.Errorf(metal.CodeWrongState, "%s does not answer: leadership stays where it is", name).WithHint("bmc cluster peers")
		case p.GetId() == id && !well:
			return "", metal.Errorf(metal.CodeWrongState, "%s cannot lead: %s", name, p.GetError()).WithHint("bmc cluster peers")
		case well && (best == nil || p.GetAppliedIndex() > best.GetAppliedIndex()):
			best = p
		}
	}
	if id != "" || others == 0 {
		return id, nil
	}
	if best == nil {
		return "", metal.Errorf(metal.CodeWrongState, "no other voter answers: leadership stays where it is").WithHint("bmc cluster peers")
	}
	return best.GetId(), nil
}

// RaiseFeatureLevel lets the log use what every node's software knows.
func (s *cluster) RaiseFeatureLevel(ctx context.Context, req *bmcv1.RaiseFeatureLevelRequest) (*bmcv1.RaiseFeatureLevelResponse, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	level := req.GetLevel()
	if level == 0 {
		level = fsm.FeatureLevel
		for n := range v.Nodes() {
			level = min(level, n.FeatureLevel)
		}
		if level <= v.Meta().FeatureLevel {
			return &bmcv1.RaiseFeatureLevelResponse{Level: v.Meta().FeatureLevel}, nil
		}
	}
	if _, err := s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_RaiseFeatureLevel{RaiseFeatureLevel: &logpb.RaiseFeatureLevel{Level: level}}}); err != nil {
		return nil, err
	}
	return &bmcv1.RaiseFeatureLevelResponse{Level: level}, nil
}

func (s *cluster) ListTokens(ctx context.Context, req *bmcv1.ListTokensRequest) (*bmcv1.ListTokensResponse, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	resp := &bmcv1.ListTokensResponse{}
	for t := range v.Tokens() {
		out := &bmcv1.Token{Id: t.ID, Kind: t.Kind, Name: t.Name, Role: string(t.Role), Project: projectName(v, t.Project),
			Created: stamp(t.Created), Expires: stamp(t.Expires), Used: t.Used}
		for _, id := range t.Racks {
			out.Racks = append(out.Racks, rackName(v, id))
		}
		resp.Tokens = append(resp.Tokens, out)
	}
	return resp, nil
}

// lastAdmin says whether nobody could administer the cluster without a token.
func (s *cluster) lastAdmin(v *state.View, id string) bool {
	admin := func(t *metal.Token) bool {
		return t.Kind == "user" && t.Role == metal.RoleAdmin && (t.Expires.IsZero() || s.Now().Before(t.Expires))
	}
	if t, ok := v.Token(id); !ok || !admin(t) {
		return false
	}
	for t := range v.Tokens() {
		if t.ID != id && admin(t) {
			return false
		}
	}
	return true
}

// RevokeToken ends a token at once. A name that several tokens have is refused,
// and so is the last administrator's.
func (s *cluster) RevokeToken(ctx context.Context, req *bmcv1.RevokeTokenRequest) (*bmcv1.RevokeTokenResponse, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	if done, err := s.replayed(ctx, v, req); done != nil || err != nil {
		return &bmcv1.RevokeTokenResponse{}, err
	}
	var found []string
	for t := range v.Tokens() {
		if t.ID == req.GetId() {
			found = []string{t.ID}
			break
		}
		if t.Name == req.GetId() && req.GetId() != "" {
			found = append(found, t.ID)
		}
	}
	switch len(found) {
	case 0:
		return nil, metal.Errorf(metal.CodeNotFound, "there is no token %q", req.GetId()).WithHint("bmc token list")
	case 1:
	default:
		slices.Sort(found)
		return nil, metal.Errorf(metal.CodeAmbiguous, "%d tokens are named %s: give an ID", len(found), req.GetId()).WithHint("bmc token revoke %s", found[0])
	}
	if s.lastAdmin(v, found[0]) {
		return nil, metal.Errorf(metal.CodeWrongState, "%s is the last administrator's token: without it nobody could change the cluster. Make another first", found[0]).
			WithHint("bmc token create NAME --role admin")
	}
	_, err = s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_RevokeToken{RevokeToken: &logpb.RevokeToken{TokenId: found[0]}}})
	return &bmcv1.RevokeTokenResponse{}, err
}

// RegisterNode records what the calling node is. Its raft address follows.
func (s *nodes) RegisterNode(ctx context.Context, req *agentv1.RegisterNodeRequest) (*agentv1.RegisterNodeResponse, error) {
	if !s.Proposer.IsLeader() {
		return nil, metal.Errorf(metal.CodeNoLeader, "node %s is not the leader", s.NodeID)
	}
	id := caller(ctx).node
	v := s.Proposer.StaleView()
	n, ok := v.Node(id)
	if !ok {
		return nil, errNoNode(id)
	}
	cmd := &logpb.Command{Command: &logpb.Command_RegisterNode{RegisterNode: &logpb.RegisterNode{NodeId: id, Address: req.GetAddress(),
		FeatureLevel: req.GetFeatureLevel(), Software: req.GetSoftware()}}}
	if v.Meta().FeatureLevel < 2 {
		cmd = &logpb.Command{Command: &logpb.Command_RegisterFeatureLevel{RegisterFeatureLevel: &logpb.RegisterFeatureLevel{
			NodeId: id, Level: req.GetFeatureLevel()}}}
	} else if n.Address != req.GetAddress() {
		if err := metal.ValidateHostPort("address", req.GetAddress(), true); err != nil {
			return nil, err
		}
		if err := s.Raft.Move(ctx, id, req.GetAddress()); err != nil {
			return nil, err
		}
	}
	_, err := s.proposeAs(ctx, caller(ctx).principal, "", nil, cmd)
	return &agentv1.RegisterNodeResponse{}, err
}

// StateHash answers what this node's state hashed to at a revision.
func (s *nodes) StateHash(_ context.Context, req *agentv1.StateHashRequest) (*agentv1.StateHashResponse, error) {
	m, ok := s.Hashes(req.GetRevision())
	if !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "the state's hash at revision %d is not remembered here", req.GetRevision())
	}
	return &agentv1.StateHashResponse{Revision: m.Revision, Hash: m.Hash[:]}, nil
}
