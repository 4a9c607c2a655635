package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Bounds of snapshots that are sent here.
const (
	maxSnapshot   = 4 << 30
	snapshotChunk = 256 << 10
	raiseWait     = time.Minute // for the command after a restore, by one voter
	// restoreGap is more than what can be committed while a restore is prepared.
	restoreGap = 1 << 20
)

func (s *cluster) SaveSnapshot(_ *bmcv1.SaveSnapshotRequest, stream grpc.ServerStreamingServer[bmcv1.SnapshotChunk]) error {
	v, err := s.linearizable(stream.Context())
	if err != nil {
		return err
	}
	w := &chunkWriter{send: stream.Send}
	if err := fsm.WriteSnapshot(w, fsm.Backup(v)); err != nil {
		return err
	}
	return w.flush()
}

// chunkWriter gathers small writes into messages.
type chunkWriter struct {
	send func(*bmcv1.SnapshotChunk) error
	buf  []byte
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := min(len(p), snapshotChunk-len(w.buf))
		w.buf = append(w.buf, p[:k]...)
		p = p[k:]
		if len(w.buf) == snapshotChunk {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (w *chunkWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.send(&bmcv1.SnapshotChunk{Data: w.buf})
	w.buf = nil // the message may still be on its way
	return err
}

// spoolFile is a file without a name: whatever happens to this process, its
// space is free afterwards. The caller closes it.
func (a *API) spoolFile() (*os.File, error) {
	f, err := os.CreateTemp(a.SpoolDir, "bmc-snapshot-*")
	if err != nil {
		return nil, fmt.Errorf("make a spool file for a snapshot: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("make a spool file for a snapshot: %w", err), f.Close())
	}
	return f, nil
}

// spool writes a snapshot that is being received to a file, which the caller
// closes.
func (s *cluster) spool(first []byte, next func() ([]byte, error)) (_ *os.File, size int64, err error) {
	f, err := s.spoolFile()
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	for data := first; ; {
		if size += int64(len(data)); size > maxSnapshot {
			return nil, 0, metal.Invalid("data", "is larger than %d bytes", int64(maxSnapshot))
		}
		if _, err := f.Write(data); err != nil {
			return nil, 0, fmt.Errorf("spool a snapshot: %w", err)
		}
		if data, err = next(); errors.Is(err, io.EOF) {
			_, err = f.Seek(0, io.SeekStart)
			return f, size, err
		} else if err != nil {
			return nil, 0, err
		}
	}
}

// inspect checks a spooled snapshot and goes back to its beginning. The hint is for
// one that is no good.
func inspect(f *os.File, hint string) (*state.View, *fsm.SnapshotInfo, error) {
	v, info, err := fsm.LoadSnapshot(f)
	if err != nil {
		var e *metal.Error
		if errors.As(err, &e) {
			return nil, nil, e
		}
		return nil, nil, metal.Invalid("data", "is no intact snapshot (%v)", err).WithHint("%s", hint)
	}
	_, err = f.Seek(0, io.SeekStart)
	return v, info, err
}

// CheckSealed refuses a state whose secrets the keyring does not open. One
// secret stands for all: a keyring is whole, or another's.
func CheckSealed(v *state.View, keys Sealer) error {
	for s := range v.Servers(state.ServerFilter{}) {
		if len(s.OOB.Password) == 0 {
			continue
		}
		if _, err := keys.Open(s.OOB.Password, s.ID+oobAD); err != nil {
			return &metal.Error{Code: metal.CodeInvalid, Message: "the key ring does not open the snapshot's secrets: it is of another time or cluster; nothing was changed", Err: err}
		}
		break
	}
	return nil
}

func (s *cluster) InspectSnapshot(stream grpc.ClientStreamingServer[bmcv1.SnapshotChunk, bmcv1.InspectSnapshotResponse]) error {
	f, size, err := s.spool(nil, func() ([]byte, error) {
		m, err := stream.Recv()
		return m.GetData(), err
	})
	if err != nil {
		return err
	}
	defer f.Close()
	_, info, err := inspect(f, "bmc cluster snapshot save FILE")
	if err != nil {
		return err
	}
	return stream.SendAndClose(&bmcv1.InspectSnapshotResponse{ClusterId: info.ClusterID, Revision: info.Revision, Index: info.Revision,
		Generation: info.Generation, Time: stamp(info.Time), StateHash: info.StateHash, SizeBytes: uint64(size), Rows: info.Rows})
}

// RestoreSnapshot replaces the state by a saved one of the same cluster, with
// its generation raised: every lease of the old state is void. Its revision is
// raised above all that was ever read, so that no reader takes a replica that
// has not been restored yet for a current one. The same command follows in the log,
// which records who has restored; it changes nothing more.
func (s *cluster) RestoreSnapshot(stream grpc.ClientStreamingServer[bmcv1.RestoreSnapshotRequest, bmcv1.RestoreSnapshotResponse]) error {
	ctx := stream.Context()
	head, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := s.ensureRequestID(head); err != nil {
		return err
	}
	f, _, err := s.spool(head.GetData(), func() ([]byte, error) {
		m, err := stream.Recv()
		return m.GetData(), err
	})
	if err != nil {
		return err
	}
	defer f.Close()
	saved, info, err := inspect(f, "bmc cluster snapshot inspect FILE")
	if err != nil {
		return err
	}
	if info.ClusterID != s.ClusterID {
		return metal.Invalid("data", "is a snapshot of cluster %s, this is %s: its members' certificates would be worth nothing", info.ClusterID, s.ClusterID).
			WithHint("bmc-controlplane init --config FILE --from-snapshot FILE")
	}
	if err := CheckSealed(saved, s.Sealer); err != nil {
		return err
	}
	v, err := s.linearizable(ctx)
	if err != nil {
		return err
	}
	raise := &logpb.RaiseGeneration{AtLeast: max(v.Meta().Generation, info.Generation) + 1, FeatureLevel: knownToAll(v)}
	raise.Nodes = nodeRows(v)
	s.Log.Warn("restoring a snapshot", "principal", caller(ctx).principal, "revision", info.Revision, "generation", raise.AtLeast)
	if racks := forgotten(v, saved); len(racks) > 0 {
		s.Log.Warn("operators had frozen racks, which the snapshot does not know: freeze them again", "racks", strings.Join(racks, " "))
	}
	revision := max(v.Revision(), info.Revision) + restoreGap
	ready, size, err := s.raised(ctx, saved, revision, raise)
	if err != nil {
		return err
	}
	defer ready.Close()
	err = s.Raft.Restore(ctx, ready, size, revision, func(now *state.View) error { return outdoes(raise, revision, now) },
		func(ctx context.Context) error { return s.raise(ctx, head, raise) })
	if err != nil {
		return err
	}
	now := s.Proposer.StaleView()
	return stream.SendAndClose(&bmcv1.RestoreSnapshotResponse{Revision: now.Revision(), Generation: now.Meta().Generation})
}

// forgotten are the names of the racks that operators have frozen and whose freeze a
// snapshot does not have.
func forgotten(now, saved *state.View) (names []string) {
	for r := range now.Racks() {
		if was, ok := saved.Rack(r.ID); r.Stopped() && ok && !was.Stopped() {
			names = append(names, r.Name)
		}
	}
	return names
}

// outdoes refuses a restore that another has overtaken while it was prepared: two
// states of one generation would grant the same epochs twice. So is one from which a
// node would be missing that has joined meanwhile, or whose level one does not know.
func outdoes(raise *logpb.RaiseGeneration, revision uint64, now *state.View) error {
	if !slices.EqualFunc(nodeRows(now), raise.GetNodes(), func(a, b *logpb.Node) bool { return proto.Equal(a, b) }) {
		return metal.Errorf(metal.CodeConflict, "a node joined, left or changed while the snapshot was prepared; it was not restored").
			WithHint("bmc cluster snapshot restore FILE")
	}
	if now.Meta().Generation < raise.GetAtLeast() && now.Revision() < revision {
		return nil
	}
	return metal.Errorf(metal.CodeConflict, "the state is of generation %d and revision %d by now: another snapshot was restored while this one was prepared; this one was not restored",
		now.Meta().Generation, now.Revision()).WithHint("bmc list")
}

// nodeRows are the nodes of a state: a restore keeps them.
func nodeRows(v *state.View) (out []*logpb.Node) {
	for n := range v.Nodes() {
		out = append(out, &logpb.Node{Id: n.ID, Name: n.Name, Address: n.Address, KeyHash: n.KeyHash,
			Software: n.Software, Joined: n.Joined.UnixNano(), FeatureLevel: n.FeatureLevel})
	}
	return out
}

// knownToAll is the newest feature level that every node knows. A restored state
// begins at it: one of a lower level is compared with what the agents knew less
// well than the software could, and nobody wants the level of the time of the backup.
func knownToAll(v *state.View) uint32 {
	level := uint32(fsm.FeatureLevel)
	for n := range v.Nodes() {
		level = min(level, n.FeatureLevel)
	}
	if level < fsm.BackupLevel { // an older node could not read the command
		return 0
	}
	return level
}

// raised writes the snapshot anew with its generation raised: should the leader
// go away right after the restore, no lease of before counts all the same. The
// caller closes the file.
func (s *cluster) raised(ctx context.Context, saved *state.View, revision uint64, raise *logpb.RaiseGeneration) (_ *os.File, size int64, err error) {
	v, res, err := fsm.Advance(saved, revision, &logpb.Command{
		Header:  &logpb.Header{Time: s.Now().UnixNano(), Principal: caller(ctx).principal, Role: string(caller(ctx).role)},
		Command: &logpb.Command_RaiseGeneration{RaiseGeneration: raise}})
	if err != nil {
		return nil, 0, err
	}
	if res.Err != nil {
		return nil, 0, res.Err
	}
	f, err := s.spoolFile()
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := fsm.WriteSnapshot(f, v); err != nil {
		return nil, 0, err
	}
	if size, err = f.Seek(0, io.SeekCurrent); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	return f, size, err
}

// raise records the restore in the log. By then the snapshot counts, and so
// does the generation in it: an error means that the call's outcome is unknown.
func (s *cluster) raise(ctx context.Context, head *bmcv1.RestoreSnapshotRequest, raise *logpb.RaiseGeneration) error {
	req := &bmcv1.RestoreSnapshotRequest{RequestId: head.GetRequestId()}
	mac, err := s.requestMAC(req)
	if err != nil {
		return err
	}
	_, err = s.proposeWithin(ctx, raiseWait, 0, caller(ctx).principal, req.GetRequestId(), mac,
		&logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: raise}})
	if code := metal.CodeOf(err); code == metal.CodeNoLeader || code == metal.CodeUnknownOutcome {
		return &metal.Error{Code: metal.CodeUnknownOutcome, Err: err, Hint: "bmc cluster peers",
			Message: fmt.Sprintf("this node, %s, lost leadership before the others had the snapshot: it may or may not be restored. "+
				"Look at the servers, and restore again if they are not the snapshot's. If %s stays behind the others, remove it, empty its data_dir and let it join anew", s.NodeName, s.NodeName)}
	}
	if err != nil {
		return fmt.Errorf("raise the generation after a restore: %w", err)
	}
	return nil
}
