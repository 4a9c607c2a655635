package fsm

import (
	"crypto/subtle"
	"slices"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// Kinds of tokens.
const (
	tokenUser      = "user"
	tokenJoinNode  = "join-node"
	tokenJoinAgent = "join-agent"
)

func (a *applier) initCluster(m *logpb.InitCluster, r *Result) *metal.Error {
	a.target = m.GetClusterId()
	if a.Meta().ClusterID != "" {
		return metal.Errorf(metal.CodeWrongState, "the cluster has been initialised already")
	}
	if m.GetClusterId() == "" {
		return metal.Invalid("cluster_id", "is empty")
	}
	a.SetMeta(m.GetClusterId(), 0, FeatureLevel)
	if err := a.createProject(&logpb.CreateProject{Project: m.GetProject()}, r); err != nil {
		return err
	}
	if t := m.GetAdmin(); t != nil {
		if err := a.createToken(&logpb.CreateToken{Token: t}, new(Result)); err != nil {
			return err
		}
	}
	if n := m.GetNode(); n != nil {
		if err := a.putNode(n); err != nil {
			return err
		}
	}
	a.note("cluster.initialised", m.GetClusterId(), "", "the cluster was initialised")
	a.target, r.Value = m.GetClusterId(), nil
	return nil
}

func (a *applier) createProject(m *logpb.CreateProject, r *Result) *metal.Error {
	p := m.GetProject().Metal()
	a.target = p.Name
	if err := metal.ValidateName("name", p.Name); err != nil {
		return failure(err)
	}
	if err := a.freshID("project", p.ID, func(id string) bool { _, ok := a.Project(id); return ok }); err != nil {
		return err
	}
	if _, taken := a.ProjectByName(p.Name); taken {
		return metal.Errorf(metal.CodeNameTaken, "there is a project %s already", p.Name)
	}
	if p.MaxServers < 0 {
		return metal.Invalid("max_servers", "is negative")
	}
	p.Created = a.now
	a.PutProject(p)
	a.note("project.created", p.Name, p.ID, "project "+p.Name+" was created")
	r.ID, r.Value = p.ID, p
	return nil
}

func (a *applier) createToken(m *logpb.CreateToken, r *Result) *metal.Error {
	t := m.GetToken().Metal()
	a.target = t.Name
	if err := a.freshID("token", t.ID, func(id string) bool { _, ok := a.Token(id); return ok }); err != nil {
		return err
	}
	if len(t.Hash) != 32 {
		return metal.Invalid("hash", "is not a SHA-256")
	}
	if !t.Expires.IsZero() && !t.Expires.After(a.now) {
		return metal.Invalid("expires", "is not in the future")
	}
	switch t.Kind {
	case tokenUser:
		if err := metal.ValidateRole("role", t.Role); err != nil {
			return failure(err)
		}
		if _, ok := a.Project(t.Project); t.Project != "" && !ok {
			return metal.Errorf(metal.CodeNotFound, "there is no project %q", t.Project)
		}
	case tokenJoinNode:
	case tokenJoinAgent:
		if len(t.Racks) == 0 {
			return metal.Invalid("racks", "is empty: say which racks the agent may serve").WithHint("bmc rack list")
		}
		for _, id := range t.Racks {
			if _, ok := a.Rack(id); !ok {
				return metal.Errorf(metal.CodeNotFound, "there is no rack %q", id).WithHint("bmc rack list")
			}
		}
	default:
		return metal.Invalid("kind", "%q is not user, join-node or join-agent", t.Kind)
	}
	t.Created, t.Used = a.now, false
	a.PutToken(t)
	a.note("token.created", t.Name, t.Project, "a token of kind "+t.Kind+" was made")
	r.ID, r.Value = t.ID, t
	return nil
}

func (a *applier) revokeToken(m *logpb.RevokeToken, r *Result) *metal.Error {
	t, ok := a.Token(m.GetTokenId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no token %q", m.GetTokenId())
	}
	a.target = t.Name
	a.DeleteToken(t.ID)
	a.note("token.revoked", t.Name, t.Project, "a token was revoked")
	r.ID = t.ID
	return nil
}

// spend uses a join token up.
func (a *applier) spend(id string, hash []byte, kind string) (*metal.Token, *metal.Error) {
	t, ok := a.Token(id)
	switch {
	case !ok || t.Kind != kind || subtle.ConstantTimeCompare(t.Hash, hash) != 1:
		return nil, metal.Errorf(metal.CodeUnauthenticated, "the join token is not valid").WithHint("bmc cluster join-token")
	case t.Used:
		return nil, metal.Errorf(metal.CodeUnauthenticated, "the join token has been used: each works once").WithHint("bmc cluster join-token")
	case !t.Expires.IsZero() && !a.now.Before(t.Expires):
		return nil, metal.Errorf(metal.CodeTokenExpired, "the join token has expired").WithHint("bmc cluster join-token")
	}
	spent := *t
	spent.Used = true
	a.PutToken(&spent)
	return &spent, nil
}

func (a *applier) joinAgent(m *logpb.JoinAgent, r *Result) *metal.Error {
	ag := m.GetAgent().Metal()
	a.target = ag.Name
	if err := metal.ValidateName("name", ag.Name); err != nil {
		return failure(err)
	}
	if err := a.freshID("agent", ag.ID, func(id string) bool { _, ok := a.Agent(id); return ok }); err != nil {
		return err
	}
	t, err := a.spend(m.GetTokenId(), m.GetTokenHash(), tokenJoinAgent)
	if err != nil {
		return err
	}
	// An agent that was installed anew has a new identity and the old name. A
	// token for one rack must not take away the agent of another.
	if old, ok := a.AgentByName(ag.Name); ok {
		if slices.ContainsFunc(old.Racks, func(id string) bool { return !slices.Contains(t.Racks, id) }) {
			return metal.Errorf(metal.CodeNameTaken, "there is an agent %s already, and it serves racks that the token is not for", ag.Name).WithHint("bmc agent list")
		}
		a.dropAgent(old)
	}
	ag.Racks, ag.Joined = slices.Clone(t.Racks), a.now
	a.PutAgent(ag)
	a.note("agent.joined", ag.Name, "", "agent "+ag.Name+" joined")
	r.ID, r.Value = ag.ID, ag
	return nil
}

func (a *applier) removeAgent(m *logpb.RemoveAgent, r *Result) *metal.Error {
	ag, ok := a.Agent(m.GetAgentId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no agent %q", m.GetAgentId())
	}
	a.target = ag.Name
	a.dropAgent(ag)
	a.note("agent.removed", ag.Name, "", "agent "+ag.Name+" was removed")
	r.ID = ag.ID
	return nil
}

// dropAgent takes an agent's leases away with it.
func (a *applier) dropAgent(ag *metal.Agent) {
	for _, id := range ag.Racks {
		if rack, ok := a.Rack(id); ok && rack.Lease.Agent == ag.ID {
			a.lease(rack, "")
		}
	}
	a.DeleteAgent(ag.ID)
}

func (a *applier) joinNode(m *logpb.JoinNode, r *Result) *metal.Error {
	a.target = m.GetNode().GetName()
	if _, err := a.spend(m.GetTokenId(), m.GetTokenHash(), tokenJoinNode); err != nil {
		return err
	}
	if err := a.putNode(m.GetNode()); err != nil {
		return err
	}
	n, _ := a.Node(m.GetNode().GetId())
	a.note("node.joined", n.Name, "", "control-plane node "+n.Name+" joined")
	r.ID, r.Value = n.ID, n
	return nil
}

func (a *applier) putNode(row *logpb.Node) *metal.Error {
	n := row.Metal()
	if err := metal.ValidateName("name", n.Name); err != nil {
		return failure(err)
	}
	if err := metal.ValidateHostPort("address", n.Address, true); err != nil {
		return failure(err)
	}
	if err := a.freshID("node", n.ID, func(id string) bool { _, ok := a.Node(id); return ok }); err != nil {
		return err
	}
	if _, taken := a.NodeByName(n.Name); taken {
		return metal.Errorf(metal.CodeNameTaken, "there is a node %s already", n.Name).WithHint("bmc cluster peers")
	}
	if n.Joined.IsZero() {
		n.Joined = a.now
	}
	n.FeatureLevel = max(n.FeatureLevel, 1)
	a.PutNode(n)
	return nil
}

func (a *applier) removeNode(m *logpb.RemoveNode, r *Result) *metal.Error {
	n, ok := a.Node(m.GetNodeId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no node %q", m.GetNodeId()).WithHint("bmc cluster peers")
	}
	a.target = n.Name
	a.DeleteNode(n.ID)
	a.note("node.removed", n.Name, "", "control-plane node "+n.Name+" was removed")
	r.ID = n.ID
	return nil
}

func (a *applier) registerFeatureLevel(m *logpb.RegisterFeatureLevel, r *Result) *metal.Error {
	n, ok := a.Node(m.GetNodeId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no node %q", m.GetNodeId())
	}
	a.target, r.ID = n.Name, n.ID
	if m.GetLevel() < a.Meta().FeatureLevel {
		return metal.Errorf(metal.CodeConflict, "node %s knows feature level %d, the cluster is at %d", n.Name, m.GetLevel(), a.Meta().FeatureLevel)
	}
	changed := *n
	changed.FeatureLevel = m.GetLevel()
	a.PutNode(&changed)
	return nil
}

// registerNode records what a node's software knows and where it is reached.
func (a *applier) registerNode(m *logpb.RegisterNode, r *Result) *metal.Error {
	n, ok := a.Node(m.GetNodeId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no node %q", m.GetNodeId())
	}
	a.target, r.ID = n.Name, n.ID
	if m.GetFeatureLevel() < a.Meta().FeatureLevel {
		return metal.Errorf(metal.CodeConflict, "node %s knows feature level %d, the cluster is at %d", n.Name, m.GetFeatureLevel(), a.Meta().FeatureLevel)
	}
	if err := metal.ValidateHostPort("address", m.GetAddress(), true); err != nil {
		return failure(err)
	}
	changed := *n
	changed.FeatureLevel, changed.Address, changed.Software = m.GetFeatureLevel(), m.GetAddress(), shorten(m.GetSoftware())
	if changed.Address != n.Address {
		a.note("node.moved", n.Name, "", "control-plane node "+n.Name+" is at "+changed.Address+" now")
	}
	a.PutNode(&changed)
	return nil
}

func (a *applier) raiseFeatureLevel(m *logpb.RaiseFeatureLevel, _ *Result) *metal.Error {
	meta := a.Meta()
	if m.GetLevel() <= meta.FeatureLevel {
		return metal.Errorf(metal.CodeConflict, "the feature level is %d and only rises", meta.FeatureLevel)
	}
	for n := range a.Nodes() {
		if n.FeatureLevel < m.GetLevel() {
			return metal.Errorf(metal.CodeWrongState, "node %s knows feature level %d only", n.Name, n.FeatureLevel).WithHint("bmc cluster peers")
		}
	}
	a.SetMeta(meta.ClusterID, meta.Generation, m.GetLevel())
	a.note("cluster.feature-level", "", "", "the feature level was raised")
	return nil
}

// raiseGeneration voids what was granted before a restore: the agents may have
// been given more than the backup knows of.
//
// A backup that is restored onto a running cluster is raised before raft gets it,
// and this comes once more through the log, which records who did it. That one
// finds its generation reached, and changes nothing.
func (a *applier) raiseGeneration(m *logpb.RaiseGeneration, _ *Result) *metal.Error {
	meta := a.Meta()
	if meta.FeatureLevel >= BackupLevel && m.GetAtLeast() > 0 && meta.Generation >= m.GetAtLeast() {
		a.target = meta.ClusterID
		return nil
	}
	generation := max(meta.Generation+1, m.GetAtLeast())
	if generation > maxGeneration {
		return metal.Invalid("at_least", "is above %d", uint64(maxGeneration))
	}
	// What is done below is done as the level has it.
	if level := m.GetFeatureLevel(); level > meta.FeatureLevel {
		if level > FeatureLevel || slices.ContainsFunc(m.GetNodes(), func(n *logpb.Node) bool { return n.GetFeatureLevel() < level }) {
			return metal.Invalid("feature_level", "%d is not known by every node", level)
		}
		meta.FeatureLevel = level
		a.note("cluster.feature-level", "", "", "the feature level was raised")
	}
	a.SetMeta(meta.ClusterID, generation, meta.FeatureLevel)
	occupied := map[string]bool{} // one pass over the servers, not one for each rack
	for s := range a.Servers(state.ServerFilter{}) {
		occupied[s.RackID] = true
	}
	for _, rack := range collect(a.Racks()) {
		a.lease(rack, "")
		if meta.FeatureLevel >= 2 && occupied[rack.ID] {
			a.freeze(rack.ID)
		}
	}
	for _, o := range collect(a.OpenOperations("")) {
		a.unassign(o)
	}
	if len(m.GetNodes()) > 0 {
		for _, n := range collect(a.Nodes()) {
			a.DeleteNode(n.ID)
		}
		for _, n := range m.GetNodes() {
			if err := a.putNode(n); err != nil {
				return err
			}
		}
	}
	a.note("cluster.restored", meta.ClusterID, "", "a backup was restored")
	a.ForgetChanges()
	return nil
}
