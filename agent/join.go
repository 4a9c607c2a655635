package agent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	grpccreds "google.golang.org/grpc/credentials"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/jointoken"
	"bmc/internal/pause"
	"bmc/internal/rpcerr"
	"bmc/internal/version"
	"bmc/metal"
)

const (
	joinTimeout  = 15 * time.Second
	joinPause    = 3 * time.Second
	maxTokenFile = 64 << 10
)

// pendingJoin is the key and the request of a join under way. A token works
// once: only the same request may be sent again when its answer was lost, so it
// outlives the process.
type pendingJoin struct {
	Key []byte `json:"key"`
	CSR []byte `json:"csr"`
}

// join spends the token at one of its seeds and stores the identity. It repeats
// while no seed answers; a refusal is returned.
func join(ctx context.Context, cfg Config, log *slog.Logger) (*identity, error) {
	token, err := readToken(cfg.TokenFile)
	if err != nil {
		return nil, err
	}
	if err := token.Check(jointoken.RoleAgent, time.Now()); err != nil {
		return nil, err
	}
	pending, err := loadPending(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	for {
		var lastErr error
		for _, seed := range append(token.Seeds, cfg.Nodes...) {
			id, err := joinAt(ctx, seed, token, pending, cfg.Name)
			if err == nil {
				return id, errors.Join(id.save(cfg.DataDir), os.Remove(pendingPath(cfg.DataDir)))
			}
			lastErr = err
			var refusal *metal.Error
			if errors.As(err, &refusal) && decided(refusal.Code) {
				return nil, refusal
			}
		}
		log.Warn("no node answers the join", "nodes", token.Seeds, "err", lastErr)
		if pause.For(ctx, joinPause) != nil {
			return nil, ctx.Err()
		}
	}
}

func readToken(path string) (jointoken.Token, error) {
	if path == "" {
		return jointoken.Token{}, metal.Invalid("token_file", "is missing, and this agent has not joined a cluster yet").
			WithHint("bmc cluster join-token --role agent --rack RACK")
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > maxTokenFile {
		return jointoken.Token{}, metal.Invalid("token_file", "%s cannot be read", path).
			WithHint("bmc cluster join-token --role agent --rack RACK")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return jointoken.Token{}, metal.Invalid("token_file", "%s cannot be read", path)
	}
	return jointoken.Parse(string(data))
}

func pendingPath(dataDir string) string { return filepath.Join(dataDir, "joining.json") }

func loadPending(dataDir string) (*pendingJoin, error) {
	p := &pendingJoin{}
	data, err := os.ReadFile(pendingPath(dataDir))
	if err == nil && json.Unmarshal(data, p) == nil && len(p.CSR) > 0 {
		return p, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if p.Key, p.CSR, err = newKey(); err != nil {
		return nil, err
	}
	if data, err = json.Marshal(p); err != nil {
		return nil, err
	}
	return p, writeFile(pendingPath(dataDir), data)
}

func joinAt(ctx context.Context, seed string, token jointoken.Token, pending *pendingJoin, name string) (*identity, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+seed, grpc.WithTransportCredentials(grpccreds.NewTLS(pinned(token.CASHA256))), grpc.WithNoProxy())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	resp, err := agentv1.NewEnrollmentClient(conn).JoinAgent(ctx, &agentv1.JoinAgentRequest{
		TokenSecret: token.Secret, Csr: pending.CSR, Name: name, Software: version.String(),
	})
	if err != nil {
		if e, ok := rpcerr.Decode(err); ok {
			return nil, e
		}
		return nil, err
	}
	if sum := sha256.Sum256(resp.GetCa()); hex.EncodeToString(sum[:]) != token.CASHA256 {
		return nil, fmt.Errorf("node %s gave another CA than the token's", seed)
	}
	return &identity{
		AgentID: resp.GetAgentId(), ClusterID: resp.GetClusterId(), Nodes: resp.GetNodes(), GossipKey: resp.GetGossipKey(),
		CA: resp.GetCa(), Certificate: resp.GetCertificate(), Key: pending.Key,
	}, nil
}

// pinned trusts a node under the CA whose hash the token has; the node sends
// that CA along.
func pinned(caSHA256 string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection checks against the pinned CA
		VerifyConnection: func(s tls.ConnectionState) error {
			for _, cert := range s.PeerCertificates {
				sum := sha256.Sum256(cert.Raw)
				if !cert.IsCA || hex.EncodeToString(sum[:]) != caSHA256 || len(cert.URIs) != 1 {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(cert)
				return verifyNode(s.PeerCertificates, roots, cert.URIs[0].Host)
			}
			return errors.New("the node is not of the cluster that the join token is for")
		},
	}
}

// decided tells a refusal that asking again does not change from trouble that
// may pass.
func decided(code metal.Code) bool {
	switch code {
	case metal.CodeNoLeader, metal.CodeUnknownOutcome, metal.CodeDeadline, metal.CodeCancelled, metal.CodeInternal, metal.CodeNoAgent, "":
		return false
	}
	return true
}
