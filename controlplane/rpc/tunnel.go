package rpc

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"

	"google.golang.org/grpc"
)

// memberPort is the only port that members reach through a tunnel; operators
// reach any. A tunnel bypasses whatever guards the provisioning network.
const memberPort = 22

// Tunnel carries a user's TCP connection to a server through its rack's agent.
func (s *servers) Tunnel(stream grpc.BidiStreamingServer[bmcv1.TunnelRequest, bmcv1.TunnelResponse]) error {
	ctx := stream.Context()
	head, err := stream.Recv()
	if err != nil {
		return err
	}
	v, err := s.linearizable(ctx)
	if err != nil {
		return err
	}
	srv, err := s.resolve(ctx, v, head.GetRef())
	if err != nil {
		return err
	}
	if err := mayTunnel(caller(ctx), srv, head.GetPort()); err != nil {
		return err
	}
	id, err := s.newID("tun")
	if err != nil {
		return err
	}
	offer := &agentv1.TunnelOffer{TunnelId: id, ServerId: srv.ID, Port: head.GetPort()}
	t, release, err := s.tunnels.offer(ctx, agentsOf(v, srv.RackID), offer)
	if err != nil {
		return noAgent(err, srv)
	}
	defer release()
	side, err := t.accepted(ctx)
	if err != nil {
		return noAgent(err, srv)
	}
	if err := stream.Send(&bmcv1.TunnelResponse{Connected: true}); err != nil {
		return err
	}
	if len(head.GetData()) > 0 {
		if err := side.Send(&agentv1.TunnelData{Data: head.GetData()}); err != nil {
			return err
		}
	}
	return s.pump(ctx, stream, side, srv)
}

// mayTunnel decides by state and port; the caller sees the server already.
func mayTunnel(id *identity, srv *metal.Server, port uint32) error {
	switch {
	case port == 0 || port > 65535:
		return metal.Invalid("port", "must be 1 to 65535")
	case srv.Rental == nil || srv.Rental.Released || srv.State != metal.StateActive:
		return metal.Errorf(metal.CodeWrongState, "%s is %s: only an active server can be reached", refName(srv), srv.State).
			WithHint("bmc explain %s", refName(srv))
	case port != memberPort && !id.operates():
		return metal.Errorf(metal.CodeDenied, "members reach port %d only", memberPort).WithHint("bmc login %s", refName(srv))
	}
	return nil
}

func noAgent(err error, srv *metal.Server) error {
	if metal.CodeOf(err) != metal.CodeNoAgent {
		return err
	}
	var e *metal.Error
	errors.As(err, &e)
	return e.WithHint("bmc explain %s", refName(srv))
}

// accepted waits for the agent to take the offer and for its first answer.
func (t *tunnel) accepted(ctx context.Context) (agentSide, error) {
	timer := time.NewTimer(tunnelDialWait)
	defer timer.Stop()
	select {
	case got := <-t.taken:
		if got.failure != "" {
			return nil, metal.Errorf(metal.CodeNotReady, "the rack's agent could not connect: %s", got.failure)
		}
		return got.side, nil
	case <-timer.C:
		return nil, metal.Errorf(metal.CodeNoAgent, "the rack's agent did not answer within %s", tunnelDialWait)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pump copies both ways until both directions have ended, one fails, or nothing
// moves for too long. Its goroutines end with their streams, which end when
// both handlers have returned; the API waits for them at Close.
func (s *servers) pump(ctx context.Context, user grpc.BidiStreamingServer[bmcv1.TunnelRequest, bmcv1.TunnelResponse], agent agentSide, srv *metal.Server) error {
	var moved atomic.Int64
	ends := make(chan error, 2)
	up := func() error {
		for {
			m, err := user.Recv()
			if errors.Is(err, io.EOF) {
				return agent.Send(&agentv1.TunnelData{CloseWrite: true})
			}
			if err != nil {
				return err
			}
			moved.Add(1)
			if len(m.GetData()) > 0 {
				if err := agent.Send(&agentv1.TunnelData{Data: m.GetData()}); err != nil {
					return err
				}
			}
			if m.GetCloseWrite() {
				return agent.Send(&agentv1.TunnelData{CloseWrite: true})
			}
		}
	}
	down := func() error {
		for {
			m, err := agent.Recv()
			if errors.Is(err, io.EOF) {
				return user.Send(&bmcv1.TunnelResponse{CloseWrite: true})
			}
			if err != nil {
				return metal.Errorf(metal.CodeNoAgent, "the tunnel's agent went away").WithHint("bmc explain %s", refName(srv))
			}
			if m.GetError() != "" {
				return metal.Errorf(metal.CodeNotReady, "the rack's agent could not connect: %s", m.GetError())
			}
			moved.Add(1)
			if len(m.GetData()) > 0 {
				if err := user.Send(&bmcv1.TunnelResponse{Data: m.GetData()}); err != nil {
					return err
				}
			}
			if m.GetCloseWrite() {
				return user.Send(&bmcv1.TunnelResponse{CloseWrite: true})
			}
		}
	}
	if !s.spawn(func() { ends <- up() }) || !s.spawn(func() { ends <- down() }) {
		return context.Canceled
	}
	return waitEnds(ctx, ends, &moved)
}

func waitEnds(ctx context.Context, ends <-chan error, moved *atomic.Int64) error {
	idle := time.NewTicker(tunnelIdle)
	defer idle.Stop()
	last := moved.Load()
	for open := 2; open > 0; {
		select {
		case err := <-ends:
			if err != nil {
				return err
			}
			open--
		case <-ctx.Done():
			return ctx.Err()
		case <-idle.C:
			now := moved.Load()
			if now == last {
				return metal.Errorf(metal.CodeDeadline, "the tunnel was idle for %s", tunnelIdle)
			}
			last = now
		}
	}
	return nil
}

// Tunnels tells an agent which tunnels to dial, while the stream is open.
func (s *control) Tunnels(_ *agentv1.TunnelsRequest, stream grpc.ServerStreamingServer[agentv1.TunnelOffer]) error {
	ctx := stream.Context()
	l := s.tunnels.connect(ctx, caller(ctx).agent)
	defer s.tunnels.disconnect(l)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case o := <-l.offers:
			if err := stream.Send(o); err != nil {
				return err
			}
		}
	}
}

// Tunnel is the agent's half: its first message names the tunnel and, when the
// agent could not dial, says why.
func (s *control) Tunnel(stream agentSide) error {
	head, err := stream.Recv()
	if err != nil {
		return err
	}
	t, err := s.tunnels.take(caller(stream.Context()).agent, head, stream)
	if err != nil {
		return err
	}
	select {
	case <-t.done:
		return nil
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}
