package operation

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"bmc/agent/boot"
	"bmc/metal"
)

// RecordKind names what a journal record says.
type RecordKind string

// The kinds.
const (
	RecordBegun    RecordKind = "begun"    // a step began
	RecordIntent   RecordKind = "intent"   // an act is about to happen; it may or may not have
	RecordDone     RecordKind = "done"     // a step is done; Report is what to tell
	RecordFailed   RecordKind = "failed"   // a step failed; Report is what to tell
	RecordRecovery RecordKind = "recovery" // a rung of the recovery ladder; Text says which
	RecordReport   RecordKind = "report"   // a report with this Sequence is about to be sent
	RecordBoot     RecordKind = "boot"     // something between the machine and package boot
	RecordEnded    RecordKind = "ended"    // the control plane knows the end
	// RecordTaken says that another agent has reported in this attempt, last
	// under Epoch: what is above is void. Begun is when Step was begun, if it was;
	// Rungs are what was climbed in it.
	RecordTaken RecordKind = "taken"
)

// Record is one line of an operation's journal.
type Record struct {
	Kind     RecordKind  `json:"kind"`
	At       time.Time   `json:"at"`
	Step     metal.Step  `json:"step,omitempty"`
	Act      string      `json:"act,omitempty"`
	Text     string      `json:"text,omitempty"`
	Sequence uint64      `json:"sequence,omitempty"`
	Report   []byte      `json:"report,omitempty"` // ReportStepRequest
	Boot     *boot.Event `json:"boot,omitempty"`
	Epoch    uint64      `json:"epoch,omitempty"` // of a report
	Begun    time.Time   `json:"begun,omitzero"`
	Rungs    []string    `json:"rungs,omitempty"`
}

const (
	journalMagic = "bmcjrnl1"
	frameHeader  = 8       // length and CRC-32C, little-endian
	maxRecord    = 4 << 20 // bytes; a result with its hardware is a few kilobytes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Journal is an operation's append-only file. Append returns when the record is
// on disk. It is safe for concurrent use.
type Journal struct {
	mu   sync.Mutex
	file *os.File
	err  error // the first failed write: what follows it could not be read back
}

// OpenJournal opens or makes the file and returns the records in it. A torn
// tail, from a crash in the middle of a write, is cut off.
func OpenJournal(path string) (*Journal, []Record, error) {
	_, statErr := os.Stat(path)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	records, err := recoverRecords(f)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	if errors.Is(statErr, os.ErrNotExist) {
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, nil, errors.Join(err, f.Close())
		}
	}
	return &Journal{file: f}, records, nil
}

func recoverRecords(f *os.File) ([]Record, error) {
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	if len(data) < len(journalMagic) { // made, never written
		if err := f.Truncate(0); err != nil {
			return nil, err
		}
		if _, err := f.WriteAt([]byte(journalMagic), 0); err != nil {
			return nil, err
		}
		_, err := f.Seek(0, io.SeekEnd)
		return nil, errors.Join(err, f.Sync())
	}
	records, good, err := decode(data)
	if err != nil {
		return nil, err
	}
	if good < len(data) {
		if err := errors.Join(f.Truncate(int64(good)), f.Sync()); err != nil {
			return nil, err
		}
	}
	_, err = f.Seek(int64(good), io.SeekStart)
	return records, err
}

// decode returns the records of a journal's bytes and how many bytes are good.
func decode(data []byte) ([]Record, int, error) {
	if len(data) < len(journalMagic) || string(data[:len(journalMagic)]) != journalMagic {
		return nil, 0, errors.New("not an operation's journal")
	}
	var records []Record
	at := len(journalMagic)
	for len(data)-at >= frameHeader {
		size := binary.LittleEndian.Uint32(data[at:])
		sum := binary.LittleEndian.Uint32(data[at+4:])
		if size > maxRecord || int(size) > len(data)-at-frameHeader {
			break
		}
		payload := data[at+frameHeader : at+frameHeader+int(size)]
		var r Record
		if crc32.Checksum(payload, castagnoli) != sum || json.Unmarshal(payload, &r) != nil {
			break
		}
		records = append(records, r)
		at += frameHeader + int(size)
	}
	return records, at, nil
}

// Append writes a record and waits until it is on disk.
func (j *Journal) Append(r Record) error {
	payload, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(payload) > maxRecord {
		return fmt.Errorf("journal record of %d bytes is too large", len(payload))
	}
	frame := make([]byte, frameHeader, frameHeader+len(payload))
	binary.LittleEndian.PutUint32(frame, uint32(len(payload)))
	binary.LittleEndian.PutUint32(frame[4:], crc32.Checksum(payload, castagnoli))
	frame = append(frame, payload...)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	if _, err := j.file.Write(frame); err != nil {
		j.err = err
		return err
	}
	if err := j.file.Sync(); err != nil {
		j.err = err // what the kernel dropped cannot be told from what it kept
		return err
	}
	return nil
}

// Close closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		j.err = os.ErrClosed
	}
	return j.file.Close()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
