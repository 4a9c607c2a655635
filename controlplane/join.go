package controlplane

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	agentv1 "bmc/api/agent/v1"
	"bmc/controlplane/trust"
	"bmc/internal/jointoken"
	"bmc/internal/rpcerr"
	"bmc/internal/version"
	"bmc/metal"
)

const seedWait = 20 * time.Second // for one seed's answer; a joining member must be replicated

func software() string { return version.String() }

func hashOf(certDER []byte) ([]byte, error) {
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, err
	}
	return trust.KeyHash(cert), nil
}

// Join exchanges a join token for this node's identity. Run then makes it a
// member. When the answer was lost, joining again with the same token works:
// the request is kept until it is answered.
func Join(ctx context.Context, c Config, token jointoken.Token, log *slog.Logger) (clusterID string, err error) {
	mayExist := []string{fileKey}
	if _, err := os.Lstat(c.file(fileRequest)); err == nil { // an interrupted join goes on
		mayExist = append(mayExist, fileRequest, fileCA, fileCAKey, fileCert)
	}
	if err := c.checkEmpty(mayExist...); err != nil {
		return "", err
	}
	if err := token.Check(jointoken.RoleNode, time.Now()); err != nil {
		return "", err
	}
	if err := c.makeDataDir(); err != nil {
		return "", err
	}
	key, csr, err := c.joinRequest()
	if err != nil {
		return "", err
	}
	resp, err := askSeeds(ctx, token, &agentv1.JoinNodeRequest{TokenSecret: token.Secret, Csr: csr, Name: c.Name,
		Address: c.Advertise, Software: software()}, log)
	if err != nil {
		return "", err
	}
	if err := c.keepJoin(token, key, resp); err != nil {
		return "", err
	}
	return resp.GetClusterId(), nil
}

// joinRequest makes a key and a request, or finds those of an interrupted join.
func (c *Config) joinRequest() (*ecdsa.PrivateKey, []byte, error) {
	csr, err := os.ReadFile(c.file(fileRequest))
	if err == nil {
		key, err := trust.ReadKey(c.file(fileKey))
		if err != nil {
			return nil, nil, fmt.Errorf("go on with an interrupted join: %w", err)
		}
		return key, csr, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("read the join request: %w", err)
	}
	key, csr, err := trust.NewRequest(c.names()...)
	if err != nil {
		return nil, nil, err
	}
	if err := trust.WriteKey(c.file(fileKey), key); err != nil {
		return nil, nil, err
	}
	return key, csr, trust.WriteFile(c.file(fileRequest), csr, 0o600)
}

// askSeeds tries the seeds in turn. A refusal ends it; a seed that does not
// answer does not.
func askSeeds(ctx context.Context, token jointoken.Token, req *agentv1.JoinNodeRequest, log *slog.Logger) (*agentv1.JoinNodeResponse, error) {
	creds := credentials.NewTLS(trust.PinnedCA([]string{trust.ProtoGRPC}, token.MatchesCA))
	var last error
	for _, seed := range token.Seeds {
		resp, err := askSeed(ctx, seed, creds, req)
		if err == nil {
			return resp, nil
		}
		if e, ok := rpcerr.Decode(err); ok && e.Code != metal.CodeNoLeader && e.Code != metal.CodeUnknownOutcome {
			return nil, e
		}
		log.Warn("seed does not admit this node", "addr", seed, "err", err)
		last = err
	}
	return nil, (&metal.Error{Code: metal.CodeNoLeader, Message: "no node of the cluster admitted this one (tried " + strings.Join(token.Seeds, ", ") + ")", Err: last}).
		WithHint("bmc cluster status")
}

func askSeed(ctx context.Context, seed string, creds credentials.TransportCredentials, req *agentv1.JoinNodeRequest) (*agentv1.JoinNodeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, seedWait)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+seed, grpc.WithTransportCredentials(creds))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return agentv1.NewEnrollmentClient(conn).JoinNode(ctx, req)
}

// keepJoin checks the answer and writes it down, the record last.
func (c *Config) keepJoin(token jointoken.Token, key *ecdsa.PrivateKey, r *agentv1.JoinNodeResponse) error {
	if !token.MatchesCA(r.GetCa()) {
		return metal.Errorf(metal.CodeUnauthenticated, "the answer's CA is not the one that the token promises")
	}
	ca, err := trust.LoadCA(r.GetCa(), r.GetCaKey())
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(r.GetCertificate())
	if err != nil {
		return fmt.Errorf("parse this node's certificate: %w", err)
	}
	verifier, err := trust.NewVerifier(ca.Certificate())
	if err != nil {
		return err
	}
	id, err := verifier.Verify([]*x509.Certificate{leaf}, x509.ExtKeyUsageServerAuth, trust.RoleNode)
	if err != nil {
		return err
	}
	if id.ID != r.GetNodeId() || ca.ClusterID() != r.GetClusterId() || !key.PublicKey.Equal(leaf.PublicKey) {
		return errors.New("the answer's certificate is not for this node")
	}
	if err := c.keepKeyring(r.GetKeyring()); err != nil {
		return err
	}
	if err := errors.Join(
		trust.WriteKeyDER(c.file(fileCAKey), r.GetCaKey()),
		trust.WriteCertificate(c.file(fileCert), r.GetCertificate()),
		trust.WriteCertificate(c.file(fileCA), r.GetCa())); err != nil {
		return err
	}
	seeds := slices.DeleteFunc(slices.Clone(r.GetNodes()), func(a string) bool { return a == c.Advertise })
	if err := c.saveRecord(record{ClusterID: r.GetClusterId(), NodeID: r.GetNodeId(), Name: c.Name, Seeds: seeds}); err != nil {
		return err
	}
	return os.Remove(c.file(fileRequest))
}

// keepKeyring writes the cluster's keyring unless it is there already.
func (c *Config) keepKeyring(data []byte) error {
	k, err := trust.ParseKeyring(data)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(c.KeyringFile); errors.Is(err, fs.ErrNotExist) {
		return trust.WriteKeyring(c.KeyringFile, k)
	}
	old, err := trust.ReadKeyring(c.KeyringFile)
	if err != nil {
		return err
	}
	if !bytes.Equal(old.MACKey, k.MACKey) {
		return metal.Errorf(metal.CodeWrongState, "%s is the keyring of another cluster", c.KeyringFile).WithHint("mv %s %s.old", c.KeyringFile, c.KeyringFile)
	}
	return nil
}
