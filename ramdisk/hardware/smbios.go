package hardware

import (
	"bytes"
	"encoding/binary"
	"iter"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// installedMemory sums the memory devices (type 17) of an SMBIOS structure
// table, in bytes (DSP0134, 7.18). It stops at the first malformed structure.
func installedMemory(table []byte) uint64 {
	var total uint64
	for s := range structures(table) {
		if s.kind() == 17 {
			total += memoryDevice(s.data)
		}
	}
	return total
}

// structure is one entry of a table: its formatted area and its strings.
type structure struct {
	data    []byte
	strings []byte
}

func (s structure) kind() byte { return s.data[0] }

// text is the string whose number is at an offset; "" for none, and for what
// vendors leave in place of one.
func (s structure) text(offset int) string {
	if offset >= len(s.data) || s.data[offset] == 0 {
		return ""
	}
	all := bytes.Split(s.strings, []byte{0})
	if n := int(s.data[offset]); n <= len(all) {
		return metal.ProperSerial(printable(all[n-1]))
	}
	return ""
}

func (s structure) byte(offset int) byte {
	if offset >= len(s.data) {
		return 0
	}
	return s.data[offset]
}

func (s structure) word(offset int) uint16 {
	if offset+2 > len(s.data) {
		return 0
	}
	return binary.LittleEndian.Uint16(s.data[offset:])
}

// structures yields a table's entries up to the first malformed one.
func structures(table []byte) iter.Seq[structure] {
	return func(yield func(structure) bool) {
		for len(table) >= 4 {
			kind, length := table[0], int(table[1])
			if length < 4 || length > len(table) || kind == 127 {
				return
			}
			// The strings after the formatted area end with two zero bytes.
			end := bytes.Index(table[length:], []byte{0, 0})
			if end < 0 {
				end = len(table) - length // cut off: the last one
			}
			if !yield(structure{table[:length], table[length : length+end]}) {
				return
			}
			table = table[min(length+end+2, len(table)):]
		}
	}
}

// memoryKinds are those of type 17 that servers have (DSP0134, 7.18.2).
var memoryKinds = map[byte]string{0x0f: "SDRAM", 0x12: "DDR", 0x13: "DDR2", 0x18: "DDR3", 0x1a: "DDR4", 0x1b: "LPDDR", 0x1e: "LPDDR4",
	0x20: "HBM", 0x21: "HBM2", 0x22: "DDR5", 0x23: "LPDDR5"}

const maxModules = 64

// modules lists the memory modules in filled slots.
func modules(table []byte) []*agentv1.DIMM {
	var out []*agentv1.DIMM
	for s := range structures(table) {
		if s.kind() != 17 || len(out) == maxModules {
			continue
		}
		size := memoryDevice(s.data)
		if size == 0 {
			continue
		}
		out = append(out, &agentv1.DIMM{Slot: s.text(0x10), SizeBytes: size, SpeedMts: uint32(s.word(0x15)), Kind: memoryKinds[s.byte(0x12)],
			Vendor: s.text(0x17), Serial: s.text(0x18), Part: s.text(0x1a)})
	}
	return out
}

// processors counts populated sockets and their cores (type 4, DSP0134, 7.5).
func processors(table []byte) (sockets, cores uint32) {
	for s := range structures(table) {
		if s.kind() != 4 || s.byte(0x05) != 3 || s.byte(0x18)&0x40 == 0 { // a central processor, and there
			continue
		}
		sockets++
		n := uint32(s.byte(0x23))
		if n == 0xff { // more than 254: SMBIOS 3.0 has a word for it
			n = uint32(s.word(0x2a))
		}
		cores += n
	}
	return sockets, cores
}

func memoryDevice(s []byte) uint64 {
	if len(s) < 0x0e {
		return 0
	}
	size := binary.LittleEndian.Uint16(s[0x0c:])
	switch {
	case size == 0 || size == 0xffff: // an empty slot, or unknown
		return 0
	case size == 0x7fff: // the extended size has it, in MiB
		if len(s) < 0x20 {
			return 0
		}
		return uint64(binary.LittleEndian.Uint32(s[0x1c:])&0x7fffffff) << 20
	case size&0x8000 != 0:
		return uint64(size&0x7fff) << 10
	}
	return uint64(size) << 20
}
