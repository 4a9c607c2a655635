package agent

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	"bmc/agent/boot"
	agentv1 "bmc/api/agent/v1"
)

// standingAgent is one of a rack's two agents, as far as it answers machines.
type standingAgent struct {
	*Agent
	r  *rack
	at time.Duration // its clock
}

// newStandingAgents have heard of each other.
func newStandingAgents(t *testing.T) (a, b *standingAgent) {
	t.Helper()
	c := newCluster(t, 0)
	var both []*standingAgent
	var endpoints []*agentv1.Endpoint
	for i, id := range []string{"agt-1", "agt-2"} {
		log := slog.New(slog.DiscardHandler)
		s := &standingAgent{at: time.Hour}
		conf := RackConfig{Name: "r1", Address: []string{"10.77.1.1/24", "10.77.1.2/24"}[i]}
		var err error
		s.r, err = openRack(conf, filepath.Join(t.TempDir(), "r1.json"), boot.New(boot.Config{Log: log}))
		if err != nil {
			t.Fatal(err)
		}
		s.r.now = func() time.Time { return time.Unix(0, 0).Add(s.at) }
		s.r.lease = newLease(s.r, nil, log)
		s.r.lease.now = func() time.Duration { return s.at }
		s.r.served(true)
		creds := c.credentialsOf(t, roleAgent, id)
		s.Agent = &Agent{log: log, racks: []*rack{s.r}, peers: newPeers(id, creds, log), leases: map[string]*lease{"r1": s.r.lease}}
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer(grpc.Creds(grpccreds.NewTLS(creds.server())))
		agentv1.RegisterPeersServer(server, &peerService{cluster: testCluster, racks: s.racks})
		go func() { _ = server.Serve(lis) }() // ends with Stop
		t.Cleanup(server.Stop)
		t.Cleanup(s.peers.close)
		endpoints = append(endpoints, &agentv1.Endpoint{Address: "127.0.0.1", HttpPort: uint32(8081 + i), TlsPort: uint32(lis.Addr().(*net.TCPAddr).Port), AgentId: id})
		both = append(both, s)
	}
	for _, s := range both {
		s.r.setAgents(endpoints, false, "")
	}
	return both[0], both[1]
}

// knows takes a snapshot of a rack with one server, from a node that goes on unless
// the agent is cut off later.
func (s *standingAgent) knows(t *testing.T, revision uint64, state string) {
	t.Helper()
	mustReplace(t, s.r, &agentv1.RackUpdate{Revision: revision, Rack: &agentv1.RackSpec{Subnet: "10.77.1.0/24"},
		Upserts: []*agentv1.ServerSpec{spec("srv-1", state, "10.77.1.11", testMAC)}})
}

func (s *standingAgent) answered(held bool) {
	s.r.lease.answered(s.at, &agentv1.RenewLeaseResponse{Held: held, Epoch: 1, Ttl: durationpb.New(15 * time.Second)})
}

// cut pulls the cable to the control plane; the streams do not notice for a while.
func (s *standingAgent) cut(noticed bool) {
	s.at += time.Minute
	if noticed {
		s.r.gone("n1")
	}
}

// A machine is released while its rack's standby is cut off. The standby, which knows
// it as rented, must not have it boot the former tenant's disk; with everybody cut
// off, rented machines must boot all the same.
func TestStaleAgentAndBoots(t *testing.T) {
	const (
		now    = "answers"
		late   = "answers when nobody else does"
		silent = "leaves it to the other"
	)
	for _, tt := range []struct {
		name  string
		set   func(a, b *standingAgent)
		wantA string
		wantB string
	}{
		{"the holder answers alone", func(*standingAgent, *standingAgent) {}, now, silent},
		{"the standby is cut off, and has not noticed", func(a, b *standingAgent) { b.cut(false); a.knows(t, 9, "releasing") }, now, silent},
		{"the standby is cut off", func(a, b *standingAgent) { b.cut(true); a.knows(t, 9, "releasing") }, now, silent},
		{"the holder has lost the lease, and the standby has not got it", func(a, b *standingAgent) { a.cut(true) }, silent, late},
		{"both are cut off, one knows more", func(a, b *standingAgent) { a.knows(t, 9, "releasing"); a.cut(true); b.cut(true) }, late, silent},
		{"both are cut off and know the same", func(a, b *standingAgent) { a.cut(true); b.cut(true) }, late, late},
		{"the standby is cut off, the holder's DHCP server is down", func(a, b *standingAgent) { a.r.served(false); b.cut(true) }, now, late},
		{"lease granted, stream not yet synced", func(a, b *standingAgent) { a.r.gone("n1") }, silent, late},
		{"lease granted, stream not yet synced, the other is cut off and knows as much", func(a, b *standingAgent) { a.r.gone("n1"); b.cut(true); a.answered(true) }, late, late},
		{"neither holds the lease, both follow the nodes", func(a, b *standingAgent) { a.answered(false) }, late, late},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := newStandingAgents(t)
			for _, s := range []*standingAgent{a, b} {
				s.knows(t, 5, "active")
				s.at += answersAfter
			}
			a.answered(true)
			b.answered(false)
			tt.set(a, b)
			for _, s := range []*standingAgent{a, b} {
				for _, p := range s.otherAgents() {
					req := &agentv1.StandingRequest{Racks: []string{"r0", "r1"}}
					s.askStanding(t.Context(), p.(*peerAgent), req)
				}
				if len(s.r.heard) != 1 {
					t.Fatalf("%s heard %v", s.r.conf.Address, s.r.heard)
				}
			}
			how := func(s, other *standingAgent) string {
				m, ok := s.r.Lookup(testMAC)
				switch {
				case !ok || m.Boot.Ramdisk:
					t.Errorf("%+v, %v", m, ok)
				case m.Boot.Silent:
					if i := map[*standingAgent]uint16{a: 8081, b: 8082}; m.Boot.Elsewhere != netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), i[other]) {
						t.Errorf("sent to %v", m.Boot.Elsewhere)
					}
					return silent
				case m.Boot.Late:
					return late
				}
				return now
			}
			if gotA, gotB := how(a, b), how(b, a); gotA != tt.wantA || gotB != tt.wantB {
				t.Errorf("the holder %s, the standby %s; want: the holder %s, the standby %s", gotA, gotB, tt.wantA, tt.wantB)
			}
			// The other one dies.
			b.at += standingFor
			if got := how(b, a); got != late {
				t.Errorf("with the holder dead the standby %s", got)
			}
		})
	}
}

// A machine that the holder's answers do not reach asks the standby on and on. The
// holder, which the standby reaches, says what it answers that machine; nobody else's
// word will do, and not for long.
func TestSpareForAMachine(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(a, b *standingAgent)
		want string
	}{
		{"the machine has not asked here", func(_, b *standingAgent) { b.r.asking = asking{} }, "silent"},
		{"a rented machine", func(*standingAgent, *standingAgent) {}, "disk"},
		{"released, and the standby was cut off before", func(a, b *standingAgent) {
			b.cut(true)
			a.knows(t, 9, "releasing")
			a.intent(t)
		}, "elsewhere"},
		{"its ramdisk is wanted", func(a, _ *standingAgent) { a.intent(t) }, "elsewhere"},
		{"the holder has lost the lease", func(a, _ *standingAgent) { a.cut(true) }, "late"},
		{"neither holds it, the other knows more", func(a, b *standingAgent) {
			a.knows(t, 9, "active")
			a.cut(true)
			b.cut(true)
		}, "silent"},
		{"its address has changed since the standby was cut off", func(a, b *standingAgent) {
			b.cut(true)
			mustReplace(t, a.r, &agentv1.RackUpdate{Revision: 9, Rack: &agentv1.RackSpec{Subnet: "10.77.1.0/24"},
				Upserts: []*agentv1.ServerSpec{spec("srv-1", "active", "10.77.1.12", testMAC)}})
		}, "silent"},
		{"the holder does not know it", func(a, _ *standingAgent) {
			mustReplace(t, a.r, &agentv1.RackUpdate{Revision: 9, Rack: &agentv1.RackSpec{Subnet: "10.77.1.0/24"}})
		}, "silent"},
		{"the holder's DHCP server has just begun", func(a, _ *standingAgent) { a.r.served(true) }, "late"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := newStandingAgents(t)
			for _, s := range []*standingAgent{a, b} {
				s.knows(t, 5, "active")
				s.at += answersAfter
			}
			a.answered(true)
			b.answered(false)
			b.r.asking.note(testMAC, time.Now())
			tt.set(a, b)
			ask := &agentv1.StandingRequest{Racks: []string{"r1"}}
			for _, mac := range b.r.asking.now(time.Now()) {
				ask.Asking = append(ask.Asking, &agentv1.Asking{Rack: "r1", Mac: mac}, &agentv1.Asking{Rack: "r0", Mac: mac})
			}
			for _, p := range b.otherAgents() {
				b.askStanding(t.Context(), p.(*peerAgent), ask)
			}
			how := func() string {
				m, ok := b.r.Lookup(testMAC)
				switch {
				case !ok || m.Boot.Ramdisk:
					t.Errorf("%+v, %v", m, ok)
				case m.Boot.Late:
					return "late"
				case !m.Boot.Silent || !m.Boot.Elsewhere.IsValid():
					t.Errorf("with a better one there it answers at once: %+v", m.Boot)
				case m.Boot.Spare && m.Boot.Disk:
					return "disk"
				case m.Boot.Spare:
					return "elsewhere"
				}
				return "silent"
			}
			if got := how(); got != tt.want {
				t.Errorf("the standby: %s, want %s", got, tt.want)
			}
			b.at += standingFor
			if got := how(); got != "late" {
				t.Errorf("with the holder's word out of date: %s", got)
			}
		})
	}
}

// intent opens a boot intent for the machine, as the holder of its operation does.
func (s *standingAgent) intent(t *testing.T) {
	t.Helper()
	sess := s.r.boots.Open(boot.Binding{Server: "srv-1", MAC: testMAC}, nil, func(boot.Event) error { return nil })
	t.Cleanup(sess.Close)
	sess.Attend(true)
	if err := sess.Arm(); err != nil {
		t.Fatal(err)
	}
}

// What asks is kept for a minute, and not without bound.
func TestAskingIsBounded(t *testing.T) {
	var a asking
	now := time.Unix(0, 0)
	for i := range 2 * maxAsking {
		a.note(fmt.Sprint(i), now)
	}
	if n := len(a.now(now)); n != maxAsking {
		t.Errorf("%d are kept", n)
	}
	a.note("0", now.Add(askingFor))
	if got := a.now(now.Add(askingFor + 1)); len(got) != 1 || got[0] != "0" {
		t.Errorf("a minute later: %v", got)
	}
}

// A question about many racks' machines leaves none of this rack's out; that about one
// rack's is not answered without bound.
func TestAskedAboutIsBounded(t *testing.T) {
	a, _ := newStandingAgents(t)
	a.knows(t, 5, "active")
	a.at += answersAfter
	a.answered(true)
	asked := func(rack string) int {
		var who []*agentv1.Asking
		for range 2 * maxAsking {
			who = append(who, &agentv1.Asking{Rack: rack, Mac: testMAC})
		}
		a.r.mu.Lock()
		defer a.r.mu.Unlock()
		return len(a.r.standingFor(append(who, &agentv1.Asking{Rack: "r1", Mac: testMAC})).GetMachines())
	}
	if n := asked("r0"); n != 1 {
		t.Errorf("after another rack's: %d machines", n)
	}
	if n := asked("r1"); n != maxAsking {
		t.Errorf("%d machines", n)
	}
}

// Who serves the rack is known over a restart, which no node may be there to tell.
func TestAgentsAreKnownOverARestart(t *testing.T) {
	_, b := newStandingAgents(t)
	b.knows(t, 5, "active")
	if err := b.r.save(); err != nil {
		t.Fatal(err)
	}
	again, err := openRack(b.r.conf, b.r.path, b.r.boots)
	if err != nil {
		t.Fatal(err)
	}
	again.hears("agt-1", &agentv1.RackStanding{Rack: "r1", Answers: true, Held: true})
	if m, ok := again.Lookup(testMAC); !ok || !m.Boot.Silent || m.Boot.Elsewhere.Port() != 8081 {
		t.Errorf("%+v, %v", m.Boot, ok)
	}
}
