package controlplane

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"bmc/controlplane/consensus"
	"bmc/controlplane/trust"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/metal"
)

const initWait = 30 * time.Second

// Init makes a new cluster whose only node is this one: CA, keyring, the
// project "default" and an administrator's token, which is written to
// tokenFile and nowhere else. It refuses where anything exists already.
func Init(ctx context.Context, c Config, tokenFile string) (clusterID string, err error) {
	if err := c.checkEmpty(); err != nil {
		return "", err
	}
	for what, path := range map[string]string{"the keyring": c.KeyringFile, "an administrator's token": tokenFile} {
		if _, err := os.Lstat(path); err == nil {
			return "", metal.Errorf(metal.CodeWrongState, "%s exists: init would have to overwrite %s; nothing was changed", path, what).WithHint("mv %s %s.old", path, path)
		}
	}
	if err := c.makeDataDir(); err != nil {
		return "", err
	}
	rec, first, tokenText, err := c.found()
	if err != nil {
		return "", err
	}
	if err := c.firstCommand(ctx, rec, first); err != nil {
		return "", err
	}
	if err := trust.WriteFile(tokenFile, []byte(tokenText+"\n"), 0o600); err != nil {
		return "", err
	}
	if err := c.saveRecord(rec); err != nil {
		return "", err
	}
	return rec.ClusterID, nil
}

// found makes the cluster's secrets and this node's identity on disk, and the
// command that begins the log.
func (c *Config) found() (record, *logpb.InitCluster, string, error) {
	fail := func(err error) (record, *logpb.InitCluster, string, error) { return record{}, nil, "", err }
	clusterID, err1 := trust.NewID("bmc")
	nodeID, err2 := trust.NewID("node")
	projectID, err3 := trust.NewID("prj")
	text, tokenID, hash, err4 := trust.NewUserToken()
	keyring, err5 := trust.NewKeyring()
	ca, err6 := trust.NewCA(clusterID, time.Now())
	key, csr, err7 := trust.NewRequest(c.names()...)
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7); err != nil {
		return fail(err)
	}
	cert, err := ca.IssueNode(csr, nodeID, c.Advertise)
	if err != nil {
		return fail(err)
	}
	if keyring.CAKey, err = ca.KeyDER(); err != nil {
		return fail(err)
	}
	keyring.CA = ca.DER()
	keyHash, err := hashOf(cert)
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(trust.WriteKeyring(c.KeyringFile, keyring), c.writeIdentity(keyring, key, cert)); err != nil {
		return fail(err)
	}
	return record{ClusterID: clusterID, NodeID: nodeID, Name: c.Name}, &logpb.InitCluster{
		ClusterId: clusterID,
		Project:   &logpb.Project{Id: projectID, Name: "default"},
		Admin:     &logpb.Token{Id: tokenID, Hash: hash, Kind: "user", Name: "admin", Role: string(metal.RoleAdmin), Project: projectID},
		Node:      &logpb.Node{Id: nodeID, Name: c.Name, Address: c.Advertise, KeyHash: keyHash, Software: software()},
	}, text, nil
}

// writeIdentity puts the CA and this node's own certificate on disk.
func (c *Config) writeIdentity(ring *trust.Keyring, key *ecdsa.PrivateKey, cert []byte) error {
	return errors.Join(
		trust.WriteKeyDER(c.file(fileCAKey), ring.CAKey),
		trust.WriteCertificate(c.file(fileCA), ring.CA),
		trust.WriteKey(c.file(fileKey), key),
		trust.WriteCertificate(c.file(fileCert), cert))
}

// firstCommand bootstraps the log and applies its first command.
func (c *Config) firstCommand(ctx context.Context, rec record, first *logpb.InitCluster) error {
	ctx, cancel := context.WithTimeout(ctx, initWait)
	defer cancel()
	err := c.alone(ctx, rec.NodeID, true, func(node *consensus.Node) error {
		return system(ctx, node, &logpb.Command{Command: &logpb.Command_InitCluster{InitCluster: first}})
	})
	if err != nil {
		return fmt.Errorf("begin the log: %w", err)
	}
	return nil
}

// system proposes a command of the cluster's own.
func system(ctx context.Context, node *consensus.Node, cmd *logpb.Command) error {
	cmd.Header = &logpb.Header{Time: time.Now().UnixNano(), Principal: "system", Role: string(metal.RoleAdmin)}
	res, err := node.Propose(ctx, cmd)
	if err != nil {
		return err
	}
	if res.Err != nil {
		return res.Err
	}
	return nil
}

// alone opens this node's log as a member that talks to nobody, and runs do
// once it leads. With begin, the log is begun: this node is its only member.
func (c *Config) alone(ctx context.Context, nodeID string, begin bool, do func(*consensus.Node) error) (err error) {
	log := slog.New(slog.DiscardHandler) // an election of one is no news
	stores, err := consensus.OpenStores(c.DataDir, c.LogStore, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stores.Close()) }()
	conf, done := c.solo(nodeID, stores, log)
	defer func() { err = errors.Join(err, done()) }()
	lead := make(chan struct{})
	var once sync.Once
	conf.Leading = func(ctx context.Context, _ uint64) {
		once.Do(func() { close(lead) })
		<-ctx.Done()
	}
	if begin {
		if err := consensus.Bootstrap(conf); err != nil {
			return err
		}
	}
	node, err := consensus.Open(conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close(context.WithoutCancel(ctx))) }()
	select {
	case <-lead:
	case <-ctx.Done():
		return ctx.Err()
	}
	return do(node)
}

// solo is the configuration of a member whose network is this process.
func (c *Config) solo(nodeID string, stores *consensus.Stores, log *slog.Logger) (conf consensus.Config, done func() error) {
	_, transport := raft.NewInmemTransport(raft.ServerAddress(c.Advertise))
	return consensus.Config{ID: nodeID, FSM: fsm.New(fsm.Options{}), Logs: stores.Logs, Stable: stores.Stable,
		Snapshots: stores.Snapshots, Transport: transport, Log: log, Timing: consensus.Timing{Election: 200 * time.Millisecond}}, transport.Close
}
