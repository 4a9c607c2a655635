// Package gpt reads a disk's GUID partition table, moves its end to the end of
// a larger disk and grows the last partition (UEFI 2.10, chapter 5).
package gpt

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
)

const (
	signature  = "EFI PART"
	headerSize = 92
	entrySize  = 128
	maxEntries = 128 // more is legal, but nobody makes them
	alignment  = 1 << 20
)

// ErrNone says that the disk has no GUID partition table.
var ErrNone = errors.New("no GUID partition table")

// GUID is in its on-disk byte order.
type GUID [16]byte

// ESP is the type of an EFI system partition.
var ESP = GUID{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}

// String is the text form, in which the first three groups are little-endian.
func (g GUID) String() string {
	b := g
	slices.Reverse(b[0:4])
	slices.Reverse(b[4:6])
	slices.Reverse(b[6:8])
	h := hex.EncodeToString(b[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// Partition is an entry in use. First and Last count sectors and are inclusive.
type Partition struct {
	Number      int // from 1
	Type, GUID  GUID
	First, Last uint64
}

// Table is a disk's primary table.
type Table struct {
	sector  uint64 // bytes
	header  []byte // one sector
	entries []byte // as many as the header says
}

// Read reads and checks the primary table. ErrNone: there is none.
func Read(r io.ReaderAt, sector int) (*Table, error) {
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 {
		return nil, fmt.Errorf("gpt: sectors of %d bytes", sector)
	}
	t := &Table{sector: uint64(sector), header: make([]byte, sector)}
	if _, err := r.ReadAt(t.header, int64(sector)); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, ErrNone
		}
		return nil, fmt.Errorf("gpt: read the header: %w", err)
	}
	if string(t.header[:8]) != signature {
		return nil, ErrNone
	}
	if size := t.u32(12); size != headerSize {
		return nil, fmt.Errorf("gpt: a header of %d bytes", size)
	}
	if t.headerCRC() != t.u32(16) {
		return nil, errors.New("gpt: the header's checksum is wrong")
	}
	n := t.u32(80)
	if t.u32(84) != entrySize || n == 0 || n > maxEntries {
		return nil, fmt.Errorf("gpt: %d entries of %d bytes", n, t.u32(84))
	}
	if t.u64(24) != 1 || t.u64(72) < 2 || t.u64(72) > t.u64(40) || t.u64(40) > t.u64(48) || t.u64(48) >= 1<<50 {
		return nil, errors.New("gpt: the header's sectors are out of order")
	}
	t.entries = make([]byte, n*entrySize)
	if _, err := r.ReadAt(t.entries, int64(t.u64(72)*t.sector)); err != nil {
		return nil, fmt.Errorf("gpt: read the entries: %w", err)
	}
	if crc32.ChecksumIEEE(t.entries) != t.u32(88) {
		return nil, errors.New("gpt: the entries' checksum is wrong")
	}
	for _, p := range t.Partitions() {
		if p.First > p.Last || p.First < t.u64(40) || p.Last > t.u64(48) {
			return nil, fmt.Errorf("gpt: partition %d lies outside the disk", p.Number)
		}
	}
	return t, nil
}

func (t *Table) u32(at int) uint32       { return binary.LittleEndian.Uint32(t.header[at:]) }
func (t *Table) u64(at int) uint64       { return binary.LittleEndian.Uint64(t.header[at:]) }
func (t *Table) set64(at int, v uint64)  { binary.LittleEndian.PutUint64(t.header[at:], v) }
func (t *Table) entry(number int) []byte { return t.entries[(number-1)*entrySize : number*entrySize] }

func (t *Table) headerCRC() uint32 {
	h := slices.Clone(t.header[:headerSize])
	clear(h[16:20])
	return crc32.ChecksumIEEE(h)
}

// Partitions lists the entries in use, by number.
func (t *Table) Partitions() []Partition {
	var list []Partition
	for n := 1; n*entrySize <= len(t.entries); n++ {
		e := t.entry(n)
		if GUID(e[:16]) == (GUID{}) {
			continue
		}
		list = append(list, Partition{Number: n, Type: GUID(e[:16]), GUID: GUID(e[16:32]),
			First: binary.LittleEndian.Uint64(e[32:]), Last: binary.LittleEndian.Uint64(e[40:])})
	}
	return list
}

// Partition returns one entry.
func (t *Table) Partition(number int) (Partition, bool) {
	for _, p := range t.Partitions() {
		if p.Number == number {
			return p, true
		}
	}
	return Partition{}, false
}

// Bytes returns where a partition begins and how long it is.
func (t *Table) Bytes(p Partition) (offset, length int64) {
	return int64(p.First * t.sector), int64((p.Last - p.First + 1) * t.sector)
}

// Sector is the size that the table counts in, in bytes.
func (t *Table) Sector() int { return int(t.sector) }
