package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
	"bmc/metal"
)

// word is a node with a picture of the cluster.
type word struct {
	bmcv1.UnimplementedClusterServer
	status *bmcv1.StatusResponse
}

func (w word) Status(context.Context, *bmcv1.StatusRequest) (*bmcv1.StatusResponse, error) {
	return w.status, nil
}

// against runs a command against nodes of its own.
func against(t *testing.T, command string, register ...func(*grpc.Server)) (out, errs string, code int) {
	t.Helper()
	var addrs []string
	for _, r := range register {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		r(s)
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		t.Cleanup(func() { s.Stop(); <-done })
		addrs = append(addrs, l.Addr().String())
	}
	var o, e bytes.Buffer
	a := newApp(strings.NewReader(""), &o, &e)
	a.env = func(name string) string { return map[string]string{"HOME": t.TempDir()}[name] }
	var err error
	a.client, err = client.New(client.Config{Addresses: addrs, Token: "bmct_x_y", Patience: 50 * time.Millisecond,
		Dial: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}})
	if err != nil {
		t.Fatal(err)
	}
	code = a.run(t.Context(), strings.Fields(command))
	return o.String(), e.String(), code
}

func picture(s *bmcv1.StatusResponse) func(*grpc.Server) {
	return func(srv *grpc.Server) { bmcv1.RegisterClusterServer(srv, word{status: s}) }
}

// The first node that is asked may be the sick one: the others say how things are.
func TestHealthByOthers(t *testing.T) {
	const hangs = "its log store hangs"
	peer := func(n string, alive bool, wrong string) *bmcv1.Peer {
		return &bmcv1.Peer{Id: "node-" + n, Name: "cp" + n, Suffrage: "voter", Alive: alive, Error: wrong}
	}
	all := func(wrong string) []*bmcv1.Peer {
		return []*bmcv1.Peer{peer("1", true, wrong), peer("2", true, ""), peer("3", true, "")}
	}
	led := func(s *bmcv1.StatusResponse) *bmcv1.StatusResponse {
		for _, p := range s.GetPeers() {
			p.Leader = p.GetId() == s.GetLeaderId()
		}
		return s
	}
	refuses := peer("2", false, "node node-1 is not a member of this cluster")
	refuses.Refuses = true
	alone := &bmcv1.StatusResponse{ClusterId: "lab", NodeId: "node-1", Peers: []*bmcv1.Peer{peer("1", true, ""), refuses, peer("3", false, "does not answer")}}
	for _, tt := range []struct {
		name, command string
		nodes         []*bmcv1.StatusResponse
		out, errs     string
		never         string
	}{
		{"hangs", "cluster status", []*bmcv1.StatusResponse{{NodeId: "node-1", Peers: all(hangs)}, led(&bmcv1.StatusResponse{NodeId: "node-2", LeaderId: "node-2", Term: 7, Peers: all(hangs)})},
			"3 of 3 answer, 1 of them sick, leader cp2, term 7", "cp1 is sick: " + hangs, "recover"},
		{"hangs", "cluster peers", []*bmcv1.StatusResponse{{NodeId: "node-1", Peers: all(hangs)}, led(&bmcv1.StatusResponse{NodeId: "node-2", LeaderId: "node-2", Term: 7, Peers: all(hangs)})},
			"leader", "cp1 is sick: " + hangs, "recover"},
		{"removed", "cluster status", []*bmcv1.StatusResponse{alone, led(&bmcv1.StatusResponse{NodeId: "node-2", LeaderId: "node-2", Term: 9, Peers: []*bmcv1.Peer{peer("2", true, "")}})},
			"1 of 1 answer, leader cp2, term 9", "cp1 was removed: cp2 says that it is not a member of the cluster", "recover"},
		{"removed, and nobody else is asked", "cluster status", []*bmcv1.StatusResponse{alone}, "leader none", "cp1 was removed: cp2 says", "recover --config"},
		{"lost", "cluster status", []*bmcv1.StatusResponse{{NodeId: "node-1", Peers: []*bmcv1.Peer{peer("1", true, ""), peer("2", false, ""), peer("3", false, "")}}},
			"1 of 3 answer, leader none", "bmc-controlplane recover --config", "removed"},
	} {
		t.Run(tt.name+", "+tt.command, func(t *testing.T) {
			var nodes []func(*grpc.Server)
			for _, n := range tt.nodes {
				nodes = append(nodes, picture(n))
			}
			out, errs, code := against(t, tt.command, nodes...)
			if code != 0 || !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.errs) || strings.Contains(out+errs, tt.never) {
				t.Errorf("exit %d\n%s\n%s", code, out, errs)
			}
		})
	}
}

// leaderless refuses what needs a leader, and counts.
type leaderless struct {
	bmcv1.UnimplementedServersServer
	bmcv1.UnimplementedOperationsServer
	bmcv1.UnimplementedClusterServer
	asked *int
}

func (l leaderless) GetServer(context.Context, *bmcv1.GetServerRequest) (*bmcv1.Server, error) {
	return nil, refuse(metal.Errorf(metal.CodeNoLeader, "the cluster has no leader"))
}

func (l leaderless) GetOperation(context.Context, *bmcv1.GetOperationRequest) (*bmcv1.Operation, error) {
	*l.asked++
	return nil, refuse(metal.Errorf(metal.CodeNoLeader, "the cluster has no leader"))
}

// Without a leader a command waits for one once, not once for each way to find
// what is meant.
func TestCancelWaitsOnce(t *testing.T) {
	asked := 0
	_, errs, code := against(t, "cancel web-1 --yes", func(s *grpc.Server) {
		bmcv1.RegisterServersServer(s, leaderless{asked: &asked})
		bmcv1.RegisterOperationsServer(s, leaderless{asked: &asked})
	})
	if code != exitUnreachable || asked != 0 || strings.Count(errs, "trying again") > 1 {
		t.Errorf("exit %d, asked %d more times: %s", code, asked, errs)
	}
}

// What doctor finds decides its exit code: without a leader 6, and for what is no
// error of the way there 1 without a reason.
func TestDoctorsExitCode(t *testing.T) {
	a := newApp(strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})
	for _, tt := range []struct {
		found []finding
		want  int
	}{
		{[]finding{{what: "ssh", bad: true}, {what: "leader", bad: true, code: metal.CodeNoLeader}}, exitUnreachable},
		{[]finding{{what: "credential", bad: true, code: metal.CodeUnauthenticated}}, exitDenied},
		{[]finding{{what: "servers", bad: true}}, exitError},
		{[]finding{{what: "leader", code: metal.CodeNoLeader}}, exitOK},
	} {
		err := a.findings(tt.found)
		if got := exitCode(t.Context(), err); got != tt.want || err != nil && describe(err).Reason == "INTERNAL" {
			t.Errorf("%+v: exit %d, %v", tt.found, got, err)
		}
	}
}

// Every reading command may be answered from a replica, and says how old that is.
func TestReadingCommandsAllowStale(t *testing.T) {
	root := newApp(nil, &bytes.Buffer{}, &bytes.Buffer{}).command()
	for _, path := range reading {
		if cmd, _, err := root.Find(strings.Fields(path)); err != nil || !strings.HasSuffix(cmd.CommandPath(), path) || cmd.Flags().Lookup("allow-stale") == nil {
			t.Errorf("%s: %v, %v", path, cmd.CommandPath(), err)
		}
	}
	for s, want := range map[client.Staleness]string{
		{Revision: 41, Age: 200 * time.Second}: "as of revision 41; a leader was last heard 3m20s ago",
		{Revision: 41, Age: time.Second / 2}:   "as of revision 41; a leader was last heard 0.5s ago",
		{Revision: 41, Never: true}:            "as of revision 41; no leader was heard since the node started",
		{Revision: 41}:                         "as of revision 41; the leader answered",
		{Never: true}:                          "from a replica; no leader was heard since the node started",
	} {
		if got := staleText(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
