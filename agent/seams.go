package agent

import (
	"context"
	"net"
	"slices"
	"strconv"
	"time"

	grpccreds "google.golang.org/grpc/credentials"

	"bmc/agent/boot"
	"bmc/agent/cache"
	"bmc/agent/oob"
	"bmc/agent/operation"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/version"
	"bmc/membership"
	"bmc/metal"
)

const (
	issueLimit  = 8 * time.Second // of one node's answer
	leaseCheck  = 5 * time.Second
	logoutAfter = 10 * time.Second
)

// deps is what operations see of the agent.
func (a *Agent) deps() operation.Deps {
	return operation.Deps{
		Server: func(id string) (*agentv1.ServerSpec, bool) {
			_, s, ok := a.server(id)
			return s, ok
		},
		OOB:      a.controller,
		Lease:    leaseOf{a},
		Ramdisks: ramdisks{a.boots},
		Strange:  strangers{a},
		Reporter: &reporter{nodes: a.nodes, log: a.log},
		Progress: a.progress.note,
		Ready:    sshProber{port: a.seams.sshPort},
		ChunkURL: func(serverID, operation string, manifest []byte) (string, func(), error) {
			r, _, ok := a.server(serverID)
			if !ok {
				return "", nil, metal.Errorf(metal.CodeInternal, "server %s is not known to the rack's agent", serverID)
			}
			return a.chunks.grant(r.conf, a.cfg.HTTPPort, operation, manifest)
		},
		Timing: a.seams.timing,
		Log:    a.log,
	}
}

// controller is a server's management controller, to be used under the lease of
// its rack.
func (a *Agent) controller(s *agentv1.ServerSpec) oob.Controller {
	var l *lease
	if r, _, ok := a.server(s.GetId()); ok {
		l = a.leases[r.conf.Name]
	} else {
		l = newLease(nil, nil, a.log) // never held: the server has left our racks
	}
	return a.pool.Get(a.oobConfig(l, s))
}

// server finds a server and its rack.
func (a *Agent) server(id string) (*rack, *agentv1.ServerSpec, bool) {
	for _, r := range a.racks {
		if s, ok := r.server(id); ok {
			return r, s, true
		}
	}
	return nil, nil, false
}

// leaseOf implements operation.Lease.
type leaseOf struct{ a *Agent }

func (l leaseOf) Hold(ctx context.Context, serverID string, epoch func() uint64) (context.Context, context.CancelFunc, error) {
	r, _, ok := l.a.server(serverID)
	if !ok {
		return nil, nil, metal.Errorf(metal.CodeInternal, "server %s is not in a rack of this agent", serverID)
	}
	return l.a.leases[r.conf.Name].hold(ctx, epoch)
}

// ramdisks implements operation.Ramdisks.
type ramdisks struct{ *boot.Service }

func (r ramdisks) Open(b boot.Binding, saved []boot.Event, record func(boot.Event) error) operation.Ramdisk {
	return r.Service.Open(b, saved, record)
}

// strangers implements operation.Strangers.
type strangers struct{ a *Agent }

func (s strangers) Since(serverID string, t time.Time) map[string]operation.Stranger {
	r, spec, ok := s.a.server(serverID)
	if !ok {
		return nil
	}
	out := make(map[string]operation.Stranger)
	for mac := range s.a.sightings[r.conf.Name].strangers(t, spec.GetMacs(), s.a.boots.Expected) {
		other := r.byPort(mac)
		out[mac] = operation.Stranger{Name: other.GetName(), State: metal.State(other.GetState())}
	}
	return out
}

func (s strangers) Rack(serverID string) string {
	r, _, ok := s.a.server(serverID)
	if !ok {
		return ""
	}
	return r.conf.Name
}

func (s strangers) Seen(serverID string, t time.Time) bool {
	r, spec, ok := s.a.server(serverID)
	return ok && s.a.sightings[r.conf.Name].saw(t, spec.GetMacs())
}

// endpoint is where a server's ramdisk reaches us.
func (a *Agent) endpoint(serverID string) string {
	r, _, ok := a.server(serverID)
	if !ok {
		return ""
	}
	return net.JoinHostPort(r.conf.addr().String(), strconv.Itoa(a.cfg.TLSPort))
}

// endpointIn is this agent in one of its racks.
func (a *Agent) endpointIn(c RackConfig) *agentv1.Endpoint {
	return &agentv1.Endpoint{Address: c.addr().String(), HttpPort: uint32(a.cfg.HTTPPort), TlsPort: uint32(a.cfg.TLSPort)}
}

// agentsOf is where a server's ramdisk finds us, and the rack's other agents.
func (a *Agent) agentsOf(serverID string) []string {
	r, _, ok := a.server(serverID)
	if !ok {
		return nil
	}
	out := []string{a.endpoint(serverID)}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, e := range r.agents {
		addr := net.JoinHostPort(e.GetAddress(), strconv.Itoa(int(e.GetTlsPort())))
		if e.GetAgentId() != a.id.AgentID && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// otherAgents is those that serve one of our racks, too.
func (a *Agent) otherAgents() []cache.Peer {
	var all []*agentv1.Endpoint
	for _, r := range a.racks {
		r.mu.RLock()
		all = append(all, r.agents...)
		r.mu.RUnlock()
	}
	return a.peers.know(all)
}

func (a *Agent) issue(ctx context.Context, serverID string, csr []byte) (cert []byte, err error) {
	err = a.nodes.call(ctx, issueLimit, func(ctx context.Context, c agentv1.ControlClient) error {
		resp, err := c.IssueServerCertificate(ctx, &agentv1.IssueServerCertificateRequest{ServerId: serverID, Csr: csr})
		cert = resp.GetCertificate()
		return err
	})
	return cert, err
}

// renewFor prolongs the certificate of a ramdisk that waits in a boot.
func (a *Agent) renewFor(ctx context.Context, serverID, bootID string, csr []byte) (cert []byte, err error) {
	err = a.nodes.call(ctx, issueLimit, func(ctx context.Context, c agentv1.ControlClient) error {
		resp, err := c.IssueServerCertificate(ctx, &agentv1.IssueServerCertificateRequest{ServerId: serverID, Csr: csr, BootId: bootID})
		cert = resp.GetCertificate()
		return err
	})
	return cert, err
}

// peerServer reads the server's ID of a certificate that TLS has verified.
func (a *Agent) peerServer(info grpccreds.TLSInfo) (string, bool) {
	if len(info.State.VerifiedChains) == 0 {
		return "", false
	}
	cluster, id, ok := peerID(info.State.VerifiedChains[0][0].URIs, roleServer)
	return id, ok && cluster == a.creds.cluster
}

// openGossip joins the gossip, or returns nil where none is configured. Nodes
// gossip on the same port as we do; others are found through them.
func (a *Agent) openGossip() (*membership.Membership, error) {
	if a.cfg.Gossip == "" {
		return nil, nil //nolint:nilnil // no gossip
	}
	_, port, err := net.SplitHostPort(a.cfg.Gossip)
	if err != nil {
		return nil, metal.Invalid("gossip", "%q is not IP:port", a.cfg.Gossip)
	}
	var racks []string
	for _, r := range a.cfg.Racks {
		racks = append(racks, r.Name)
	}
	return membership.Open(membership.Config{
		Self: membership.Member{Kind: membership.KindAgent, ID: a.id.AgentID, Name: a.cfg.Name, Racks: racks, Version: version.Version},
		Bind: a.cfg.Gossip, Key: a.id.GossipKey, Log: a.log,
		Seeds: func() []string {
			var out []string
			for _, addr := range append(a.nodes.addrs(), a.id.Nodes...) {
				if host, _, err := net.SplitHostPort(addr); err == nil {
					out = append(out, net.JoinHostPort(host, port))
				}
			}
			return out
		},
	})
}

// closeSessions logs out of a rack's controllers when its lease has ended:
// standbys hold no session.
func (a *Agent) closeSessions(ctx context.Context, l *lease) {
	l.whenLost(ctx, func() {
		logoutCtx, cancel := context.WithTimeout(ctx, logoutAfter)
		defer cancel()
		a.pool.Release(logoutCtx, l)
	})
}
