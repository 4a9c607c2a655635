package kexec

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeKernel is a bzImage with nothing behind its header.
func fakeKernel(change func([]byte)) []byte {
	b := make([]byte, 2*512+0x1000)
	b[offHeader] = 1
	le.PutUint16(b[offBootFlag:], 0xaa55)
	b[offJump], b[offJump+1] = 0xeb, 0x6a
	copy(b[offMagic:], "HdrS")
	le.PutUint16(b[offVersion:], 0x020f)
	le.PutUint32(b[offAlignment:], 2<<20)
	b[offRelocatable] = 1
	le.PutUint16(b[offXLoadFlags:], 0x7f)
	le.PutUint32(b[offCmdlineSize:], 2047)
	le.PutUint64(b[offPreferred:], 16<<20)
	le.PutUint32(b[offInitSize:], 50<<20)
	if change != nil {
		change(b)
	}
	return b
}

func TestParseBzImage(t *testing.T) {
	for name, tt := range map[string]struct {
		change func([]byte)
		want   string
	}{
		"a kernel":             {nil, ""},
		"something else":       {func(b []byte) { b[offMagic] = 'h' }, "no bzImage"},
		"an old one":           {func(b []byte) { le.PutUint16(b[offVersion:], 0x0205) }, "older than 2.12"},
		"32 bits":              {func(b []byte) { b[offXLoadFlags] &^= 1 }, "64-bit"},
		"not relocatable":      {func(b []byte) { b[offRelocatable] = 0 }, "64-bit"},
		"four levels only":     {func(b []byte) { b[offXLoadFlags] = 3 }, "64-bit"},
		"too small":            {func(b []byte) { b[offHeader] = 200 }, "no sense"},
		"no room to unpack":    {func(b []byte) { le.PutUint32(b[offInitSize:], 100) }, "no sense"},
		"a crooked alignment":  {func(b []byte) { le.PutUint32(b[offAlignment:], 3<<20) }, "no sense"},
		"a header too short":   {func(b []byte) { b[offJump+1] = 0x10 }, "no sense"},
		"a header over others": {func(b []byte) { b[offJump+1] = 0xff }, "no sense"},
	} {
		b := fakeKernel(tt.change)
		k, err := parseBzImage(bytes.NewReader(b), int64(len(b)))
		if tt.want != "" {
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if k.offset != 1024 || k.size != 0x1000 || k.initSize != 50<<20 || k.preferred != 16<<20 || len(k.header) != offMagic+0x6a-offHeader {
			t.Errorf("%s: %+v", name, k)
		}
	}
	if _, err := parseBzImage(strings.NewReader("short"), 5); err == nil {
		t.Error("a file without a header is a kernel")
	}
}

func TestPlace(t *testing.T) {
	const mib = 1 << 20
	ram := []span{{0, 640 << 10}, {mib, 100 * mib}, {200 * mib, 5000 * mib}}
	for name, tt := range map[string]struct {
		taken           []span
		size, al, floor uint64
		want            uint64 // 0: no room
	}{
		"lowest":                {nil, mib, 4096, mib, mib},
		"aligned":               {nil, mib, 2 * mib, 3 * mib, 4 * mib},
		"after what is taken":   {[]span{{mib, 9 * mib}, {9 * mib, 11 * mib}}, mib, 2 * mib, mib, 12 * mib},
		"in whatever order":     {[]span{{9 * mib, 11 * mib}, {mib, 9 * mib}}, mib, 2 * mib, mib, 12 * mib},
		"in the next range":     {nil, 99*mib + 1, 4096, mib, 200 * mib},
		"exactly":               {nil, 99 * mib, 4096, mib, mib},
		"nothing is so large":   {nil, 4000 * mib, 4096, mib, 0},
		"not above four GiB":    {nil, mib, 4096, 4096 * mib, 0},
		"in a gap of the right": {[]span{{mib, 2 * mib}, {3 * mib, 300 * mib}}, mib, 4096, mib, 2 * mib},
	} {
		got, err := place(ram, tt.taken, tt.size, tt.al, tt.floor)
		if (err != nil) != (tt.want == 0) || got.start != tt.want || err == nil && got.end-got.start != tt.size {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
}

// fakeSystem is what /sys and /proc say of a machine with UEFI.
func fakeSystem(t *testing.T, uefi bool) string {
	t.Helper()
	root := t.TempDir()
	running := bytes.Repeat([]byte{0xee}, bootParamsSize)
	le.PutUint64(running[offRSDP:], 0x7ff00014)
	copy(running[offEFI:], "EL64")
	files := map[string]string{
		"sys/kernel/boot_params/data": string(running),
		"proc/iomem":                  "00001000-0009fbff : System RAM\n00100000-1fffffff : System RAM\n  01000000-01ffffff : Kernel code\n20000000-2fffffff : Reserved\n",
	}
	for i, r := range []string{"0x100000 0x1fffffff System RAM", "0x0 0x9fbff System RAM", "0x20000000 0x2fffffff Reserved", "0x30000000 0x300fffff ACPI Tables"} {
		f := strings.SplitN(r, " ", 3)
		for name, v := range map[string]string{"start": f[0], "end": f[1], "type": f[2]} {
			files[fmt.Sprintf("sys/firmware/memmap/%d/%s", i, name)] = v + "\n"
		}
	}
	if uefi {
		for name, v := range map[string]string{"fw_vendor": "0x1111\n", "config_table": "0x2222\n", "systab": "ACPI20=0x3\nSMBIOS3=0x5555\nSMBIOS=0x4444\n"} {
			files["sys/firmware/efi/"+name] = v
		}
		for i := range 2 {
			for name, v := range map[string]string{"type": "0x5", "phys_addr": "0x1f0000", "virt_addr": "0xfffffffeff000000", "num_pages": "0x20", "attribute": "0x800000000000000f"} {
				files[fmt.Sprintf("sys/firmware/efi/runtime-map/%d/%s", i, name)] = v + "\n"
			}
		}
	}
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// What the next kernel is told is what the firmware told this one.
func TestParameters(t *testing.T) {
	for _, uefi := range []bool{false, true} {
		s, err := readSystem(fakeSystem(t, uefi))
		if err != nil {
			t.Fatal(err)
		}
		image := fakeKernel(nil)
		k, err := parseBzImage(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			t.Fatal(err)
		}
		const cmdline = "root=LABEL=root console=ttyS0"
		l, b, err := layOut(s, k, cmdline, 5000)
		if err != nil {
			t.Fatal(err)
		}
		if l.kernel != (span{16 << 20, 66 << 20}) || l.initrd != (span{66 << 20, 66<<20 + 8192}) || l.params.start != 1<<20 {
			t.Errorf("laid out %x", l)
		}
		at := func(offset, size int) string { return fmt.Sprintf("%x", b[offset:offset+size]) }
		for what, tt := range map[string]struct{ got, want string }{
			"header":           {at(offHeader, 4), fmt.Sprintf("%x", image[offHeader:offHeader+4])},
			"loader":           {at(offLoader, 1), "d0"},
			"RSDP":             {at(offRSDP, 8), "1400f07f00000000"},
			"initrd":           {at(offInitrd, 8), "0000200488130000"},
			"screen":           {at(4, 4), "eeeeeeee"},
			"memory":           {at(offE820Entries, 1), "04"},
			"the first region": {at(offE820, 20), "000000000000000000fc09000000000001000000"},
			"the last one":     {at(offE820+60, 20), "0000003000000000000010000000000003000000"},
		} {
			if tt.got != tt.want {
				t.Errorf("%s: %s, want %s", what, tt.got, tt.want)
			}
		}
		line := int(le.Uint32(b[offCmdline:])) - 1<<20
		if got := string(b[line : line+len(cmdline)+1]); got != cmdline+"\x00" {
			t.Errorf("command line %q", got)
		}
		data := setupData(b, 1<<20)
		if len(data[setupRNGSeed]) != 32 || bytes.Equal(data[setupRNGSeed], make([]byte, 32)) {
			t.Errorf("seed %x", data[setupRNGSeed])
		}
		if !uefi {
			if len(data) != 1 || at(offEFI, 4) != "00000000" {
				t.Errorf("a BIOS has EFI: %v", data)
			}
			continue
		}
		memory := int(le.Uint32(b[offEFI+16:])) - 1<<20
		if at(offEFI, 4) != "454c3634" || le.Uint32(b[offEFI+8:]) != efiMemDesc || le.Uint32(b[offEFI+20:]) != 2*efiMemDesc ||
			at(memory, efiMemDesc) != "050000000000000000001f0000000000000000fffeffffff20000000000000000f00000000000080" {
			t.Errorf("EFI %s, memory %s", at(offEFI, 32), at(memory, efiMemDesc))
		}
		if e := data[setupEFI]; len(e) != 96 || le.Uint64(e) != 0x1111 || le.Uint64(e[16:]) != 0x2222 || le.Uint64(e[24:]) != 0x4444 {
			t.Errorf("EFI setup %x", e)
		}
	}
}

func setupData(b []byte, at uint64) map[uint32][]byte {
	all := map[uint32][]byte{}
	for next := le.Uint64(b[offSetupData:]); next != 0; {
		d := b[next-at:]
		all[le.Uint32(d[8:])] = d[setupHeader : setupHeader+le.Uint32(d[12:])]
		next = le.Uint64(d)
	}
	return all
}

// A machine that tells too little is left to the kernel's own loader.
func TestReadSystemRefuses(t *testing.T) {
	for name, gone := range map[string]string{"no boot_params": "sys/kernel/boot_params", "no memory map": "sys/firmware/memmap", "no memory": "proc/iomem",
		"runtime services not mapped": "sys/firmware/efi/runtime-map", "no tables": "sys/firmware/efi/config_table"} {
		root := fakeSystem(t, true)
		if err := os.RemoveAll(filepath.Join(root, gone)); err != nil {
			t.Fatal(err)
		}
		if _, err := readSystem(root); err == nil {
			t.Errorf("%s: taken as it is", name)
		}
	}
	root := fakeSystem(t, false)
	if err := os.WriteFile(filepath.Join(root, "sys/firmware/memmap/1/type"), []byte("Something new\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readSystem(root); err == nil || !strings.Contains(err.Error(), "Something new") {
		t.Errorf("memory of an unknown type: %v", err)
	}
}

// The code for the jump has its jumps and its tables where it says.
func TestTrampoline(t *testing.T) {
	const at, params, entry = 0x101000, 0x100000, 0x1000200
	page := trampoline(at, params, entry)
	if len(page) != pageSize {
		t.Fatalf("%d bytes", len(page))
	}
	stack := int(le.Uint32(page[3:])) + 7 // relative to the next instruction
	table := int(le.Uint32(page[10:])) + 14
	if stack != pageSize || le.Uint16(page[table:]) != 31 || le.Uint64(page[table+2:]) != at+0x50 {
		t.Errorf("stack at %x, table %x", stack, page[table:table+10])
	}
	for _, want := range [][]byte{
		append([]byte{0x48, 0xbe}, le.AppendUint64(nil, params)...),
		append([]byte{0x48, 0xb8}, append(le.AppendUint64(nil, entry), 0x6a, 0x10, 0x50, 0x31, 0xc0, 0x48, 0xcb)...),
	} {
		if !bytes.Contains(page[:table], want) {
			t.Errorf("no % x in % x", want, page[:table])
		}
	}
}

// Not allowed to load a kernel, or on another's one: both ways are tried, and said.
func TestLoadSaysWhyNot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hostname")
	if err := os.WriteFile(file, []byte("no kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := loadSegments(fakeSystem(t, false), f, nil, ""); err == nil || !strings.Contains(err.Error(), "header") {
		t.Errorf("a text file: %v", err)
	}
	if err := loadSegments(t.TempDir(), f, nil, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a system without /sys: %v", err)
	}
}
