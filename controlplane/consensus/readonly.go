package consensus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/types"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// errReadOnly is what a store answers that was opened to be read.
var errReadOnly = errors.New("the log was opened to be read alone")

// ReadStores opens the stores in dir/raft as OpenStores does, for a look at what a
// stopped member holds: no byte of them changes, whatever is asked of them.
func ReadStores(dir, kind string, log *slog.Logger) (*Stores, error) {
	return openStores(dir, kind, log, true)
}

// readWAL opens a log of segments without writing to them. What raft-wal mends when it
// opens a log, after a crash, it mends in memory.
func readWAL(dir string, log *slog.Logger) (store, error) {
	return openSegments(dir, log, &readMeta{}, readFS{fs.New()})
}

// readMeta is raft-wal's metadata, which metadb would open to be written.
type readMeta struct{ db *bbolt.DB }

func (m *readMeta) Load(dir string) (types.PersistentState, error) {
	var s types.PersistentState
	path := filepath.Join(dir, metadb.FileName)
	db, err := bbolt.Open(path, 0, &bbolt.Options{ReadOnly: true, Timeout: lockWait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return s, errBusy(path)
	}
	if err != nil {
		return s, fmt.Errorf("open %s: %w", metadb.FileName, err)
	}
	m.db = db
	raw, err := m.get(metadb.MetaBucket, []byte(metadb.MetaKey))
	if err != nil || raw == nil {
		return s, err
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, fmt.Errorf("%w: %s: %w", types.ErrCorrupt, metadb.FileName, err)
	}
	return s, nil
}

func (m *readMeta) get(bucket string, key []byte) (value []byte, err error) {
	err = m.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return fmt.Errorf("%w: %s has no %s", types.ErrCorrupt, metadb.FileName, bucket)
		}
		if v := b.Get(key); v != nil {
			value = append([]byte{}, v...)
		}
		return nil
	})
	return value, err
}

func (m *readMeta) GetStable(key []byte) ([]byte, error) { return m.get(metadb.StableBucket, key) }

// CommitState keeps nothing: raft-wal begins a segment when it finds none to go on with.
func (*readMeta) CommitState(types.PersistentState) error { return nil }

func (*readMeta) SetStable(_, _ []byte) error { return errReadOnly }

func (m *readMeta) Close() error {
	if m.db == nil {
		return nil
	}
	return m.db.Close()
}

// readFS opens files to be read alone, and neither makes nor removes any.
type readFS struct{ *fs.FS }

func (readFS) Create(_, _ string, _ uint64) (types.WritableFile, error) { return noFile{}, nil }

func (readFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	return os.Open(filepath.Join(dir, name)) //nolint:gosec // a name of the store's own
}

func (readFS) Delete(_, _ string) error { return nil }

// noFile is an empty one that is not on disk.
type noFile struct{}

func (noFile) ReadAt([]byte, int64) (int, error)  { return 0, io.EOF }
func (noFile) WriteAt([]byte, int64) (int, error) { return 0, errReadOnly }
func (noFile) Sync() error                        { return errReadOnly }
func (noFile) Close() error                       { return nil }
