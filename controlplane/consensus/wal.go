package consensus

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"

	"bmc/metal"
)

// openWAL opens or makes a log of segments in dir: entries are appended and synced
// once, where boltdb writes pages and syncs twice.
func openWAL(dir string, log *slog.Logger) (store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the log's directory: %w", err)
	}
	return openSegments(dir, log, &metadb.BoltMetaDB{}, fs.New())
}

// openSegments opens a log of segments by its metadata's store and a file system.
func openSegments(dir string, log *slog.Logger, meta types.MetaStore, files types.VFS) (_ store, err error) {
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	// Its own Close leaves the metadata open: we keep them, to close them.
	w, err := wal.Open(dir, wal.WithMetaStore(meta), wal.WithLogger(newHCLog(log)), wal.WithSegmentFiler(segments{segment.NewFiler(dir, files)}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the raft log: %w", err), meta.Close())
	}
	return &walStore{w, meta, lock}, nil
}

// segments opens what raft-wal 0.4.0 cannot: a segment whose end was cut off, as a
// follower does whose newest entries another leader has replaced, is closed without
// its index, and cannot be read after a restart ("sealed segment has no index
// block"). It is read through instead.
type segments struct{ types.SegmentFiler }

func (s segments) Open(info types.SegmentInfo) (types.SegmentReader, error) {
	if info.IndexStart == 0 {
		return s.RecoverTail(info)
	}
	return s.SegmentFiler.Open(info)
}

type walStore struct {
	*wal.WAL
	meta io.Closer
	lock *os.File
}

func (s *walStore) Close() error {
	return errors.Join(s.WAL.Close(), s.meta.Close(), s.lock.Close())
}

// lockDir keeps a second process out; the log's own metadata would wait for ever.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the raft log: %w", err)
	}
	end := time.Now().Add(lockWait)
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(end) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, errors.Join(errBusy(dir), f.Close())
}

func errBusy(path string) error {
	return metal.Errorf(metal.CodeBusy, "another process uses %s", path).WithHint("systemctl status bmc-controlplane")
}

// store is what keeps a member's log and its votes.
type store interface {
	raft.LogStore
	raft.StableStore
	Close() error
}
