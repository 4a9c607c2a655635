package kexec

import (
	"crypto/rand"
	"errors"
)

const (
	setupHeader  = 16 // struct setup_data: next, type, length
	setupEFI     = 4
	setupRNGSeed = 9
	efiMemDesc   = 40 // struct efi_memory_desc_t as readEFI writes it
)

// parameters returns what the next kernel is started by and with, for one place in
// memory: boot_params, the code that goes there, the command line, and the rest. The
// code is one page on.
func parameters(s *system, k *bzImage, cmdline string, at uint64, kernel, initrd span, initrdSize uint64) ([]byte, error) {
	if most := le.Uint32(k.header[offCmdlineSize-offHeader:]); uint64(len(cmdline)) > uint64(most) {
		return nil, errors.New("the command line is too long")
	}
	b := make([]byte, bootParamsSize)
	copy(b[:0x40], s.params) // screen_info
	clear(b[0x02:0x04])      // its ext_mem_k, which nobody needs beside a memory map
	for _, keep := range []struct{ from, size int }{
		{offRSDP, 8}, {offEDDEntries, 2}, {offSecureBoot, 1}, {offEDDSignatures, 64}, {offEDD, 492},
	} {
		copy(b[keep.from:keep.from+keep.size], s.params[keep.from:])
	}
	copy(b[offHeader:], k.header)
	copy(b[offSubarch:offSubarch+4], s.params[offSubarch:])
	b[offLoader] = 0xd0 // kexec
	for i, r := range s.e820 {
		e := b[offE820+20*i:]
		le.PutUint64(e, r.start)
		le.PutUint64(e[8:], r.end-r.start)
		le.PutUint32(e[16:], r.kind)
	}
	b[offE820Entries] = byte(len(s.e820)) //nolint:gosec // 128 at most
	split(b, offInitrd, offExtInitrd, initrd.start)
	split(b, offInitrdSize, offExtInitrdSize, initrdSize)

	b = append(b, trampoline(at+bootParamsSize, at, kernel.start+entry64)...)
	split(b, offCmdline, offExtCmdline, at+uint64(len(b)))
	b = append(append(b, cmdline...), 0)
	if s.efi != nil {
		b = align16(b)
		setEFI(b, s.params, at+uint64(len(b)), len(s.efi.memory))
		b = append(b, s.efi.memory...)
		data := append(append([]byte(nil), s.efi.vendor...), make([]byte, 8)...)
		data = append(append(data, s.efi.tables...), s.efi.smbios...)
		b = addSetupData(b, at, setupEFI, append(data, make([]byte, 64)...))
	}
	seed := make([]byte, 32)
	if _, err := rand.Read(seed); err != nil {
		return nil, err
	}
	return addSetupData(b, at, setupRNGSeed, seed), nil
}

// split writes an address, which has its lower and its upper half in two places.
func split(b []byte, low, high int, v uint64) {
	le.PutUint32(b[low:], uint32(v))      //nolint:gosec // the lower half
	le.PutUint32(b[high:], uint32(v>>32)) //nolint:gosec // the upper half
}

// setEFI fills struct efi_info: all of it is the firmware's but for the memory map.
func setEFI(b, running []byte, memory uint64, size int) {
	e := b[offEFI : offEFI+32]
	copy(e, running[offEFI:offEFI+32]) // signature, systab and version stay
	le.PutUint32(e[8:], efiMemDesc)
	split(e, 16, 28, memory)
	le.PutUint32(e[20:], uint32(size)) //nolint:gosec // some kilobytes
}

// addSetupData puts an entry before the others in the list at hdr.setup_data.
func addSetupData(b []byte, at uint64, kind uint32, data []byte) []byte {
	b = align16(b)
	here := at + uint64(len(b))
	b = append(b, b[offSetupData:offSetupData+8]...)
	b = le.AppendUint32(b, kind)
	b = le.AppendUint32(b, uint32(len(data))) //nolint:gosec // some bytes
	b = append(b, data...)
	le.PutUint64(b[offSetupData:], here)
	return b
}

func align16(b []byte) []byte { return append(b, make([]byte, (16-len(b)%16)%16)...) }

// trampoline is one page of code and stack that the running kernel jumps to, with all
// registers zero: it sets what the 64-bit boot protocol asks for, and goes on.
func trampoline(at, params, entry uint64) []byte {
	const gdtr, gdt = 0x40, 0x50
	code := []byte{0x48, 0x8d, 0x25} // lea rsp, [rip+...]: the page's end
	code = le.AppendUint32(code, pageSize-7)
	code = append(code, 0x0f, 0x01, 0x15) // lgdt [rip+...]
	code = le.AppendUint32(code, gdtr-14)
	code = append(code, 0xb8, 0x18, 0, 0, 0, // mov eax, __BOOT_DS
		0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0x8e, 0xe0, 0x8e, 0xe8, // mov ds, es, ss, fs, gs, eax
		0x48, 0xbe) // movabs rsi, boot_params
	code = le.AppendUint64(code, params)
	code = append(code, 0x48, 0xb8) // movabs rax, the kernel's entry
	code = le.AppendUint64(code, entry)
	code = append(code, 0x6a, 0x10, 0x50, 0x31, 0xc0, 0x48, 0xcb) // push __BOOT_CS; push rax; xor eax, eax; retfq

	page := make([]byte, pageSize)
	copy(page, code)
	le.PutUint16(page[gdtr:], 4*8-1)
	le.PutUint64(page[gdtr+2:], at+gdt)
	le.PutUint64(page[gdt+0x10:], 0x00af9b000000ffff) // 64-bit code, 4 GiB
	le.PutUint64(page[gdt+0x18:], 0x00cf93000000ffff) // data, 4 GiB
	return page
}
