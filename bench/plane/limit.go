package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"bmc/bench/measure"
	"bmc/bench/process"
)

// The limit of what is called over gRPC: servers that decide nothing and keep
// nothing, in processes of their own, with the same TLS, as many of them, as many
// clients and bytes as long.

const (
	echoService = "bench.Echo"
	echoMethod  = "/" + echoService + "/Call"
	echoReady   = 10 * time.Second
	echoWindow  = 4 << 20 // of a connection; what our client and etcd's are given for a list
)

// echoes are the limit's servers.
type echoes struct {
	certs    *measure.Certificates
	addrs    []string
	children []*process.Child
}

// startEchoes runs this very program as servers. On an error none is left running.
func startEchoes(ctx context.Context, dir string) (_ *echoes, err error) {
	e := &echoes{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start the limit's servers: %w", err), e.close())
		}
	}()
	if e.certs, err = measure.NewCertificates(filepath.Join(dir, "tls")); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for i := range nodes {
		addr, err := process.FreeAddress()
		if err != nil {
			return nil, err
		}
		child, err := process.Start(filepath.Join(dir, fmt.Sprintf("echo%d.log", i)), self, "echo", addr, e.certs.Cert, e.certs.Key)
		if err != nil {
			return nil, err
		}
		e.addrs, e.children = append(e.addrs, addr), append(e.children, child)
		if err := process.Until(ctx, "the limit's server", func() error { return e.answers(ctx, i) }); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func (e *echoes) answers(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, echoReady)
	defer cancel()
	c, err := e.open(0, 4, 4)(i)
	if err != nil {
		return err
	}
	return errors.Join(c.call(ctx, 0), c.close())
}

func (e *echoes) pids() (pids []int) {
	for _, c := range e.children {
		pids = append(pids, c.PID())
	}
	return pids
}

func (e *echoes) close() error {
	var errs []error
	for _, c := range e.children {
		errs = append(errs, c.End())
	}
	return errors.Join(errs...)
}

// serveEcho is such a server until it is killed: args are its address, certificate
// and key. It answers as many bytes as the request's first four say.
func serveEcho(args []string) error {
	if len(args) != 3 {
		return errors.New("echo: want ADDRESS CERTIFICATE KEY")
	}
	cert, err := tls.LoadX509KeyPair(args[1], args[2])
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})),
		grpc.ForceServerCodec(rawBytes{}), grpc.MaxSendMsgSize(1<<30),
		// What makes an echo quickest: see rpc.ServerOptions.
		grpc.InitialWindowSize(echoWindow), grpc.InitialConnWindowSize(echoWindow), grpc.NumStreamWorkers(256))
	s.RegisterService(&grpc.ServiceDesc{ServiceName: echoService, HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "Call",
		Handler: func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var req []byte
			if err := dec(&req); err != nil {
				return nil, err
			}
			if len(req) < 4 {
				return nil, errors.New("a request says how long its answer is")
			}
			return make([]byte, binary.BigEndian.Uint32(req)), nil
		}}}}, nil)
	return s.Serve(l)
}

// rawBytes sends bytes as they are.
type rawBytes struct{}

func (rawBytes) Name() string { return "proto" }

func (rawBytes) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("cannot send %T", v)
	}
	return b, nil
}

func (rawBytes) Unmarshal(b []byte, v any) error {
	out, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("cannot receive into %T", v)
	}
	*out = append([]byte(nil), b...)
	return nil
}

// echoer is a client of one of them.
type echoer struct {
	conn *grpc.ClientConn
	req  []byte
}

// open is a client that asks the server i, or of the first few alone: spread over
// so many, 0 for all. Requests and answers have that many bytes.
func (e *echoes) open(spread, request, answer int) func(i int) (caller, error) {
	if spread == 0 {
		spread = nodes
	}
	return func(i int) (caller, error) {
		conn, err := grpc.NewClient("passthrough:///"+e.addrs[i%spread],
			grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: e.certs.Pool, MinVersion: tls.VersionTLS13})),
			grpc.WithInitialWindowSize(echoWindow), grpc.WithInitialConnWindowSize(echoWindow),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(rawBytes{}), grpc.MaxCallRecvMsgSize(1<<30)))
		req := binary.BigEndian.AppendUint32(nil, uint32(answer)) //nolint:gosec // sizes of this program
		return &echoer{conn, append(req, make([]byte, max(request-4, 0))...)}, err
	}
}

func (e *echoer) call(ctx context.Context, _ int) error {
	var out []byte
	return e.conn.Invoke(ctx, echoMethod, e.req, &out)
}

func (e *echoer) close() error { return e.conn.Close() }
