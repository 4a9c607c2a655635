package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"bmc/controlplane/consensus"
	"bmc/controlplane/rpc"
	"bmc/controlplane/trust"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// Restored says what InitFromSnapshot has made.
type Restored struct {
	ClusterID            string
	Revision, Generation uint64 // Generation: the new one
	Servers              int
	Frozen               []string // racks that wait for their agents' word
	Lost                 []string // names of the nodes of before
}

// InitFromSnapshot makes a lost cluster anew, with this node as its only one,
// from a saved state and the cluster's keyring, which must be at keyring_file.
// Cluster, CA, agents' certificates and users' tokens stay what they were. With
// a tokenFile it also writes a new administrator's token there.
func InitFromSnapshot(ctx context.Context, c Config, snapshot, tokenFile string) (*Restored, error) {
	if err := c.checkEmpty(); err != nil {
		return nil, err
	}
	if tokenFile != "" {
		if _, err := os.Lstat(tokenFile); err == nil {
			return nil, metal.Errorf(metal.CodeWrongState, "%s exists: it would have to be overwritten; nothing was changed", tokenFile).
				WithHint("mv %s %s.old", tokenFile, tokenFile)
		}
	}
	ring, ca, err := c.oldKeyring()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(snapshot) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, metal.Errorf(metal.CodeInvalid, "cannot read the snapshot: %v", err)
	}
	defer f.Close()
	view, info, err := fsm.LoadSnapshot(f)
	if err != nil {
		return nil, metal.Errorf(metal.CodeInvalid, "%s is of no use (%v); nothing was changed. Take another backup", snapshot, err)
	}
	if err := belongs(view, ca, ring); err != nil {
		return nil, err
	}
	return c.restore(ctx, restoring{f: f, view: view, info: info, ring: ring, ca: ca, tokenFile: tokenFile})
}

// oldKeyring reads the keyring of the cluster that was lost.
func (c *Config) oldKeyring() (*trust.Keyring, *trust.CA, error) {
	ring, err := trust.ReadKeyring(c.KeyringFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, metal.Errorf(metal.CodeWrongState, "there is no %s: a snapshot's secrets, and the trust of the agents, are in the key ring of its cluster. "+
			"Put a copy of it there", c.KeyringFile).WithHint("install -m 600 KEYRING_COPY %s", c.KeyringFile)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the keyring: %w", err)
	}
	if len(ring.CA) == 0 || len(ring.CAKey) == 0 {
		return nil, nil, metal.Errorf(metal.CodeWrongState, "%s holds no CA: it is no whole copy of a key ring", c.KeyringFile)
	}
	ca, err := trust.LoadCA(ring.CA, ring.CAKey)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", c.KeyringFile, err)
	}
	return ring, ca, nil
}

// belongs refuses a snapshot of another cluster, or of other keys.
func belongs(v *state.View, ca *trust.CA, ring *trust.Keyring) error {
	if id := v.Meta().ClusterID; id != ca.ClusterID() {
		return metal.Errorf(metal.CodeInvalid, "the snapshot is of cluster %s, the key ring of cluster %s; nothing was changed", id, ca.ClusterID())
	}
	if err := rpc.CheckSealed(v, ring); err != nil {
		return err
	}
	return nil
}

// restoring is what a restore works with.
type restoring struct {
	f         *os.File
	view      *state.View
	info      *fsm.SnapshotInfo
	ring      *trust.Keyring
	ca        *trust.CA
	tokenFile string
}

func (c *Config) restore(ctx context.Context, r restoring) (*Restored, error) {
	nodeID, err1 := trust.NewID("node")
	key, csr, err2 := trust.NewRequest(c.names()...)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	cert, err := r.ca.IssueNode(csr, nodeID, c.Advertise)
	if err != nil {
		return nil, err
	}
	keyHash, err := hashOf(cert)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(c.makeDataDir(), c.writeIdentity(r.ring, key, cert)); err != nil {
		return nil, err
	}
	self := &logpb.Node{Id: nodeID, Name: c.Name, Address: c.Advertise, KeyHash: keyHash, Software: software(), FeatureLevel: fsm.FeatureLevel}
	out := &Restored{ClusterID: r.ca.ClusterID(), Revision: r.info.Revision, Generation: r.info.Generation + generationGap, Servers: r.view.CountServers("")}
	rec := record{ClusterID: out.ClusterID, NodeID: nodeID, Name: c.Name}
	for n := range r.view.Nodes() {
		rec.Lost, out.Lost = append(rec.Lost, n.ID), append(out.Lost, n.Name)
	}
	out.Frozen = occupied(r.view)
	if err := c.refill(ctx, r, nodeID, raiseTo(out.Generation, self)); err != nil {
		return nil, err
	}
	return out, c.saveRecord(rec)
}

// refill begins a log with a snapshot in it, raises the generation above all
// that the lost cluster may have granted, and makes the administrator's token.
func (c *Config) refill(ctx context.Context, r restoring, nodeID string, raise *logpb.Command) error {
	ctx, cancel := context.WithTimeout(ctx, recoverWait)
	defer cancel()
	size, err := r.f.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("read the snapshot: %w", err)
	}
	if _, err := r.f.Seek(0, 0); err != nil {
		return fmt.Errorf("read the snapshot: %w", err)
	}
	return c.alone(ctx, nodeID, true, func(node *consensus.Node) error {
		err := node.Restore(ctx, r.f, size, r.info.Revision, nil, func(context.Context) error { return system(ctx, node, raise) })
		if err != nil {
			return fmt.Errorf("restore the snapshot and raise the generation: %w", err)
		}
		if r.tokenFile == "" {
			return nil
		}
		return newAdmin(ctx, node, r.tokenFile)
	})
}

// newAdmin makes a token for an administrator of the project "default".
func newAdmin(ctx context.Context, node *consensus.Node, file string) error {
	text, id, hash, err := trust.NewUserToken()
	if err != nil {
		return err
	}
	t := &logpb.Token{Id: id, Hash: hash, Kind: "user", Name: "admin", Role: string(metal.RoleAdmin)}
	if p, ok := node.StaleView().ProjectByName("default"); ok {
		t.Project = p.ID
	}
	if err := system(ctx, node, &logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{Token: t}}}); err != nil {
		return fmt.Errorf("make an administrator's token: %w", err)
	}
	return trust.WriteFile(file, []byte(text+"\n"), 0o600)
}
