package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/pause"
	"bmc/metal"
)

const (
	tunnelDial = 10 * time.Second
	tunnelMax  = 256 // at a time
	tunnelBuf  = 32 << 10
)

type tunnelStream = grpc.BidiStreamingClient[agentv1.TunnelData, agentv1.TunnelData]

// tunnels takes a node's offers until ctx ends.
func (a *Agent) tunnels(ctx context.Context, n *node) {
	wait := watchPauseMin
	for ctx.Err() == nil {
		if a.takeOffers(ctx, n) {
			wait = watchPauseMin
		}
		if pause.For(ctx, wait) != nil {
			return
		}
		wait = min(2*wait, watchPauseMax)
	}
}

func (a *Agent) takeOffers(ctx context.Context, n *node) (some bool) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stream, err := n.control.Tunnels(ctx, &agentv1.TunnelsRequest{})
	if err != nil {
		return false
	}
	for {
		offer, err := stream.Recv()
		if err != nil {
			return some
		}
		some = true
		select {
		case a.tunnelSlots <- struct{}{}:
		default:
			a.log.Warn("tunnel refused, too many are open", "server", offer.GetServerId())
			continue
		}
		wg.Go(func() {
			defer func() { <-a.tunnelSlots }()
			if err := a.tunnel(ctx, n, offer); err != nil && ctx.Err() == nil {
				a.log.Debug("tunnel ended", "server", offer.GetServerId(), "err", err)
			}
		})
	}
}

// tunnel dials a server of our racks and carries bytes both ways.
func (a *Agent) tunnel(ctx context.Context, n *node, offer *agentv1.TunnelOffer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, dialErr := a.dialServer(ctx, offer)
	stream, err := n.control.Tunnel(ctx)
	if err != nil {
		return errors.Join(err, closeConn(conn))
	}
	if dialErr != nil {
		err := stream.Send(&agentv1.TunnelData{TunnelId: offer.GetTunnelId(), Error: dialErr.Error()})
		if err == nil {
			_, err = stream.Recv() // until the node has taken it
		}
		return errors.Join(dialErr, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := stream.Send(&agentv1.TunnelData{TunnelId: offer.GetTunnelId()}); err != nil {
		return err
	}
	return carry(conn, stream, cancel)
}

func closeConn(c net.Conn) error {
	if c == nil {
		return nil
	}
	return c.Close()
}

// dialServer's errors are shown to users.
func (a *Agent) dialServer(ctx context.Context, offer *agentv1.TunnelOffer) (net.Conn, error) {
	_, s, ok := a.server(offer.GetServerId())
	if !ok || s.GetAddress() == "" {
		return nil, metal.Errorf(metal.CodeNotFound, "the agent does not know the server's address")
	}
	d := net.Dialer{Timeout: tunnelDial}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(s.GetAddress(), strconv.Itoa(int(offer.GetPort()))))
	if err != nil {
		return nil, metal.Errorf(metal.CodeNotReady, "%v", err)
	}
	return conn, nil
}

// carry copies until the node ends the stream or one direction fails.
func carry(conn net.Conn, stream tunnelStream, cancel context.CancelFunc) error {
	var wg sync.WaitGroup
	var up error
	wg.Go(func() {
		if up = fromServer(conn, stream); up != nil {
			cancel() // and with it the other direction
		}
	})
	down := toServer(conn, stream)
	cancel() // the stream has ended, and the tunnel with it
	wg.Wait()
	return errors.Join(up, down)
}

func fromServer(conn net.Conn, stream tunnelStream) error {
	buf := make([]byte, tunnelBuf)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := stream.Send(&agentv1.TunnelData{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return stream.Send(&agentv1.TunnelData{CloseWrite: true})
		}
		if err != nil {
			return err
		}
	}
}

// toServer always returns an error: io.EOF when the node has ended the stream.
func toServer(conn net.Conn, stream tunnelStream) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if len(m.GetData()) > 0 {
			if _, err := conn.Write(m.GetData()); err != nil {
				return err
			}
		}
		if m.GetCloseWrite() {
			if half, ok := conn.(interface{ CloseWrite() error }); ok {
				if err := half.CloseWrite(); err != nil {
					return err
				}
			}
		}
	}
}
