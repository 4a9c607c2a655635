package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"bmc/agent/cache"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/manifest"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

const (
	partSize   = 256 << 10       // bytes of a chunk in one message
	stillHere  = time.Second     // how often an agent that fetches says so
	peerSilent = 5 * time.Second // then the other agent counts as dead
	maxPeers   = 16
)

// peers are the connections to the other agents of our racks, of which the leader
// tells whenever a lease is asked for.
type peers struct {
	self  string // agent ID
	creds *credentials
	log   *slog.Logger

	mu  sync.Mutex
	all map[string]*peerAgent // by agent ID
}

func newPeers(self string, creds *credentials, log *slog.Logger) *peers {
	return &peers{self: self, creds: creds, log: log, all: make(map[string]*peerAgent)}
}

// know takes the present agents of all our racks, drops others, and returns them as
// the cache wants them. It dials nobody yet.
func (p *peers) know(agents []*agentv1.Endpoint) []cache.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []cache.Peer
	now := make(map[string]bool)
	for _, e := range agents {
		id, addr := e.GetAgentId(), net.JoinHostPort(e.GetAddress(), strconv.Itoa(int(e.GetTlsPort())))
		if id == "" || id == p.self || now[id] || len(now) >= maxPeers {
			continue
		}
		o := p.all[id]
		if o != nil && o.addr != addr {
			_ = o.conn.Close() // what is under way there fails, and is had elsewhere
			o = nil
		}
		if o == nil {
			var err error
			if o, err = p.connect(id, addr); err != nil {
				p.log.Warn("agent's address is unusable", "agent", id, "addr", addr, "err", err)
				continue
			}
			p.all[id] = o
		}
		now[id] = true
		out = append(out, o)
	}
	for id, o := range p.all {
		if !now[id] {
			_ = o.conn.Close()
			delete(p.all, id)
		}
	}
	return out
}

func (p *peers) connect(id, addr string) (*peerAgent, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(grpccreds.NewTLS(p.creds.agentClient(id))),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 4 * time.Second}),
		grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(16<<20),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
	if err != nil {
		return nil, err
	}
	return &peerAgent{id: id, addr: addr, conn: conn, client: agentv1.NewPeersClient(conn)}, nil
}

func (p *peers) close() { p.know(nil) }

// peerAgent implements cache.Peer.
type peerAgent struct {
	id, addr string
	conn     *grpc.ClientConn
	client   agentv1.PeersClient
}

func (p *peerAgent) ID() string { return p.id }

var errPeerSilent = fmt.Errorf("it has been silent for %v", peerSilent)

// Chunk waits for the first bytes.
func (p *peerAgent) Chunk(ctx context.Context, d manifest.Digest, fetch bool) (io.ReadCloser, int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	b := &peerBody{ctx: ctx, cancel: cancel, silent: time.AfterFunc(peerSilent, func() { cancel(errPeerSilent) })}
	stream, err := p.client.Chunk(ctx, &agentv1.ChunkRequest{Digest: d[:], Fetch: fetch})
	b.stream = stream
	for err == nil && len(b.rest) == 0 {
		err = b.receive()
	}
	if err != nil {
		_ = b.Close()
		return nil, 0, b.plain(err)
	}
	return b, b.size, nil
}

// peerBody is a chunk on its way here.
type peerBody struct {
	ctx    context.Context //nolint:containedctx // of one chunk, as the body is
	cancel context.CancelCauseFunc
	silent *time.Timer
	stream grpc.ServerStreamingClient[agentv1.ChunkPart]
	size   int64
	rest   []byte
}

func (b *peerBody) receive() error {
	part, err := b.stream.Recv()
	if err != nil {
		return err
	}
	b.silent.Reset(peerSilent)
	b.rest = part.GetData()
	b.size = max(b.size, part.GetSize())
	return nil
}

func (b *peerBody) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		if err := b.receive(); errors.Is(err, io.EOF) {
			return 0, io.EOF
		} else if err != nil {
			return 0, b.plain(err)
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// Close gives up what has not been read.
func (b *peerBody) Close() error {
	b.silent.Stop()
	b.cancel(nil)
	return nil
}

// plain tells the other agent's no, which is about the chunk, from its failure.
func (b *peerBody) plain(err error) error {
	if errors.Is(context.Cause(b.ctx), errPeerSilent) {
		return errPeerSilent
	}
	if refusal, ok := rpcerr.Decode(err); ok {
		return fmt.Errorf("%w: %w", cache.ErrElsewhere, refusal)
	}
	if status.Code(err) == codes.NotFound {
		return cache.ErrElsewhere
	}
	return err
}

// peerService implements the Peers service.
type peerService struct {
	agentv1.UnimplementedPeersServer
	cluster string
	cache   *cache.Cache
	racks   []*rack
}

func (s *peerService) Chunk(req *agentv1.ChunkRequest, stream grpc.ServerStreamingServer[agentv1.ChunkPart]) error {
	if !s.isAgent(stream.Context()) {
		return rpcerr.Encode(metal.Errorf(metal.CodeUnauthenticated, "chunks are for agents of this cluster"), "")
	}
	d, err := manifest.DigestFromBytes(req.GetDigest())
	if err != nil {
		return rpcerr.Encode(err, "")
	}
	f, release, err := s.open(stream, d, req.GetFetch())
	if errors.Is(err, cache.ErrElsewhere) {
		return status.Error(codes.NotFound, err.Error())
	}
	if err != nil {
		return rpcerr.Encode(err, "")
	}
	defer release()
	return send(stream, f)
}

// open has the caller hear that it is being worked on.
func (s *peerService) open(stream grpc.ServerStreamingServer[agentv1.ChunkPart], d manifest.Digest, fetch bool) (*os.File, func(), error) {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	type opened struct {
		f       *os.File
		release func()
		err     error
	}
	result := make(chan opened, 1)
	go func() { // ends with ctx
		var o opened
		o.f, o.release, o.err = s.cache.OpenForPeer(ctx, d, fetch)
		result <- o
	}()
	tick := time.NewTicker(stillHere)
	defer tick.Stop()
	for {
		select {
		case o := <-result:
			return o.f, o.release, o.err
		case <-tick.C:
			if err := stream.Send(&agentv1.ChunkPart{}); err != nil {
				cancel()
				if o := <-result; o.err == nil {
					o.release()
				}
				return nil, nil, err
			}
		}
	}
}

func send(stream grpc.ServerStreamingServer[agentv1.ChunkPart], f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return rpcerr.Encode(err, "")
	}
	part := &agentv1.ChunkPart{Size: info.Size()}
	buf := make([]byte, partSize)
	for {
		n, err := io.ReadFull(f, buf)
		if n > 0 {
			part.Data = buf[:n]
			if err := stream.Send(part); err != nil { // it has been encoded when this returns
				return err
			}
			part.Size = 0
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return rpcerr.Encode(err, "")
		}
	}
}

// isAgent looks at the certificate, which TLS has verified.
func (s *peerService) isAgent(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	info, ok := p.AuthInfo.(grpccreds.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return false
	}
	cluster, _, ok := peerID(info.State.VerifiedChains[0][0].URIs, roleAgent)
	return ok && cluster == s.cluster
}
