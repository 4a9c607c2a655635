package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
	"bmc/lab/vswitch"
)

// pollEvery is how often up looks whether what it waits for is there.
const pollEvery = 100 * time.Millisecond

// writeNodes writes the nodes' configuration files and opens the host's way in.
func (l *Lab) writeNodes(ctx context.Context) error {
	for _, n := range l.plan.nodes {
		dir := l.cfg.path("nodes", n.name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := writeYAML(l.nodeConfig(n.name), l.cfg.nodeFile(n, l.store)); err != nil {
			return err
		}
		way, err := l.net.mgmt.Join("way-to-" + n.name)
		if err != nil {
			return err
		}
		l.ways = append(l.ways, way)
		listener, err := loopback(ctx)
		if err != nil {
			return err
		}
		l.forwards = append(l.forwards, newForward(listener, dialIn(way, netip.AddrPortFrom(n.addr, tlsPort).String()), l.log))
		l.addresses = append(l.addresses, listener.Addr().String())
	}
	return nil
}

func (l *Lab) nodeConfig(name string) string  { return l.cfg.path("nodes", name, "config.yaml") }
func (l *Lab) agentConfig(name string) string { return l.cfg.path("agents", name, "config.yaml") }
func (l *Lab) tokenFile() string              { return l.cfg.path("admin.token") }
func (l *Lab) caFile() string                 { return l.cfg.path("nodes", l.plan.nodes[0].name, "data", "ca.pem") }

// startFirstNode makes the cluster.
func (l *Lab) startFirstNode(ctx context.Context) error {
	n := l.plan.nodes[0]
	program := l.cfg.program("bmc-controlplane")
	if err := run(ctx, l.net.spaces[n.name], n.name+" init", l.logFile(n.name), program,
		"init", "--config", l.nodeConfig(n.name), "--admin-token-file", l.tokenFile()); err != nil {
		return err
	}
	if err := l.daemon(n.name, program, "run", "--config", l.nodeConfig(n.name)); err != nil {
		return err
	}
	if err := l.connectClient(); err != nil {
		return err
	}
	return l.wait(ctx, "a leader", func(ctx context.Context) error {
		s, err := l.client.Cluster.Status(ctx, &bmcv1.StatusRequest{})
		if err == nil && s.GetLeaderId() == "" {
			err = errors.New("no leader yet")
		}
		return err
	})
}

func (l *Lab) connectClient() error {
	token, err := os.ReadFile(l.tokenFile())
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(l.caFile())
	if err != nil {
		return err
	}
	l.client, err = client.New(client.Config{
		Addresses: l.addresses, Token: strings.TrimSpace(string(token)), CACert: ca,
		Patience: time.Second, CallTimeout: 10 * time.Second,
	})
	return err
}

// joinNodes brings the other nodes in, one after the other, and waits until all
// are voters that answer.
func (l *Lab) joinNodes(ctx context.Context) error {
	program := l.cfg.program("bmc-controlplane")
	for _, n := range l.plan.nodes[1:] {
		token := l.cfg.path("nodes", n.name, "join.token")
		if err := l.joinToken(ctx, token, &bmcv1.CreateJoinTokenRequest{Role: "node"}); err != nil {
			return err
		}
		if err := run(ctx, l.net.spaces[n.name], n.name+" join", l.logFile(n.name), program,
			"join", "--config", l.nodeConfig(n.name), "--token-file", token); err != nil {
			return err
		}
		if err := l.daemon(n.name, program, "run", "--config", l.nodeConfig(n.name)); err != nil {
			return err
		}
	}
	return l.wait(ctx, "all nodes", func(ctx context.Context) error {
		r, err := l.client.Cluster.Peers(ctx, &bmcv1.PeersRequest{})
		if err != nil {
			return err
		}
		return l.allThere(r.GetPeers())
	})
}

func (l *Lab) allThere(peers []*bmcv1.Peer) error {
	voters, leaders := 0, 0
	for _, p := range peers {
		if !p.GetAlive() {
			return fmt.Errorf("%s does not answer: %s", p.GetName(), p.GetError())
		}
		if p.GetSuffrage() == "voter" {
			voters++
		}
		if p.GetLeader() {
			leaders++
		}
	}
	if voters != len(l.plan.nodes) || leaders != 1 {
		return fmt.Errorf("%d of %d nodes are voters, %d leaders", voters, len(l.plan.nodes), leaders)
	}
	return nil
}

// applyRacks tells the cluster of the racks, which agents' tokens name. The
// servers are left to whoever applies the inventory file.
func (l *Lab) applyRacks(ctx context.Context) error {
	req := &bmcv1.ApplyInventoryRequest{}
	for _, r := range l.cfg.inventory(&l.plan).Racks {
		req.Racks = append(req.Racks, &bmcv1.RackInput{
			Name: r.Name, Subnet: r.Subnet, Gateway: r.Gateway, Domain: r.Domain,
			RangeFrom: r.RangeFrom, RangeTo: r.RangeTo, LeaseTime: durationpb.New(leaseTime),
		})
	}
	if _, err := l.client.Inventory.ApplyInventory(ctx, req); err != nil {
		return fmt.Errorf("racks: %w", err)
	}
	return nil
}

// startAgents joins every rack's agents and waits until gossip has them all.
func (l *Lab) startAgents(ctx context.Context) error {
	if err := l.applyRacks(ctx); err != nil {
		return err
	}
	if l.cfg.NoGossip {
		l.dropGossip()
	}
	total := 0
	for _, r := range l.plan.racks {
		for _, a := range r.agents {
			total++
			if err := os.MkdirAll(l.cfg.path("agents", a.name), 0o700); err != nil {
				return err
			}
			file := l.cfg.agentFile(&l.plan, r, a, l.store)
			if err := writeYAML(l.agentConfig(a.name), file); err != nil {
				return err
			}
			token := &bmcv1.CreateJoinTokenRequest{Role: "agent"}
			for _, k := range file.Racks {
				token.Racks = append(token.Racks, k.Name)
			}
			if err := l.joinToken(ctx, file.TokenFile, token); err != nil {
				return err
			}
			if err := l.daemon(a.name, l.cfg.program("bmc-agent"), "run", "--config", l.agentConfig(a.name)); err != nil {
				return err
			}
		}
	}
	return l.wait(ctx, "all agents", func(ctx context.Context) error { return l.agentsThere(ctx, total) })
}

// agentsThere: gossip tells who is alive. Where it does not reach the agents, all
// must have joined, and each rack must have somebody who holds its lease.
func (l *Lab) agentsThere(ctx context.Context, total int) error {
	r, err := l.client.Inventory.ListAgents(ctx, &bmcv1.ListAgentsRequest{})
	if err != nil {
		return err
	}
	there := 0
	for _, a := range r.GetAgents() {
		if a.GetAlive() || l.cfg.NoGossip {
			there++
		}
	}
	if there != total {
		return fmt.Errorf("%d of %d agents are there", there, total)
	}
	if !l.cfg.NoGossip {
		return nil
	}
	racks, err := l.client.Inventory.ListRacks(ctx, &bmcv1.ListRacksRequest{})
	if err != nil {
		return err
	}
	for _, k := range racks.GetRacks() {
		if k.GetLease().GetHolder() == "" {
			return fmt.Errorf("nobody holds the lease of %s", k.GetName())
		}
	}
	return nil
}

// dropGossip keeps agents from hearing gossip for as long as the lab is up.
func (l *Lab) dropGossip() {
	drop := vswitch.Impairment{Loss: 1}
	for _, r := range l.plan.racks {
		for _, a := range r.agents {
			l.net.switches[mgmtName].Apply(vswitch.Rule{From: a.name, Port: gossipPort, Impairment: drop})
			l.net.switches[mgmtName].Apply(vswitch.Rule{To: a.name, Port: gossipPort, Impairment: drop})
		}
	}
}

func (l *Lab) joinToken(ctx context.Context, path string, req *bmcv1.CreateJoinTokenRequest) error {
	r, err := l.client.Cluster.CreateJoinToken(ctx, req)
	if err != nil {
		return fmt.Errorf("join token for %s: %w", req.GetRole(), err)
	}
	return os.WriteFile(path, []byte(r.GetToken()+"\n"), 0o600)
}

// wait tries until ready says nil, a child dies, or the context ends.
func (l *Lab) wait(ctx context.Context, what string, ready func(context.Context) error) error {
	ctx, cancel := l.watch(ctx)
	defer cancel(nil)
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return because(ctx, fmt.Errorf("wait for %s: %w; the last answer: %w", what, context.Cause(ctx), err))
		case <-t.C:
		}
	}
}
