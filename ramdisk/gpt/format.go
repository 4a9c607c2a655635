package gpt

import "encoding/binary"

// Layout is a partition for Format.
type Layout struct {
	Type        GUID
	First, Last uint64 // sectors
}

// Format returns the first bytes and the last bytes of a disk of total sectors
// with a fresh table: what tests and labs need of a partitioning program.
func Format(sector int, total uint64, parts ...Layout) (head, tail []byte) {
	t := &Table{sector: uint64(sector), header: make([]byte, sector), entries: make([]byte, maxEntries*entrySize)}
	copy(t.header, signature)
	binary.LittleEndian.PutUint32(t.header[8:], 0x10000)
	binary.LittleEndian.PutUint32(t.header[12:], headerSize)
	t.set64(24, 1)
	t.set64(32, total-1)
	t.set64(40, 2+t.entrySectors())
	t.set64(48, total-2-t.entrySectors())
	copy(t.header[56:], "a disk's unique ")
	t.set64(72, 2)
	binary.LittleEndian.PutUint32(t.header[80:], maxEntries)
	binary.LittleEndian.PutUint32(t.header[84:], entrySize)
	for i, p := range parts {
		e := t.entry(i + 1)
		copy(e, p.Type[:])
		copy(e[16:], "partition's GUID")
		e[16] = byte(i + 1)
		binary.LittleEndian.PutUint64(e[32:], p.First)
		binary.LittleEndian.PutUint64(e[40:], p.Last)
	}
	d := &disk{head: make([]byte, (2+t.entrySectors())*t.sector), tail: make([]byte, (1+t.entrySectors())*t.sector)}
	d.tailAt = int64(total*t.sector) - int64(len(d.tail))
	mbr := d.head[446:]
	mbr[4] = 0xee
	binary.LittleEndian.PutUint32(mbr[8:], 1)
	d.head[510], d.head[511] = 0x55, 0xaa
	_ = t.Write(d, int64(total*t.sector)) // memory does not fail
	return d.head, d.tail
}

// disk is both ends of a disk, in memory.
type disk struct {
	head, tail []byte
	tailAt     int64
}

func (d *disk) at(off int64) []byte {
	if off >= d.tailAt {
		return d.tail[off-d.tailAt:]
	}
	return d.head[off:]
}

func (d *disk) ReadAt(p []byte, off int64) (int, error)  { return copy(p, d.at(off)), nil }
func (d *disk) WriteAt(p []byte, off int64) (int, error) { return copy(d.at(off), p), nil }
