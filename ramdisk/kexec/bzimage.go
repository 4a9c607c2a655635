package kexec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Offsets in a bzImage's header and in struct boot_params, which begins with that
// header's place (the kernel's arch/x86/boot.rst and zero-page.rst).
const (
	offRSDP          = 0x070
	offExtInitrd     = 0x0c0
	offExtInitrdSize = 0x0c4
	offExtCmdline    = 0x0c8
	offEFI           = 0x1c0
	offE820Entries   = 0x1e8
	offEDDEntries    = 0x1e9
	offSecureBoot    = 0x1ec
	offHeader        = 0x1f1 // setup_sects
	offBootFlag      = 0x1fe
	offJump          = 0x200
	offMagic         = 0x202
	offVersion       = 0x206
	offLoader        = 0x210
	offInitrd        = 0x218
	offInitrdSize    = 0x21c
	offCmdline       = 0x228
	offAlignment     = 0x230
	offRelocatable   = 0x234
	offXLoadFlags    = 0x236
	offCmdlineSize   = 0x238
	offSubarch       = 0x23c
	offSetupData     = 0x250
	offPreferred     = 0x258
	offInitSize      = 0x260
	headerSize       = 0x268 // as of protocol 2.12, all that is read here
	offEDDSignatures = 0x290
	offE820          = 0x2d0
	offEDD           = 0xd00
	bootParamsSize   = 0x1000

	entry64 = 0x200 // from the start of the 64-bit code
)

// bzImage is what a kernel's header says of loading it.
type bzImage struct {
	header    []byte // as it goes into boot_params, from offHeader on
	offset    int64  // in the file, of the code for 64 bits
	size      int64
	initSize  uint64 // memory that it wants where it is loaded, until it is unpacked
	alignment uint64
	preferred uint64
}

var le = binary.LittleEndian

// parseBzImage accepts kernels that start in 64-bit mode, wherever they are loaded,
// with as many levels of page tables as there are.
func parseBzImage(f io.ReaderAt, size int64) (*bzImage, error) {
	b := make([]byte, headerSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read the kernel's header: %w", err)
	}
	const kernel64, above4G, fiveLevel = 1 << 0, 1 << 1, 1 << 5
	const wanted = kernel64 | above4G | fiveLevel
	switch {
	case string(b[offMagic:offMagic+4]) != "HdrS" || le.Uint16(b[offBootFlag:]) != 0xaa55:
		return nil, errors.New("it is no bzImage")
	case le.Uint16(b[offVersion:]) < 0x020c:
		return nil, errors.New("its boot protocol is older than 2.12")
	case b[offRelocatable] == 0 || le.Uint16(b[offXLoadFlags:])&wanted != wanted:
		return nil, errors.New("it does not start in 64-bit mode wherever it is loaded")
	}
	sectors := int64(b[offHeader])
	if sectors == 0 {
		sectors = 4
	}
	k := &bzImage{offset: (sectors + 1) * 512, initSize: uint64(le.Uint32(b[offInitSize:])), alignment: uint64(le.Uint32(b[offAlignment:])), preferred: le.Uint64(b[offPreferred:])}
	k.size = size - k.offset
	end := offMagic + int(b[offJump+1]) // the jump's target is the header's end
	if k.size <= entry64 || k.initSize < uint64(k.size) || k.alignment < pageSize || k.alignment&(k.alignment-1) != 0 || end < headerSize || end > offEDDSignatures {
		return nil, errors.New("its header makes no sense")
	}
	k.header = make([]byte, end-offHeader)
	if _, err := f.ReadAt(k.header, offHeader); err != nil {
		return nil, fmt.Errorf("read the kernel's header: %w", err)
	}
	return k, nil
}

// span is a range of physical memory, end not in it.
type span struct{ start, end uint64 }

// place finds the lowest room for size bytes in RAM at or above a floor, aligned, clear of what is taken.
func place(ram, taken []span, size, alignment, floor uint64) (span, error) {
	const below = 1 << 32 // every loader puts them there, so every kernel copes
	for _, r := range ram {
		at := alignUp(max(r.start, floor), alignment)
		for at+size <= min(r.end, below) {
			clear := true
			for _, t := range taken {
				if at < t.end && t.start < at+size {
					at, clear = alignUp(t.end, alignment), false
				}
			}
			if clear {
				return span{at, at + size}, nil
			}
		}
	}
	return span{}, fmt.Errorf("no room for %d bytes", size)
}

func alignUp(v, to uint64) uint64 { return (v + to - 1) &^ (to - 1) }
