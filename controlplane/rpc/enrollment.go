package rpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/internal/jointoken"
	"bmc/metal"

	"google.golang.org/protobuf/proto"
)

// Kinds of join tokens.
const (
	kindJoinNode  = "join-node"
	kindJoinAgent = "join-agent"
)

// maxSeeds is how many nodes a join token names; gossip tells of the others.
const maxSeeds = 16

// joinToken writes what a newcomer needs to find and trust the cluster.
func (a *API) joinToken(tok *metal.Token, role, secret string) string {
	sum := sha256.Sum256(a.Authority.CA())
	seeds := a.nodeAddresses(a.Proposer.StaleView())
	return jointoken.Token{Role: role, Seeds: seeds[:min(len(seeds), maxSeeds)], CASHA256: hex.EncodeToString(sum[:]),
		ID: tok.ID, Secret: secret, Expires: tok.Expires.UTC()}.String()
}

func (a *API) nodeAddresses(v *state.View) []string {
	var out []string
	for n := range v.Nodes() {
		out = append(out, n.Address)
	}
	return out
}

type enrollment struct {
	agentv1.UnimplementedEnrollmentServer
	*API
}

// spend checks a join token before it is spent; Apply checks again and spends it.
func (s *enrollment) spend(ctx context.Context, secret, kind string) (*metal.Token, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	hash := hashSecret(secret)
	var tok *metal.Token
	for t := range v.Tokens() {
		if t.Kind != "user" && subtle.ConstantTimeCompare(t.Hash, hash) == 1 {
			tok = t
		}
	}
	again := "bmc cluster join-token --role agent --rack RACK"
	if kind == kindJoinNode {
		again = "bmc cluster join-token --role node"
	}
	switch {
	case tok == nil:
		return nil, metal.Errorf(metal.CodeUnauthenticated, "the join token is not valid").WithHint("%s", again)
	case tok.Kind != kind:
		return nil, metal.Errorf(metal.CodeDenied, "the token is for a %s", tok.Kind[len("join-"):]).WithHint("%s", again)
	case !s.Now().Before(tok.Expires):
		return nil, metal.Errorf(metal.CodeTokenExpired, "the join token expired at %s", tok.Expires.UTC().Format(time.RFC3339)).WithHint("%s", again)
	}
	return tok, nil
}

// join proposes with a request ID made of the token and the CSR: the same
// newcomer may ask again when the answer was lost, nobody else may.
func (s *enrollment) join(ctx context.Context, tok *metal.Token, csr []byte, req proto.Message, cmd *logpb.Command) (*fsm.Result, error) {
	sum := sha256.Sum256(append([]byte(tok.ID+"\x00"), csr...))
	mac, err := s.requestMAC(req)
	if err != nil {
		return nil, err
	}
	res, err := s.proposeAs(ctx, tok.Kind+":"+tok.ID, uuidV7(tok.Created, [10]byte(sum[:10])), mac, cmd)
	if metal.CodeOf(err) == metal.CodeRequestTooOld { // the token is older than what is remembered; it still works once
		return s.proposeAs(ctx, tok.Kind+":"+tok.ID, "", nil, cmd)
	}
	return res, err
}

// checkCSR refuses a request that its sender has not signed.
func checkCSR(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, metal.Invalid("csr", "is no signed PKCS #10 request in DER")
	}
	return csr, nil
}

func (s *enrollment) JoinAgent(ctx context.Context, req *agentv1.JoinAgentRequest) (*agentv1.JoinAgentResponse, error) {
	if err := metal.ValidateName("name", req.GetName()); err != nil {
		return nil, err
	}
	if _, err := checkCSR(req.GetCsr()); err != nil {
		return nil, err
	}
	tok, err := s.spend(ctx, req.GetTokenSecret(), kindJoinAgent)
	if err != nil {
		return nil, err
	}
	id, err := s.newID("agt")
	if err != nil {
		return nil, err
	}
	res, err := s.join(ctx, tok, req.GetCsr(), req, &logpb.Command{Command: &logpb.Command_JoinAgent{JoinAgent: &logpb.JoinAgent{
		TokenId: tok.ID, TokenHash: hashSecret(req.GetTokenSecret()),
		Agent: &logpb.Agent{Id: id, Name: req.GetName(), Software: req.GetSoftware()}}}})
	if err != nil {
		return nil, err
	}
	v := s.Proposer.StaleView()
	agent, ok := v.Agent(res.ID)
	if !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "agent %s has been removed since", req.GetName())
	}
	cert, err := s.Authority.SignAgent(req.GetCsr(), agent.ID)
	if err != nil {
		return nil, err
	}
	secrets, err := s.Authority.JoinSecrets()
	if err != nil {
		return nil, err
	}
	resp := &agentv1.JoinAgentResponse{AgentId: agent.ID, Certificate: cert, Ca: s.Authority.CA(), GossipKey: secrets.GossipKey,
		Nodes: s.nodeAddresses(v), ClusterId: s.ClusterID}
	for _, r := range agent.Racks {
		resp.Racks = append(resp.Racks, rackName(v, r))
	}
	s.Log.Info("agent joined", "agent", agent.ID, "name", agent.Name)
	return resp, nil
}

func (s *enrollment) JoinNode(ctx context.Context, req *agentv1.JoinNodeRequest) (*agentv1.JoinNodeResponse, error) {
	if err := metal.ValidateName("name", req.GetName()); err != nil {
		return nil, err
	}
	if err := metal.ValidateHostPort("address", req.GetAddress(), true); err != nil {
		return nil, err
	}
	csr, err := checkCSR(req.GetCsr())
	if err != nil {
		return nil, err
	}
	tok, err := s.spend(ctx, req.GetTokenSecret(), kindJoinNode)
	if err != nil {
		return nil, err
	}
	keyHash := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	if err := s.placeFree(req, keyHash[:]); err != nil {
		return nil, err
	}
	id, err := s.newID("node")
	if err != nil {
		return nil, err
	}
	res, err := s.join(ctx, tok, req.GetCsr(), req, &logpb.Command{Command: &logpb.Command_JoinNode{JoinNode: &logpb.JoinNode{
		TokenId: tok.ID, TokenHash: hashSecret(req.GetTokenSecret()),
		Node: &logpb.Node{Id: id, Name: req.GetName(), Address: req.GetAddress(), KeyHash: keyHash[:], Software: req.GetSoftware()}}}})
	if err != nil {
		return nil, err
	}
	node, ok := s.Proposer.StaleView().Node(res.ID)
	if !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "node %s has been removed since", req.GetName())
	}
	cert, err := s.Authority.SignNode(req.GetCsr(), node.ID, node.Address)
	if err != nil {
		return nil, err
	}
	secrets, err := s.Authority.JoinSecrets()
	if err != nil {
		return nil, err
	}
	if err := s.Raft.AddNonvoter(ctx, node.ID, node.Address); err != nil {
		return nil, err
	}
	s.Log.Info("node joined", "node", node.ID, "name", node.Name, "addr", node.Address)
	return &agentv1.JoinNodeResponse{NodeId: node.ID, Certificate: cert, Ca: s.Authority.CA(), CaKey: secrets.CAKey,
		GossipKey: secrets.GossipKey, Keyring: secrets.Keyring, Nodes: s.nodeAddresses(s.Proposer.StaleView()), ClusterId: s.ClusterID}, nil
}

// placeFree refuses a newcomer whose name or address another node has: most
// likely itself, before its disk was lost. The token is not spent. A newcomer
// with the recorded key asks again, since it did not hear the answer.
func (s *enrollment) placeFree(req *agentv1.JoinNodeRequest, keyHash []byte) error {
	for n := range s.Proposer.StaleView().Nodes() {
		if n.Name != req.GetName() && n.Address != req.GetAddress() || bytes.Equal(n.KeyHash, keyHash) {
			continue
		}
		what := "is a node already, at " + n.Address
		if n.Name != req.GetName() {
			what = "is at " + n.Address + " already"
		}
		return metal.Errorf(metal.CodeNameTaken, "%s (%s) %s. If it is gone for good, or its disk was emptied, remove it first; this token still works then", n.Name, n.ID, what).
			WithHint("bmc cluster remove-node %s", n.Name)
	}
	return nil
}
