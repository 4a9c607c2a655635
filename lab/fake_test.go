package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/internal/config"
	"bmc/lab/s3"
)

// The test binary plays every program of a lab, by the name it is called with:
// bmc-lab for real, the daemons as small fakes that know who else runs from files
// in the lab's folder.
func TestMain(m *testing.M) {
	play := map[string]func(context.Context, []string) error{
		"bmc-lab": playLab, "bmc-controlplane": playNode, "bmc-agent": playAgent,
	}[filepath.Base(os.Args[0])]
	if play == nil {
		code := m.Run()
		for _, f := range afterTests {
			if err := f(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = max(code, 1)
			}
		}
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := play(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+":", err)
		os.Exit(1)
	}
}

// afterTests removes what several tests share.
var afterTests []func() error

func playLab(ctx context.Context, args []string) error {
	switch args[0] {
	case SuperviseCommand:
		return Supervise(ctx)
	case "chassis":
		out, err := NewClient(os.Getenv(dirVariable)).Chassis(ctx, args[1], args[2:])
		fmt.Print(string(out))
		return err
	case "s3":
		var c s3.Config
		f := flag.NewFlagSet("s3", flag.ContinueOnError)
		f.StringVar(&c.Listen, "listen", "", "")
		f.StringVar(&c.DataDir, "data", "", "")
		f.StringVar(&c.AccessKey, "access-key", "", "")
		f.StringVar(&c.SecretKeyFile, "secret-key-file", "", "")
		f.StringVar(&c.CertFile, "cert", "", "")
		f.StringVar(&c.KeyFile, "key", "", "")
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		return s3.Serve(ctx, c)
	}
	return fmt.Errorf("unknown command %v", args)
}

// option returns the value of --name in args.
func option(args []string, name string) string {
	for i, a := range args[:len(args)-1] {
		if a == "--"+name {
			return args[i+1]
		}
	}
	return ""
}

func playNode(ctx context.Context, args []string) error {
	var c nodeFile
	if err := config.Load(option(args, "config"), &c); err != nil {
		return err
	}
	if c.Name == os.Getenv("LAB_TEST_SICK_NODE") && args[0] == "run" {
		return errors.New("this node is sick")
	}
	switch args[0] {
	case "init":
		return errors.Join(os.MkdirAll(c.DataDir, 0o700), fakeCA(c.DataDir), os.WriteFile(option(args, "admin-token-file"), []byte("bmct_x_y\n"), 0o600))
	case "join":
		if raw, err := os.ReadFile(option(args, "token-file")); err != nil || string(raw) != "join-node\n" {
			return fmt.Errorf("token %q: %w", raw, err)
		}
		first := filepath.Join(c.DataDir, "..", "..", "cp1", "data")
		return errors.Join(os.MkdirAll(c.DataDir, 0o700), os.Symlink(filepath.Join(first, "ca.pem"), filepath.Join(c.DataDir, "ca.pem")),
			os.Symlink(filepath.Join(first, "ca.key"), filepath.Join(c.DataDir, "ca.key")))
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(c.DataDir, "ca.pem"), filepath.Join(c.DataDir, "ca.key"))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	f := &fakeNode{name: c.Name, dir: filepath.Dir(filepath.Dir(filepath.Dir(c.DataDir)))}
	bmcv1.RegisterClusterServer(srv, f)
	bmcv1.RegisterInventoryServer(srv, f)
	defer context.AfterFunc(ctx, srv.Stop)()
	if err := os.WriteFile(filepath.Join(c.DataDir, "running"), nil, 0o600); err != nil {
		return err
	}
	return srv.Serve(l)
}

func playAgent(ctx context.Context, args []string) error {
	var c agentFile
	if err := config.Load(option(args, "config"), &c); err != nil {
		return err
	}
	raw, err := os.ReadFile(c.TokenFile)
	if err != nil || string(raw) != "join-agent "+c.Racks[0].Name+"\n" {
		return fmt.Errorf("token %q: %w", raw, err)
	}
	if _, err := net.InterfaceByName(c.Racks[0].Interface); err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(c.DataDir, 0o700), os.WriteFile(filepath.Join(c.DataDir, "running"), nil, 0o600)); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// fakeCA makes one certificate that is everything.
func fakeCA(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(filepath.Join(dir, "ca.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

type fakeNode struct {
	bmcv1.UnimplementedClusterServer
	bmcv1.UnimplementedInventoryServer
	name, dir string
}

func (f *fakeNode) Status(context.Context, *bmcv1.StatusRequest) (*bmcv1.StatusResponse, error) {
	return &bmcv1.StatusResponse{LeaderId: "node-1", NodeId: f.name}, nil
}

func (f *fakeNode) running(kind string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(f.dir, kind, "*", "data", "running"))
	for i, p := range found {
		found[i] = filepath.Base(filepath.Dir(filepath.Dir(p)))
	}
	return found, err
}

func (f *fakeNode) Peers(context.Context, *bmcv1.PeersRequest) (*bmcv1.PeersResponse, error) {
	names, err := f.running("nodes")
	r := &bmcv1.PeersResponse{}
	for _, n := range names {
		r.Peers = append(r.Peers, &bmcv1.Peer{Name: n, Alive: true, Suffrage: "voter", Leader: n == "cp1"})
	}
	return r, err
}

func (f *fakeNode) CreateJoinToken(_ context.Context, req *bmcv1.CreateJoinTokenRequest) (*bmcv1.CreateJoinTokenResponse, error) {
	return &bmcv1.CreateJoinTokenResponse{Token: strings.TrimSpace("join-" + req.GetRole() + " " + strings.Join(req.GetRacks(), ","))}, nil
}

func (f *fakeNode) ApplyInventory(_ context.Context, req *bmcv1.ApplyInventoryRequest) (*bmcv1.ApplyInventoryResponse, error) {
	if len(req.GetRacks()) != 1 || len(req.GetServers()) != 0 {
		return nil, fmt.Errorf("inventory %v", req)
	}
	return &bmcv1.ApplyInventoryResponse{}, nil
}

func (f *fakeNode) ListAgents(context.Context, *bmcv1.ListAgentsRequest) (*bmcv1.ListAgentsResponse, error) {
	names, err := f.running("agents")
	r := &bmcv1.ListAgentsResponse{}
	for _, n := range names {
		r.Agents = append(r.Agents, &bmcv1.Agent{Name: n, Alive: true})
	}
	return r, err
}
