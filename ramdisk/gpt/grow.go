package gpt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// Grow makes the table fit a disk of size bytes and lets a partition take what
// has become free, up to a multiple of 1 MiB, if it is the last on the disk;
// number 0 is none. Nothing is written.
func (t *Table) Grow(size int64, number int) error {
	total := uint64(size) / t.sector
	tail := t.entrySectors() + 1 // the backup: entries, then header
	if total < t.u64(40)+tail+1 || total-1-tail < t.lastUsed() {
		return fmt.Errorf("gpt: the disk is smaller than its partitions")
	}
	t.set64(32, total-1)      // where the backup header is
	t.set64(48, total-1-tail) // last usable
	if number == 0 {
		return nil
	}
	p, ok := t.Partition(number)
	if !ok {
		return fmt.Errorf("gpt: there is no partition %d", number)
	}
	if p.Last != t.lastUsed() {
		return nil
	}
	step := alignment / t.sector
	if end := (t.u64(48) + 1) / step * step; end > p.Last+1 {
		binary.LittleEndian.PutUint64(t.entry(number)[40:], end-1)
	}
	return nil
}

func (t *Table) entrySectors() uint64 {
	return (uint64(len(t.entries)) + t.sector - 1) / t.sector
}

func (t *Table) lastUsed() (last uint64) {
	for _, p := range t.Partitions() {
		last = max(last, p.Last)
	}
	return last
}

// Write stores the table and its backup on a disk whose backup was at the end
// of the first formerly bytes. The backup goes first: at every moment one of
// the two is whole.
func (t *Table) Write(w interface {
	io.ReaderAt
	io.WriterAt
}, formerly int64) error {
	backupHeader := t.u64(32)
	backupEntries := backupHeader - t.entrySectors()
	entries := make([]byte, t.entrySectors()*t.sector)
	copy(entries, t.entries)

	backup := &Table{sector: t.sector, header: append([]byte(nil), t.header...), entries: t.entries}
	backup.set64(24, backupHeader)
	backup.set64(32, 1)
	backup.set64(72, backupEntries)
	backup.seal()
	t.seal()

	writes := []struct {
		at   uint64
		data []byte
	}{
		{backupEntries, entries}, {backupHeader, backup.header},
		{t.u64(72), entries}, {1, t.header},
	}
	for _, x := range writes {
		if _, err := w.WriteAt(x.data, int64(x.at*t.sector)); err != nil {
			return fmt.Errorf("gpt: write sector %d: %w", x.at, err)
		}
	}
	// What is left of the former backup would puzzle repair tools.
	if old := uint64(formerly)/t.sector - 1; old < backupEntries {
		start := old - t.entrySectors()
		if _, err := w.WriteAt(make([]byte, (t.entrySectors()+1)*t.sector), int64(start*t.sector)); err != nil {
			return fmt.Errorf("gpt: erase the former backup: %w", err)
		}
	}
	return t.protect(w, backupHeader)
}

// seal brings both checksums up to date.
func (t *Table) seal() {
	binary.LittleEndian.PutUint32(t.header[88:], crc32.ChecksumIEEE(t.entries))
	binary.LittleEndian.PutUint32(t.header[16:], t.headerCRC())
}

// protect stretches the protective MBR's one partition over the disk (5.2.3).
// Boot code and any other entry stay as they are.
func (t *Table) protect(w interface {
	io.ReaderAt
	io.WriterAt
}, last uint64) error {
	mbr := make([]byte, t.sector)
	if _, err := w.ReadAt(mbr, 0); err != nil {
		return fmt.Errorf("gpt: read the protective MBR: %w", err)
	}
	for e := 446; e < 510; e += 16 {
		if mbr[e+4] == 0xee {
			first := binary.LittleEndian.Uint32(mbr[e+8:])
			binary.LittleEndian.PutUint32(mbr[e+12:], uint32(min(last+1-uint64(first), 1<<32-1)))
		}
	}
	if _, err := w.WriteAt(mbr, 0); err != nil {
		return fmt.Errorf("gpt: write the protective MBR: %w", err)
	}
	return nil
}
