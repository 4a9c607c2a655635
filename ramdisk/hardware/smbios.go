package hardware

import (
	"bytes"
	"encoding/binary"
)

// installedMemory sums the memory devices (type 17) of an SMBIOS structure
// table, in bytes (DSP0134, 7.18). It stops at the first malformed structure.
func installedMemory(table []byte) uint64 {
	var total uint64
	for len(table) >= 4 {
		kind, length := table[0], int(table[1])
		if length < 4 || length > len(table) || kind == 127 {
			break
		}
		if kind == 17 {
			total += memoryDevice(table[:length])
		}
		// The strings after the formatted area end with two zero bytes.
		end := bytes.Index(table[length:], []byte{0, 0})
		if end < 0 {
			break
		}
		table = table[length+end+2:]
	}
	return total
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
