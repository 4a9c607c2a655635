package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protodelim"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
)

// A snapshot is the magic, then zstd of length-delimited messages (a
// SnapshotHeader, then SnapshotRows), then the SHA-256 of all bytes before it.
const (
	magic           = "bmcsnap\x01"
	snapshotVersion = 1
	maxRow          = 16 << 20 // bytes; the largest row is an image with its manifest
)

// snapshot writes a View for raft; Apply goes on meanwhile.
type snapshot struct{ view *state.View }

var _ raft.FSMSnapshot = snapshot{}

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := WriteSnapshot(sink, s.view); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("close snapshot: %w", err)
	}
	return nil
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}

// WriteSnapshot writes a View as a snapshot.
func WriteSnapshot(w io.Writer, v *state.View) error {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 256<<10)
	if _, err := out.WriteString(magic); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	z, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if err := writeRows(z, v); err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), z.Close())
	}
	if err := errors.Join(z.Close(), out.Flush()); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := w.Write(sum.Sum(nil)); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

func writeRows(w io.Writer, v *state.View) error {
	m, h := v.Meta(), v.Hash()
	header := &logpb.SnapshotHeader{Version: snapshotVersion, ClusterId: m.ClusterID, Revision: m.Revision, Generation: m.Generation,
		FeatureLevel: m.FeatureLevel, Time: logpb.Nanos(m.Time), StateHash: h[:], Rows: v.CountRows()}
	if _, err := protodelim.MarshalTo(w, header); err != nil {
		return err
	}
	for row := range v.Rows() {
		if _, err := protodelim.MarshalTo(w, row); err != nil {
			return err
		}
	}
	return nil
}

// InspectSnapshot reads a whole snapshot, checks all of it and says what is in it.
func InspectSnapshot(r io.Reader) (*SnapshotInfo, error) {
	_, info, err := readSnapshot(r)
	return info, err
}

// LoadSnapshot is InspectSnapshot, and hands out the state as well.
func LoadSnapshot(r io.Reader) (*state.View, *SnapshotInfo, error) { return readSnapshot(r) }

// readSnapshot reads and checks a snapshot: its checksum, every row, their
// number, and the state hash, taken again from the rows.
func readSnapshot(r io.Reader) (*state.View, *SnapshotInfo, error) {
	body := &trailed{r: bufio.NewReaderSize(r, 256<<10), sum: sha256.New()}
	v, info, err := readBody(body)
	if err != nil {
		return nil, nil, fmt.Errorf("read snapshot: %w", err)
	}
	if err := body.check(); err != nil {
		return nil, nil, fmt.Errorf("read snapshot: %w", err)
	}
	return v, info, nil
}

func readBody(body io.Reader) (*state.View, *SnapshotInfo, error) {
	start := make([]byte, len(magic))
	if _, err := io.ReadFull(body, start); err != nil || string(start) != magic {
		return nil, nil, errors.New("this is not a snapshot")
	}
	z, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(32<<20), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, nil, err
	}
	defer z.Close()
	return readRows(bufio.NewReaderSize(z, 256<<10))
}

func readRows(r *bufio.Reader) (*state.View, *SnapshotInfo, error) {
	opts := protodelim.UnmarshalOptions{MaxSize: maxRow}
	h := new(logpb.SnapshotHeader)
	if err := opts.UnmarshalFrom(r, h); err != nil {
		return nil, nil, fmt.Errorf("header: %w", noEOF(err))
	}
	if h.GetVersion() != snapshotVersion {
		return nil, nil, fmt.Errorf("it has format version %d, this program reads %d", h.GetVersion(), snapshotVersion)
	}
	info := &SnapshotInfo{Version: h.GetVersion(), ClusterID: h.GetClusterId(), Revision: h.GetRevision(), Generation: h.GetGeneration(),
		FeatureLevel: h.GetFeatureLevel(), Time: logpb.Time(h.GetTime()), StateHash: h.GetStateHash(), Rows: map[string]uint64{}}
	if h.GetFeatureLevel() > FeatureLevel {
		return nil, nil, fmt.Errorf("it has feature level %d, this program knows %d", h.GetFeatureLevel(), FeatureLevel)
	}
	l := state.NewLoader()
	for i := uint64(0); i < h.GetRows(); i++ {
		row := new(logpb.SnapshotRow)
		if err := opts.UnmarshalFrom(r, row); err != nil {
			return nil, nil, fmt.Errorf("row %d: %w", i, noEOF(err))
		}
		if hasUnknown(row.ProtoReflect()) {
			return nil, nil, fmt.Errorf("row %d: a newer version wrote it", i)
		}
		if err := l.Load(row); err != nil {
			return nil, nil, fmt.Errorf("row %d: %w", i, err)
		}
		info.Rows[table(row)]++
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("there is something after the last row")
	}
	v, err := l.View()
	if err != nil {
		return nil, nil, err
	}
	if got := v.Hash(); !bytes.Equal(got[:], h.GetStateHash()) {
		return nil, nil, errors.New("the rows do not have the state hash that the header says")
	}
	if m := v.Meta(); m.Revision != h.GetRevision() || m.ClusterID != h.GetClusterId() {
		return nil, nil, errors.New("header and meta row contradict each other")
	}
	return v, info, nil
}

func table(row *logpb.SnapshotRow) string {
	m := row.ProtoReflect()
	return string(m.WhichOneof(m.Descriptor().Oneofs().ByName("row")).Name())
}

// noEOF keeps a snapshot that ends too early from looking like one that ends.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// trailed reads all but the last sha256.Size bytes of a stream, which are the
// checksum of those before.
type trailed struct {
	r    *bufio.Reader
	sum  hash.Hash
	rest []byte // the checksum, once it has been reached
}

func (t *trailed) Read(p []byte) (int, error) {
	if t.rest != nil {
		return 0, io.EOF
	}
	ahead, err := t.r.Peek(sha256.Size + 1)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			return 0, err
		}
		t.rest = append([]byte{}, ahead...)
		return 0, io.EOF
	}
	n := min(len(p), max(1, t.r.Buffered()-sha256.Size))
	n, err = t.r.Read(p[:n])
	t.sum.Write(p[:n])
	return n, err
}

// check reads what the decoder left, and compares.
func (t *trailed) check() error {
	n, err := io.Copy(io.Discard, t)
	switch {
	case err != nil:
		return err
	case n > 0:
		return errors.New("there is something after the compressed rows")
	case !bytes.Equal(t.rest, t.sum.Sum(nil)):
		return errors.New("the checksum does not match: it is damaged or cut short")
	}
	return nil
}
