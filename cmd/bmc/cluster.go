package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
	"bmc/cmd/bmc/output"
	"bmc/metal"
)

var peerColumns = []output.Column[*bmcv1.Peer]{
	{Name: "NAME", Value: (*bmcv1.Peer).GetName},
	{Name: "ADDRESS", Value: (*bmcv1.Peer).GetAddress},
	{Name: "ROLE", Value: func(p *bmcv1.Peer) string {
		if p.GetLeader() {
			return "leader"
		}
		return p.GetSuffrage()
	}},
	{Name: "ALIVE", Value: func(p *bmcv1.Peer) string {
		if p.GetAlive() && !well(p) {
			return "sick"
		}
		return fmt.Sprint(p.GetAlive())
	}},
	{Name: "REVISION", Value: func(p *bmcv1.Peer) string { return fmt.Sprint(p.GetRevision()) }},
	{Name: "HASH", Value: func(p *bmcv1.Peer) string { h := hex.EncodeToString(p.GetStateHash()); return h[:min(12, len(h))] }},
	{Name: "SOFTWARE", Wide: true, Value: (*bmcv1.Peer).GetSoftware},
	{Name: "LEVEL", Wide: true, Value: func(p *bmcv1.Peer) string { return fmt.Sprint(p.GetFeatureLevel()) }},
	{Name: "INDEX", Wide: true, Value: func(p *bmcv1.Peer) string { return fmt.Sprint(p.GetAppliedIndex()) }},
	{Name: "ID", Wide: true, Value: (*bmcv1.Peer).GetId},
	{Name: "ERROR", Wide: true, Value: (*bmcv1.Peer).GetError},
}

func (a *app) clusterCommand() *cobra.Command {
	status := &cobra.Command{Use: "status", Short: "The control plane's health", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context()) }}
	peers := &cobra.Command{Use: "peers", Short: "List the control-plane nodes", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.health(cmd.Context())
			if err != nil {
				return err
			}
			if err := output.List(a.out, a.format, h.GetPeers(), peerColumns, (*bmcv1.Peer).GetName); err != nil {
				return err
			}
			a.noteSick(h)
			return nil
		}}
	return group("cluster", "The control plane itself (operators)", append([]*cobra.Command{status, peers, a.joinTokenCommand(), a.snapshotCommand()},
		append(a.memberCommands(), a.freezeCommands()...)...)...)
}

func (a *app) joinTokenCommand() *cobra.Command {
	req := &bmcv1.CreateJoinTokenRequest{}
	var expires time.Duration
	cmd := &cobra.Command{Use: "join-token --role node|agent", Short: "Print a token with which one node or agent may join", Args: exactly(),
		Example: "  bmc cluster join-token --role agent --rack r1 > agent.token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Role != "node" && req.Role != "agent" {
				return usage(cmd, "--role is node or agent")
			}
			var err error
			if req.ExpiresIn, err = lifetime(cmd, expires); err != nil {
				return err
			}
			c, err := a.api()
			if err != nil {
				return err
			}
			t, err := c.Cluster.CreateJoinToken(cmd.Context(), req)
			if err != nil {
				return err
			}
			a.note("works once, until %s", when(t.GetExpires()))
			return a.printToken(t, t.GetToken())
		}}
	cmd.Flags().StringVar(&req.Role, "role", "", "node or agent")
	cmd.Flags().StringSliceVar(&req.Racks, "rack", nil, "racks that the agent may act on")
	cmd.Flags().DurationVar(&expires, "expires-in", 0, "how long it works (1h; at most 168h)")
	return cmd
}

func (a *app) tokenCommand() *cobra.Command {
	req := &bmcv1.CreateTokenRequest{}
	var expires time.Duration
	cmd := &cobra.Command{Use: "create NAME", Short: "Print a new token for a person or program", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			var err error
			if req.ExpiresIn, err = lifetime(cmd, expires); err != nil {
				return err
			}
			c, err := a.api()
			if err != nil {
				return err
			}
			t, err := c.Cluster.CreateToken(cmd.Context(), req)
			if err != nil {
				return err
			}
			a.note("it is not shown again; works until %s", when(t.GetExpires()))
			return a.printToken(t, t.GetToken())
		}}
	cmd.Flags().StringVar(&req.Role, "role", "member", "viewer, member, operator or admin")
	cmd.Flags().StringVar(&req.Project, "project", "", "project; default when left out")
	cmd.Flags().DurationVar(&expires, "expires-in", 0, "how long it works (2160h)")
	return group("token", "Credentials (admins)", append([]*cobra.Command{cmd}, a.tokenListCommands()...)...)
}

// lifetime is the value of --expires-in, nil when it was left out: the default.
func lifetime(cmd *cobra.Command, d time.Duration) (*durationpb.Duration, error) {
	switch {
	case !cmd.Flags().Changed("expires-in"):
		return nil, nil
	case d <= 0:
		return nil, usage(cmd, "--expires-in is a time to come, such as 8h, not %s", d)
	}
	return durationpb.New(d), nil
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Everything at a glance", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context()) }}
}

func (a *app) status(ctx context.Context) error {
	s, err := a.health(ctx)
	if err != nil {
		return err
	}
	if a.format.Machine() {
		return output.One(a.out, a.format, s.StatusResponse, nil, (*bmcv1.StatusResponse).GetClusterId)
	}
	alive, sick := 0, 0
	for _, p := range s.GetPeers() {
		if p.GetAlive() {
			alive++
		}
		if p.GetAlive() && !well(p) {
			sick++
		}
	}
	nodes := fmt.Sprintf("%d of %d answer", alive, len(s.GetPeers()))
	if sick > 0 {
		nodes += fmt.Sprintf(", %d of them sick", sick)
	}
	leader := peerName(s.GetPeers(), s.GetLeaderId())
	racks := fmt.Sprint(s.GetRacks())
	if n := s.GetFrozenRacks(); n > 0 {
		racks += fmt.Sprintf(", %d frozen: bmc rack list -o wide", n)
	}
	rows := [][]string{
		{"cluster", s.GetClusterId()},
		{"nodes", fmt.Sprintf("%s, leader %s, term %d", nodes, firstOf(leader, "none"), s.GetTerm())},
		{"revision", fmt.Sprint(s.GetRevision())}, {"generation", fmt.Sprint(s.GetGeneration())},
		{"agents", fmt.Sprintf("%d of %d alive", s.GetAgentsAlive(), s.GetAgents())},
		{"racks", racks},
		{"servers", fmt.Sprintf("%d: %d available, %d active, %d failed", s.GetServers(), s.GetAvailable(), s.GetActive(), s.GetFailed())},
		{"operations", fmt.Sprintf("%d under way", s.GetRunningOperations())},
	}
	if err := output.Grid(a.out, rows); err != nil {
		return err
	}
	a.noteSick(s)
	return nil
}

func (a *app) snapshotCommand() *cobra.Command {
	var force bool
	save := &cobra.Command{Use: "save FILE", Short: "Save the whole state", Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.saveSnapshot(cmd.Context(), args[0], force) }}
	save.Flags().BoolVar(&force, "force", false, "replace FILE if it exists")
	inspect := &cobra.Command{Use: "inspect FILE", Short: "Check a saved state and say what it holds", Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.inspectSnapshot(cmd.Context(), args[0]) }}
	restore := &cobra.Command{Use: "restore FILE", Short: "REPLACE the whole state by a saved one", Args: exactly("FILE"),
		Long: "For a cluster that runs: what happened since the snapshot is forgotten, and racks are frozen until their\n" +
			"agents have said what they knew. A cluster whose nodes are all lost is made again on its first node by\n" +
			"bmc-controlplane init --from-snapshot FILE, which needs a copy of the key ring, too.",
		RunE: func(cmd *cobra.Command, args []string) error { return a.restoreSnapshot(cmd.Context(), args[0]) }}
	restore.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	return group("snapshot", "Back up and restore the state", save, inspect, restore)
}

// saveSnapshot writes beside the file and renames at the end: whatever happens, a
// backup of before is there or the new one, whole.
func (a *app) saveSnapshot(ctx context.Context, path string, force bool) (err error) {
	if err := mayWrite(path, force); err != nil {
		return err
	}
	c, err := a.api()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".bmc-snapshot-")
	if err != nil {
		return metal.Errorf(metal.CodeInvalid, "cannot write there: %v", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	var n int64
	err = c.Again(ctx, func() (err error) {
		n, err = download(ctx, c, f)
		return err
	})
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := mayWrite(path, force); err != nil { // again: it took its time
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	a.note("saved %s to %s; to check it: bmc cluster snapshot inspect %s", bytesText(uint64(n)), path, path)
	a.note("it is of use only with the key ring (keyring_file): keep a copy of that apart from it")
	return nil
}

// mayWrite keeps a backup from being written over by mistake, and what is no file
// from being replaced by one.
func mayWrite(path string, force bool) error {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil // whatever is wrong, writing there will say it
	case !info.Mode().IsRegular():
		return metal.Errorf(metal.CodeInvalid, "%s is no file", path).WithHint("bmc cluster snapshot save FILE")
	case !force:
		return metal.Errorf(metal.CodeInvalid, "%s exists: it would be replaced", path).WithHint("bmc cluster snapshot save %s --force", path)
	}
	return nil
}

// download writes the state as it is now over what is in f, and says how long it is.
func download(ctx context.Context, c *client.Client, f *os.File) (n int64, err error) {
	if err := f.Truncate(0); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.Cluster.SaveSnapshot(ctx, &bmcv1.SaveSnapshotRequest{})
	if err != nil {
		return 0, err
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
		k, err := f.WriteAt(m.GetData(), n)
		if n += int64(k); err != nil {
			return 0, err
		}
	}
}

const snapshotPiece = 256 << 10 // bytes in a message

// sendFile streams a file's pieces to send until it ends or send refuses.
func sendFile(path string, send func([]byte) error) error {
	f, err := os.Open(path)
	if err != nil {
		return metal.Errorf(metal.CodeInvalid, "cannot read the snapshot: %v", err)
	}
	defer f.Close()
	buf := make([]byte, snapshotPiece)
	for {
		n, err := f.Read(buf)
		if n > 0 && send(slices.Clone(buf[:n])) != nil {
			return nil // the reason comes with the answer
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
	}
}

func (a *app) inspectSnapshot(ctx context.Context, path string) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	s, err := c.Cluster.InspectSnapshot(ctx)
	if err != nil {
		return err
	}
	if err := sendFile(path, func(b []byte) error { return s.Send(&bmcv1.SnapshotChunk{Data: b}) }); err != nil {
		return err
	}
	r, err := s.CloseAndRecv()
	if err != nil {
		return err
	}
	if a.format.Machine() {
		return output.One(a.out, a.format, r, nil, (*bmcv1.InspectSnapshotResponse).GetClusterId)
	}
	rows := [][]string{
		{"cluster", r.GetClusterId()}, {"revision", fmt.Sprint(r.GetRevision())}, {"generation", fmt.Sprint(r.GetGeneration())}, {"time", when(r.GetTime())},
		{"size", bytesText(r.GetSizeBytes())}, {"state hash", hex.EncodeToString(r.GetStateHash())},
	}
	tables := make([]string, 0, len(r.GetRows()))
	for t := range r.GetRows() {
		tables = append(tables, t)
	}
	slices.Sort(tables)
	for _, t := range tables {
		rows = append(rows, []string{t, fmt.Sprint(r.GetRows()[t])})
	}
	return output.Grid(a.out, rows)
}

func (a *app) restoreSnapshot(ctx context.Context, path string) error {
	if _, err := os.Stat(path); err != nil {
		return metal.Errorf(metal.CodeInvalid, "cannot read the snapshot: %v", err).WithHint("bmc cluster snapshot restore FILE")
	}
	c, err := a.api()
	if err != nil {
		return err
	}
	st, err := c.Cluster.Status(ctx, &bmcv1.StatusRequest{})
	if err != nil {
		return err
	}
	if err := a.confirm(fmt.Sprintf("REPLACES the state of cluster %s (%d servers, revision %d) by %s.", st.GetClusterId(), st.GetServers(), st.GetRevision(), path), "restore", "bmc cluster snapshot restore "+path+" --yes"); err != nil {
		return err
	}
	s, err := c.Cluster.RestoreSnapshot(ctx)
	if err != nil {
		return err
	}
	first := &bmcv1.RestoreSnapshotRequest{}
	err = sendFile(path, func(b []byte) error {
		first.Data = b
		m := first
		first = &bmcv1.RestoreSnapshotRequest{RequestId: m.GetRequestId()}
		return s.Send(m)
	})
	if err != nil {
		return err
	}
	r, err := s.CloseAndRecv()
	if err != nil {
		switch metal.CodeOf(err) {
		case metal.CodeUnknownOutcome, metal.CodeNoLeader, metal.CodeDeadline:
			a.note("whether it was restored: bmc cluster status says generation %d if it was not, and a higher one if it was", st.GetGeneration())
		}
		return err
	}
	a.note("restored: revision %d, generation %d; no lease of before counts", r.GetRevision(), r.GetGeneration())
	a.note("the other nodes receive it now, and have no vote until they have it: bmc cluster peers")
	a.note("racks with servers are frozen until their agents have said what they knew; to see them: bmc rack list")
	return nil
}
