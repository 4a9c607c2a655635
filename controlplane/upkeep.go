package controlplane

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/controlplane/consensus"
	"bmc/controlplane/trust"
	"bmc/fsm"
	"bmc/internal/rpcerr"
	"bmc/internal/version"
	"bmc/metal"
)

const (
	upkeepEvery  = 5 * time.Second
	compareEvery = time.Minute // between comparisons of idle replicas' state
	askWait      = 5 * time.Second
	outOfTouch   = 10 * time.Second // without a leader, until this node asks whether it is still a member
)

// errRemoved ends a node that an operator has taken out.
var errRemoved = metal.Errorf(metal.CodeWrongState, "this node was removed from the cluster: its data is of no use any more").
	WithHint("empty data_dir, then: bmc-controlplane join --config FILE --token-file FILE")

// upkeep is what a node does about itself while it runs: it tells the leader
// what it is, renews its certificate, and compares its state with the others'.
func (n *Node) upkeep(ctx context.Context, creds *trust.Credentials) {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	c := comparison{node: n}
	for {
		if err := n.announceSelf(ctx); errors.Is(err, errRemoved) {
			select {
			case n.failed <- err:
			default:
			}
			return
		} else if err != nil && ctx.Err() == nil {
			n.log.Debug("this node is not registered yet", "err", err)
		}
		if err := n.renew(creds, time.Now()); err != nil {
			n.log.Error("the node's certificate was not renewed", "err", err)
		}
		c.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// announceSelf tells the leader this node's address and feature level when the
// state says otherwise.
func (n *Node) announceSelf(ctx context.Context) error {
	silence := n.raft.LeaderContact()
	if silence < 0 { // never, since this process began
		silence = time.Since(n.opened)
	}
	if silence > outOfTouch && n.turnedAway(ctx) {
		return errRemoved
	}
	row, ok := n.fsm.View().Node(n.id.NodeID)
	level := uint32(fsm.FeatureLevel)
	if ok && row.FeatureLevel == level && (row.Address == n.conf.Advertise && row.Software == version.String() || n.fsm.View().Meta().FeatureLevel < 2) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	if !ok { // this replica may be behind
		v, err := n.raft.LinearizableView(ctx)
		if err != nil {
			return err
		}
		if _, ok := v.Node(n.id.NodeID); !ok && v.Meta().ClusterID != "" {
			return errRemoved
		}
	}
	_, addr := n.raft.Leader()
	if n.raft.IsLeader() {
		addr = n.conf.Advertise // the recorded one may be of before a move
	}
	if addr == "" {
		return metal.Errorf(metal.CodeNoLeader, "no leader is known")
	}
	conn, err := n.peers.Conn(addr)
	if err != nil {
		return err
	}
	_, err = agentv1.NewNodesClient(conn).RegisterNode(ctx, &agentv1.RegisterNodeRequest{Address: n.conf.Advertise, FeatureLevel: level, Software: version.String()})
	return err
}

// turnedAway says whether another node, which has asked its leader, no longer
// knows this one. Who was removed is sent no log that would say so.
func (n *Node) turnedAway(ctx context.Context) bool {
	for _, m := range n.raft.Members() {
		if m.ID == n.id.NodeID {
			continue
		}
		conn, err := n.peers.Conn(m.Address)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, askWait)
		_, err = agentv1.NewNodesClient(conn).StateHash(ctx, &agentv1.StateHashRequest{})
		cancel()
		if e, ok := rpcerr.Decode(err); ok && e.Code == metal.CodeUnauthenticated {
			return true
		}
	}
	return false
}

// renew signs the node's key again when a third of its certificate's life has
// gone. Each node has the CA's key, so nobody needs to be asked; the key stays,
// for it is what the others have recorded.
func (n *Node) renew(creds *trust.Credentials, now time.Time) error {
	leaf := n.id.cert.Leaf
	if now.Before(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 3)) {
		return nil
	}
	key, ok := n.id.cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("the node's key is a %T", n.id.cert.PrivateKey)
	}
	csr, err := trust.RequestFor(key, n.conf.names()...)
	if err != nil {
		return err
	}
	der, err := n.id.ca.IssueNode(csr, n.id.NodeID, n.conf.Advertise)
	if err != nil {
		return err
	}
	if err := trust.WriteCertificate(n.conf.file(fileCert), der); err != nil {
		return err
	}
	fresh, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	n.id.cert = tls.Certificate{Certificate: [][]byte{der, n.id.ca.DER()}, PrivateKey: key, Leaf: fresh}
	creds.SetCertificate(n.id.cert)
	n.log.Info("the node's certificate was renewed", "until", fresh.NotAfter)
	return nil
}

// comparison holds this node's state against the others'.
type comparison struct {
	node *Node
	seen uint64 // revision compared last
	at   time.Time
}

// look compares at the newest mark that was not compared yet, and now and then
// in an idle cluster at the newest revision.
func (c *comparison) look(ctx context.Context) {
	mark, ok := toCompare(c.node.fsm, c.seen, time.Since(c.at) >= compareEvery)
	if !ok {
		return
	}
	// Who has no vote yet may be on its way from another state to this one: it
	// joins, or a backup was restored.
	members := c.node.raft.Members()
	if !slices.ContainsFunc(members, func(m consensus.Member) bool { return m.Voter && m.ID == c.node.id.NodeID }) {
		return
	}
	votes, voters := 1, 1 // our own
	others := map[string]int{}
	for _, m := range members {
		if !m.Voter || m.ID == c.node.id.NodeID {
			continue
		}
		voters++
		hash, ok := c.ask(ctx, m, mark.Revision)
		switch {
		case !ok:
		case bytes.Equal(hash, mark.Hash[:]):
			votes++
		default:
			others[string(hash)]++
		}
	}
	c.seen, c.at = mark.Revision, time.Now()
	c.judge(votes, voters, others, mark.Revision)
}

// toCompare is the newest mark after seen or, when it is time again, the newest
// revision. A node that has just started and holds nothing yet has none.
func toCompare(f *fsm.FSM, seen uint64, again bool) (fsm.HashMark, bool) {
	if mark, ok := f.StateHashAt(0); ok && mark.Revision != seen {
		return mark, true
	}
	v := f.View()
	return fsm.HashMark{Revision: v.Revision(), Hash: v.Hash()}, again && v.Revision() > 0
}

// judge stops a node that a majority outvotes. When the replicas differ and no
// hash has a majority, changes are refused; a majority lifts that.
func (c *comparison) judge(votes, voters int, others map[string]int, revision uint64) {
	if votes > voters/2 {
		c.node.raft.SetDiverged(false)
		return
	}
	answered := votes
	for _, n := range others {
		answered += n
		if n > voters/2 {
			c.node.fatal(fmt.Errorf("at revision %d this node's state differs from what %d of %d nodes agree on: its disk or memory is not sound. "+
				"Remove it, empty data_dir, and join it anew", revision, n, voters))
			return
		}
	}
	if len(others) > 0 && answered > voters/2 {
		c.node.raft.SetDiverged(true)
	}
}

func (c *comparison) ask(ctx context.Context, m consensus.Member, revision uint64) ([]byte, bool) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	conn, err := c.node.peers.Conn(m.Address)
	if err != nil {
		return nil, false
	}
	resp, err := agentv1.NewNodesClient(conn).StateHash(ctx, &agentv1.StateHashRequest{Revision: revision})
	if err != nil || resp.GetRevision() != revision {
		return nil, false
	}
	return resp.GetHash(), true
}
