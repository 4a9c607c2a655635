package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"bmc/internal/mutant"
	"bmc/metal"
)

const (
	keptSnapshots = 2
	cachedEntries = 512
	lockWait      = 3 * time.Second
)

// Stores are a node's log, votes and snapshots on disk.
type Stores struct {
	Logs      raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	bolt      *raftboltdb.BoltStore
}

// OpenStores opens or makes the stores in dir/raft. One process at a time.
func OpenStores(dir string, log *slog.Logger) (*Stores, error) {
	dir = filepath.Join(dir, "raft")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the raft directory: %w", err)
	}
	path := filepath.Join(dir, "log.db")
	bolt, err := raftboltdb.New(raftboltdb.Options{Path: path,
		// The list of free pages is made anew at start instead of being written at every commit.
		BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: lockWait}})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, metal.Errorf(metal.CodeBusy, "another process uses %s", path).WithHint("systemctl status bmc-controlplane")
	}
	if err != nil {
		return nil, fmt.Errorf("open the raft log: %w", err)
	}
	if mutant.On("unsynced-log") {
		if err := forgetNewest(bolt); err != nil {
			return nil, errors.Join(err, bolt.Close())
		}
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, keptSnapshots, newHCLog(log))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the snapshots: %w", err), bolt.Close())
	}
	cache, err := raft.NewLogCache(cachedEntries, bolt)
	if err != nil {
		return nil, errors.Join(err, bolt.Close())
	}
	return &Stores{Logs: cache, Stable: bolt, Snapshots: snaps, bolt: bolt}, nil
}

// forgetNewest is a mutant's: what a power cut does to a log that is not synced.
func forgetNewest(logs raft.LogStore) error {
	last, err := logs.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	return logs.DeleteRange(last, last)
}

// Used says whether a member has ever written here.
func (s *Stores) Used() (bool, error) {
	return raft.HasExistingState(s.Logs, s.Stable, s.Snapshots)
}

// Close closes the log.
func (s *Stores) Close() error { return s.bolt.Close() }
