package main

import (
	"context"
	"strings"
	"sync"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
)

// nodeWait is how long one node may take to say how it sees the cluster.
const nodeWait = 4 * time.Second

// health is the control plane as its nodes see it.
type health struct {
	*bmcv1.StatusResponse        // of a node that knows a leader, if one does
	removed               string // a node that answers, and is no longer a member; "": none
	says                  string // who says so
}

// health asks a node, and where that knows no leader the others, too: a node that
// is cut off, cannot write, or was removed long ago has a picture of its own.
func (a *app) health(ctx context.Context) (health, error) {
	c, err := a.api()
	if err != nil {
		return health{}, err
	}
	s, err := c.Cluster.Status(ctx, &bmcv1.StatusRequest{})
	if err != nil || s.GetLeaderId() != "" {
		return health{StatusResponse: s}, err
	}
	h := health{StatusResponse: s}
	for _, o := range others(ctx, c) {
		if o.GetLeaderId() != "" && (h.GetLeaderId() == "" || o.GetTerm() > h.GetTerm()) {
			h.StatusResponse = o
		}
	}
	if h.GetLeaderId() != "" {
		if peer(h.GetPeers(), s.GetNodeId()) == nil {
			h.removed, h.says = peerName(s.GetPeers(), s.GetNodeId()), peerName(h.GetPeers(), h.GetNodeId())
		}
		return h, nil
	}
	for _, p := range s.GetPeers() {
		if p.GetRefuses() {
			h.removed, h.says = peerName(s.GetPeers(), s.GetNodeId()), firstOf(p.GetName(), p.GetId())
		}
	}
	return h, nil
}

// others are the answers of all nodes that give one in time.
func others(ctx context.Context, c *client.Client) []*bmcv1.StatusResponse {
	ctx, cancel := context.WithTimeout(ctx, nodeWait)
	defer cancel()
	var mu sync.Mutex
	var out []*bmcv1.StatusResponse
	c.EachNode(ctx, func(ctx context.Context, node bmcv1.ClusterClient) {
		if s, err := node.Status(ctx, &bmcv1.StatusRequest{}); err == nil {
			mu.Lock()
			defer mu.Unlock()
			out = append(out, s)
		}
	})
	return out
}

func peer(peers []*bmcv1.Peer, id string) *bmcv1.Peer {
	for _, p := range peers {
		if p.GetId() == id {
			return p
		}
	}
	return nil
}

func peerName(peers []*bmcv1.Peer, id string) string {
	return firstOf(peer(peers, id).GetName(), id)
}

// well says whether a peer answers and nothing is wrong with it.
func well(p *bmcv1.Peer) bool { return p.GetAlive() && p.GetError() == "" }

// silence says that a peer does not answer and, where it is known, why.
func silence(p *bmcv1.Peer) string {
	const said = "does not answer"
	switch why := strings.TrimSpace(strings.TrimPrefix(p.GetError(), said)); {
	case why == "":
		return said
	case strings.HasPrefix(why, "("):
		return said + " " + why
	default:
		return said + ": " + why
	}
}

// noteSick says which nodes do not answer, or are sick, and what can be done about it.
func (a *app) noteSick(h health) {
	if h.removed != "" {
		a.note("%s was removed: %s says that it is not a member of the cluster. What it shows is of then", h.removed, h.says)
		a.note("  stop it and take it out of your addresses; to use the machine again: empty its data_dir, then bmc-controlplane join")
		if h.GetLeaderId() == "" {
			return // its picture of the others is of no use
		}
	}
	voters, alive, gone := 0, 0, ""
	for _, p := range h.GetPeers() {
		name := firstOf(p.GetName(), p.GetId())
		if p.GetSuffrage() == "voter" {
			voters++
			if well(p) {
				alive++
			}
		}
		switch {
		case !p.GetAlive():
			gone = name
			a.note("%s %s", name, silence(p))
		case p.GetError() != "":
			a.note("%s is sick: %s", name, p.GetError())
		}
	}
	switch {
	case gone == "":
	case voters > 0 && alive <= voters/2:
		a.note("%d of %d voters answer: nothing can be changed. Start another; if most are lost for good, on one that is left: bmc-controlplane recover --config FILE --dry-run", alive, voters)
	default:
		a.note("if it is gone for good: bmc cluster remove-node %s, then a new one: bmc cluster join-token --role node", gone)
	}
}
