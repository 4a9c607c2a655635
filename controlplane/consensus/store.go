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
	cachedEntries = 1024
	lockWait      = 3 * time.Second
)

// Stores are a node's log, votes and snapshots on disk.
type Stores struct {
	Logs      raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	store     store
}

// Kinds of log stores.
const (
	StoreBolt = "boltdb" // raft-boltdb: pages in one file; the default
	StoreWAL  = "wal"    // raft-wal: segments that are appended to
)

// Names in the raft directory; each says which kind its log is.
const (
	boltFile = "log.db"
	walDir   = "wal"
)

// CheckStore refuses an unknown kind of log store.
func CheckStore(kind string) error {
	switch kind {
	case "", StoreBolt, StoreWAL:
		return nil
	}
	return metal.Invalid("log_store", "%q is not boltdb or wal", kind)
}

// OpenStores opens or makes the stores in dir/raft, the log in a store of the kind
// given ("": boltdb). One process at a time. A directory whose log is of the other
// kind is refused: nothing is converted, since a node that begins anew gets all
// from the others.
func OpenStores(dir, kind string, log *slog.Logger) (*Stores, error) {
	if err := os.MkdirAll(filepath.Join(dir, "raft"), 0o700); err != nil {
		return nil, fmt.Errorf("make the raft directory: %w", err)
	}
	return openStores(dir, kind, log, false)
}

func openStores(dir, kind string, log *slog.Logger, readOnly bool) (_ *Stores, err error) {
	dir = filepath.Join(dir, "raft")
	open, path, other, is := func(path string) (store, error) { return openBolt(path, readOnly) }, boltFile, walDir, StoreWAL
	if kind == StoreWAL {
		open = func(path string) (store, error) { return openWAL(path, log) }
		if readOnly {
			open = func(path string) (store, error) { return readWAL(path, log) }
		}
		path, other, is = walDir, boltFile, StoreBolt
	}
	if _, err := os.Lstat(filepath.Join(dir, other)); err == nil {
		return nil, metal.Invalid("log_store", "the log in %s is of the kind %s: set that, or take this node out of the cluster, "+
			"move its data_dir away and join again", dir, is).WithHint("bmc cluster remove-node NAME")
	}
	s, err := open(filepath.Join(dir, path))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if mutant.On("unsynced-log") && !readOnly {
		if err := forgetNewest(s); err != nil {
			return nil, err
		}
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, keptSnapshots, newHCLog(log))
	if err != nil {
		return nil, fmt.Errorf("open the snapshots: %w", err)
	}
	cache, err := raft.NewLogCache(cachedEntries, s)
	if err != nil {
		return nil, err
	}
	return &Stores{Logs: cache, Stable: s, Snapshots: snaps, store: s}, nil
}

func openBolt(path string, readOnly bool) (store, error) {
	bolt, err := raftboltdb.New(raftboltdb.Options{Path: path,
		// The list of free pages is made anew at start instead of being written at every commit.
		BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: lockWait, ReadOnly: readOnly}})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, errBusy(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the raft log: %w", err)
	}
	return bolt, nil
}

// forgetNewest is a mutant's: what a power cut does to a log that is not synced. The
// newest command goes, and what a node that stops has put behind it.
func forgetNewest(logs raft.LogStore) error {
	last, err := logs.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	first, err := logs.FirstIndex()
	if err != nil {
		return err
	}
	from := last
	for entry := new(raft.Log); from > first; from-- {
		if err := logs.GetLog(from, entry); err != nil {
			return err
		}
		if entry.Type == raft.LogCommand {
			break
		}
	}
	return logs.DeleteRange(from, last)
}

// Used says whether a member has ever written here.
func (s *Stores) Used() (bool, error) {
	return raft.HasExistingState(s.Logs, s.Stable, s.Snapshots)
}

// Close closes the log.
func (s *Stores) Close() error { return s.store.Close() }
