package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"

	"google.golang.org/grpc/codes"
)

// serveTunnels plays an agent: it echoes every byte, then closes its side.
func (a *testAgent) serveTunnels(node int, fail string) (stop func()) {
	ctx, cancel := context.WithCancel(a.ctx)
	ctl := agentv1.NewControlClient(a.b.conn(node, &a.cert))
	offers, err := ctl.Tunnels(ctx, &agentv1.TunnelsRequest{})
	if err != nil {
		a.b.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			o, err := offers.Recv()
			if err != nil {
				return
			}
			s, err := ctl.Tunnel(ctx)
			if err != nil {
				return
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				if s.Send(&agentv1.TunnelData{TunnelId: o.GetTunnelId(), Error: fail}) != nil || fail != "" {
					_, _ = s.Recv()
					return
				}
				for {
					m, err := s.Recv()
					if err != nil {
						return
					}
					if len(m.GetData()) > 0 && s.Send(&agentv1.TunnelData{Data: bytes.ToUpper(m.GetData())}) != nil {
						return
					}
					if m.GetCloseWrite() {
						_ = s.Send(&agentv1.TunnelData{Data: []byte("BYE"), CloseWrite: true})
						_, _ = s.Recv()
						return
					}
				}
			}()
		}
	}()
	a.b.eventually("the agent's stream is registered", func() bool { return a.b.nodes[node].api.tunnels.link([]string{a.id}) != nil })
	return func() { cancel(); wg.Wait() }
}

func activeServer(t *testing.T, nodes int) (*bed, *testAgent) {
	t.Helper()
	b, a := rentable(t, nodes)
	if _, err := b.user(0).CreateServer(b.token("mona", metal.RoleMember, testProject), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	a.run("web-1")
	return b, a
}

// tunnel opens a tunnel and waits for the first answer.
func tunnelTo(b *bed, node int, ctx context.Context, ref string, port uint32) (bmcv1.Servers_TunnelClient, error) {
	s, err := b.user(node).Tunnel(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.Send(&bmcv1.TunnelRequest{Ref: ref, Port: port}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	m, err := s.Recv()
	if err != nil {
		return nil, err
	}
	if !m.GetConnected() {
		return nil, errors.New("not connected")
	}
	return s, nil
}

func TestTunnel(t *testing.T) {
	b, a := activeServer(t, 2)
	mona := b.token("mona", metal.RoleMember, testProject)
	for node := range 2 {
		stop := a.serveTunnels(node, "")
		s, err := tunnelTo(b, node, mona, "web-1", 22)
		if err != nil {
			t.Fatal(err)
		}
		blob := bytes.Repeat([]byte("abcdefgh"), 16<<10)
		var got bytes.Buffer
		var wg sync.WaitGroup
		wg.Add(1)
		go func() { // more than any window: the sender is held back, nothing is lost
			defer wg.Done()
			for range 32 {
				if err := s.Send(&bmcv1.TunnelRequest{Data: blob}); err != nil {
					t.Error(err)
					return
				}
			}
			if err := s.Send(&bmcv1.TunnelRequest{CloseWrite: true}); err != nil {
				t.Error(err)
			}
		}()
		for {
			m, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			got.Write(m.GetData())
			if m.GetCloseWrite() {
				break
			}
		}
		wg.Wait()
		want := append(bytes.Repeat(bytes.ToUpper(blob), 32), "BYE"...)
		if !bytes.Equal(got.Bytes(), want) {
			t.Fatalf("%d bytes, want %d", got.Len(), len(want))
		}
		if _, err := s.Recv(); !errors.Is(err, io.EOF) {
			t.Fatalf("both sides have closed: %v", err)
		}
		stop()
	}
}

func TestTunnelRefusals(t *testing.T) {
	b, a := activeServer(t, 1)
	mona := b.token("mona", metal.RoleMember, testProject)
	_, err := tunnelTo(b, 0, mona, "web-1", 22)
	refused(t, err, codes.Unavailable, metal.CodeNoAgent, "bmc explain web-1")
	_, err = tunnelTo(b, 0, mona, "web-1", 8080)
	refused(t, err, codes.PermissionDenied, metal.CodeDenied, "bmc login web-1")
	_, err = tunnelTo(b, 0, mona, "web-1", 0)
	refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
	_, err = tunnelTo(b, 0, b.token("stan", metal.RoleMember, otherProj), "web-1", 22)
	refused(t, err, codes.NotFound, metal.CodeNotFound, "")
	b.inventory("r1", 1, 2)
	_, err = tunnelTo(b, 0, b.admin(), "r1-u02", 22)
	refused(t, err, codes.FailedPrecondition, metal.CodeWrongState, "bmc explain")

	stop := a.serveTunnels(0, "connection refused")
	_, err = tunnelTo(b, 0, mona, "web-1", 22)
	refused(t, err, codes.FailedPrecondition, metal.CodeNotReady, "")
	stop()
	stop = a.serveTunnels(0, "")
	if _, err = tunnelTo(b, 0, b.admin(), "web-1", 8080); err != nil { // operators reach any port
		t.Fatal(err)
	}
	// An agent cannot take what was offered to another.
	other := b.join("a2", "r1", 0)
	ts, err := other.ctl.Tunnel(other.ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = ts.Send(&agentv1.TunnelData{TunnelId: "tun-whatever"})
	_, err = ts.Recv()
	refused(t, err, codes.NotFound, metal.CodeNotFound, "")
	stop()
}

// The agent dies under an open tunnel: the user is told, and nothing hangs.
func TestTunnelAgentDies(t *testing.T) {
	b, a := activeServer(t, 1)
	stop := a.serveTunnels(0, "")
	s, err := tunnelTo(b, 0, b.admin(), "web-1", 22)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	_, err = s.Recv()
	refused(t, err, codes.Unavailable, metal.CodeNoAgent, "bmc explain web-1")
	b.eventually("the tunnel is released", func() bool {
		ts := b.nodes[0].api.tunnels
		ts.mu.Lock()
		defer ts.mu.Unlock()
		return ts.open == 0 && len(ts.waiting) == 0 && len(ts.links) == 0
	})
}

// Where gossip does not pass, an agent that is connected counts as alive.
func TestAgentAliveWithoutGossip(t *testing.T) {
	b, a := activeServer(t, 1)
	alive := func() bool {
		resp, err := b.user(0).inv.ListAgents(b.admin(), &bmcv1.ListAgentsRequest{})
		if err != nil || len(resp.GetAgents()) != 1 {
			t.Fatalf("%v, %v", resp, err)
		}
		return resp.GetAgents()[0].GetAlive()
	}
	if alive() {
		t.Error("an agent that nobody has heard of is alive")
	}
	stop := a.serveTunnels(0, "")
	b.eventually("the agent is alive", alive)
	stop()
	b.eventually("the agent is gone", func() bool { return !alive() })
}
