package controlplane

import (
	"context"
	"crypto/tls"
	"io"

	"bmc/controlplane/consensus"
	"bmc/controlplane/dispatch"
	"bmc/controlplane/rpc"
	"bmc/controlplane/trust"
	"bmc/fsm"
	"bmc/fsm/state"
	"bmc/imagestore"
	"bmc/internal/manifest"
	"bmc/metal"
)

// authority is rpc's view of trust.
type authority struct {
	ca      *trust.CA
	creds   *trust.Credentials
	keyring *trust.Keyring
}

func (a authority) Identify(cs tls.ConnectionState) (rpc.PeerIdentity, bool) {
	id, ok := a.creds.Identify(cs)
	return rpc.PeerIdentity{Role: string(id.Role), ID: id.ID, KeyHash: id.KeyHash, Expired: id.Expired}, ok
}

func (a authority) SignNode(csr []byte, id, address string) ([]byte, error) {
	return a.ca.IssueNode(csr, id, address)
}

func (a authority) SignAgent(csr []byte, id string) ([]byte, error) { return a.ca.IssueAgent(csr, id) }
func (a authority) SignServer(csr []byte, id string) ([]byte, error) {
	return a.ca.IssueServer(csr, id)
}
func (a authority) CA() []byte { return a.ca.DER() }

func (a authority) JoinSecrets() (rpc.JoinSecrets, error) {
	ring, err := a.keyring.JSON()
	if err != nil {
		return rpc.JoinSecrets{}, err
	}
	key, err := a.ca.KeyDER()
	if err != nil {
		return rpc.JoinSecrets{}, err
	}
	return rpc.JoinSecrets{GossipKey: a.keyring.Gossip, Keyring: ring, CAKey: key}, nil
}

// raftAPI is rpc's view of consensus.
type raftAPI struct{ *consensus.Node }

func (r raftAPI) Status() rpc.RaftStatus {
	s := rpc.RaftStatus{Term: r.Term(), AppliedIndex: r.AppliedIndex(), LeaderContact: r.LeaderContact(), Hung: r.Hung()}
	for _, m := range r.Members() {
		s.Members = append(s.Members, rpc.RaftMember{ID: m.ID, Address: m.Address, Voter: m.Voter})
	}
	return s
}

// LeaderGone answers another node.
func (r raftAPI) LeaderGone(ctx context.Context, leader string, term uint64) rpc.LeaderWord {
	return rpc.LeaderWord(r.Node.LeaderGone(ctx, leader, term))
}

// askGone is consensus's view of the other nodes.
func askGone(p *rpc.Peers) func(context.Context, string, string, uint64) (consensus.Word, error) {
	return func(ctx context.Context, addr, leader string, term uint64) (consensus.Word, error) {
		w, err := p.LeaderGone(ctx, addr, leader, term)
		return consensus.Word(w), err
	}
}

// leaderSide is dispatch's view of consensus and state.
type leaderSide struct {
	*consensus.Node
	fsm *fsm.FSM
}

func (l leaderSide) View() *state.View        { return l.fsm.View() }
func (l leaderSide) Changed() <-chan struct{} { return l.fsm.Changed() }

// leases is rpc's view of dispatch.
type leases struct{ *dispatch.Dispatcher }

func (l leases) RenewLease(ctx context.Context, agentID, rackID string) (rpc.Lease, error) {
	got, err := l.Dispatcher.RenewLease(ctx, agentID, rackID)
	return rpc.Lease{Held: got.Held, Generation: got.Generation, Epoch: got.Epoch, TTL: got.TTL, Holder: got.Holder}, err
}

func (l leases) Note(rackID string, e rpc.Endpoint) {
	l.Dispatcher.Note(rackID, dispatch.Endpoint(e))
}

func (l leases) Agents(r *metal.Rack) (out []rpc.Endpoint, partial bool) {
	known, partial := l.Dispatcher.Agents(r)
	for _, e := range known {
		out = append(out, rpc.Endpoint(e))
	}
	return out, partial
}

// chunks is rpc's view of the image store, which it addresses in hex.
type chunks struct{ *imagestore.Store }

func (c chunks) Has(ctx context.Context, digests []string) ([]string, error) {
	ask := make([]manifest.Digest, len(digests))
	for i, text := range digests {
		d, err := manifest.ParseDigest(text)
		if err != nil {
			return nil, err
		}
		ask[i] = d
	}
	lack, err := c.Store.Has(ctx, ask)
	if err != nil {
		return nil, err
	}
	missing := make([]string, len(lack))
	for i, d := range lack {
		missing[i] = d.String()
	}
	return missing, nil
}

func (c chunks) Put(ctx context.Context, digest string, size int64, r io.Reader) error {
	d, err := manifest.ParseDigest(digest)
	if err != nil {
		return err
	}
	return c.Store.Put(ctx, d, size, r)
}
