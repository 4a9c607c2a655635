package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
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
	caKey, err := ca.KeyDER()
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(
		trust.WriteKeyring(c.KeyringFile, keyring),
		trust.WriteKeyDER(c.file(fileCAKey), caKey),
		trust.WriteCertificate(c.file(fileCA), ca.DER()),
		trust.WriteKey(c.file(fileKey), key),
		trust.WriteCertificate(c.file(fileCert), cert)); err != nil {
		return fail(err)
	}
	keyHash, err := hashOf(cert)
	if err != nil {
		return fail(err)
	}
	return record{ClusterID: clusterID, NodeID: nodeID, Name: c.Name}, &logpb.InitCluster{
		ClusterId: clusterID,
		Project:   &logpb.Project{Id: projectID, Name: "default"},
		Admin:     &logpb.Token{Id: tokenID, Hash: hash, Kind: "user", Name: "admin", Role: string(metal.RoleAdmin), Project: projectID},
		Node:      &logpb.Node{Id: nodeID, Name: c.Name, Address: c.Advertise, KeyHash: keyHash, Software: software()},
	}, text, nil
}

// firstCommand bootstraps the log and applies its first command, by a member
// that talks to nobody.
func (c *Config) firstCommand(ctx context.Context, rec record, first *logpb.InitCluster) (err error) {
	ctx, cancel := context.WithTimeout(ctx, initWait)
	defer cancel()
	log := slog.New(slog.DiscardHandler) // an election of one is no news
	stores, err := consensus.OpenStores(c.DataDir, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stores.Close()) }()
	_, transport := raft.NewInmemTransport(raft.ServerAddress(c.Advertise))
	defer func() { err = errors.Join(err, transport.Close()) }()
	lead := make(chan struct{})
	conf := consensus.Config{ID: rec.NodeID, FSM: fsm.New(fsm.Options{}), Logs: stores.Logs, Stable: stores.Stable,
		Snapshots: stores.Snapshots, Transport: transport, Log: log, Timing: consensus.Timing{Election: 200 * time.Millisecond},
		Leading: func(ctx context.Context) { close(lead); <-ctx.Done() }}
	if err := consensus.Bootstrap(conf); err != nil {
		return err
	}
	node, err := consensus.Open(conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close(context.WithoutCancel(ctx))) }()
	select {
	case <-lead:
	case <-ctx.Done():
		return fmt.Errorf("begin the log: %w", ctx.Err())
	}
	res, err := node.Propose(ctx, &logpb.Command{
		Header:  &logpb.Header{Time: time.Now().UnixNano(), Principal: "system", Role: string(metal.RoleAdmin)},
		Command: &logpb.Command_InitCluster{InitCluster: first}})
	if err != nil {
		return fmt.Errorf("begin the log: %w", err)
	}
	if res.Err != nil {
		return fmt.Errorf("begin the log: %w", res.Err)
	}
	return nil
}
