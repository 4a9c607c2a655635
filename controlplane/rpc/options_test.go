package rpc

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// heard keeps what a connection has read.
type heard struct {
	net.Conn
	mu  sync.Mutex
	got bytes.Buffer
}

func (h *heard) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	h.mu.Lock()
	h.got.Write(b[:n])
	h.mu.Unlock()
	return n, err
}

// A node that measured its callers' windows would send a ping at nearly every call,
// which the caller answers: a third of what a read costs the two.
func TestCallsCauseNoPings(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer((&API{}).ServerOptions()...)
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	defer serving.Wait()
	defer s.Stop()
	var ear *heard
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(window), // or the client measures, too
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			ear = &heard{Conn: c}
			return ear, err
		}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	const calls = 5
	for range calls { // nobody answers: what arrives is counted all the same
		err := conn.Invoke(ctx, "/bmc.None/Call", &grpc_health_v1.HealthCheckRequest{Service: "any"}, &grpc_health_v1.HealthCheckResponse{})
		if status.Code(err) != codes.Unimplemented {
			t.Fatal(err)
		}
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	ear.mu.Lock()
	defer ear.mu.Unlock()
	answers, pings := 0, 0
	for frames := http2.NewFramer(nil, &ear.got); ; {
		f, err := frames.ReadFrame()
		if err != nil {
			break // all were read
		}
		switch f.(type) {
		case *http2.PingFrame:
			pings++
		case *http2.HeadersFrame:
			answers++
		}
	}
	if answers != calls || pings != 0 {
		t.Errorf("%d answers and %d pings to %d calls, want no ping", answers, pings, calls)
	}
}
