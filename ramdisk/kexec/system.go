package kexec

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// system is what the next kernel must be told of this machine, as the firmware
// once told the kernel that runs.
type system struct {
	params []byte // boot_params of the kernel that runs
	e820   []region
	ram    []span // what the kernel uses, in order
	efi    *efi   // nil on BIOS
}

// region is an entry of the firmware's memory map.
type region struct {
	span
	kind uint32
}

// efi is how the firmware's runtime services are mapped, which can be done once only.
type efi struct{ vendor, tables, smbios, memory []byte }

// kinds are the memory map's types by the names in /sys (arch/x86/kernel/e820.c).
var kinds = map[string]uint32{
	"System RAM": 1, "Reserved": 2, "ACPI Tables": 3, "ACPI Non-volatile Storage": 4, "Unusable memory": 5,
	"Persistent Memory": 7, "Persistent Memory (legacy)": 12, "Soft Reserved": 0xefffffff,
}

// readSystem reads /sys and /proc below root.
func readSystem(root string) (*system, error) {
	s := &system{}
	var err error
	if s.params, err = os.ReadFile(filepath.Join(root, "sys/kernel/boot_params/data")); err != nil {
		return nil, err
	}
	if len(s.params) != bootParamsSize {
		return nil, fmt.Errorf("boot_params of %d bytes", len(s.params))
	}
	if s.e820, err = readMemoryMap(filepath.Join(root, "sys/firmware/memmap")); err != nil {
		return nil, err
	}
	iomem, err := os.ReadFile(filepath.Join(root, "proc/iomem"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(iomem)) {
		var r span
		if _, err := fmt.Sscanf(line, "%x-%x : System RAM", &r.start, &r.end); err == nil && line[0] != ' ' && r.end > r.start {
			s.ram = append(s.ram, span{r.start, r.end + 1})
		}
	}
	if len(s.ram) == 0 {
		return nil, errors.New("/proc/iomem tells of no memory")
	}
	if _, err := os.Stat(filepath.Join(root, "sys/firmware/efi")); err == nil {
		s.efi, err = readEFI(filepath.Join(root, "sys/firmware/efi"))
		return s, err
	}
	return s, nil
}

func readMemoryMap(dir string) ([]region, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	const most = 128 // in boot_params
	if len(entries) == 0 || len(entries) > most {
		return nil, fmt.Errorf("a memory map of %d entries", len(entries))
	}
	var all []region
	for _, e := range entries {
		kind, err := os.ReadFile(filepath.Join(dir, e.Name(), "type"))
		if err != nil {
			return nil, err
		}
		r := region{kind: kinds[strings.TrimSpace(string(kind))]}
		if r.kind == 0 {
			return nil, fmt.Errorf("memory of an unknown type %q", kind)
		}
		if r.start, err = readHex(filepath.Join(dir, e.Name(), "start")); err != nil {
			return nil, err
		}
		if r.end, err = readHex(filepath.Join(dir, e.Name(), "end")); err != nil {
			return nil, err
		}
		r.end++
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b region) int { return cmp.Compare(a.start, b.start) })
	return all, nil
}

// readEFI collects what struct efi_setup_data and the memory map of the runtime
// services hold. Without that map the firmware would be called at wrong addresses.
func readEFI(dir string) (*efi, error) {
	e := &efi{}
	for name, to := range map[string]*[]byte{"fw_vendor": &e.vendor, "config_table": &e.tables} {
		v, err := readHex(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		*to = le.AppendUint64(nil, v)
	}
	systab, err := os.ReadFile(filepath.Join(dir, "systab"))
	if err != nil {
		return nil, err
	}
	e.smbios = make([]byte, 8)
	for line := range strings.Lines(string(systab)) {
		if v, ok := strings.CutPrefix(line, "SMBIOS="); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 0, 64)
			if err != nil {
				return nil, err
			}
			le.PutUint64(e.smbios, n)
		}
	}
	for i := 0; ; i++ {
		entry := filepath.Join(dir, "runtime-map", strconv.Itoa(i))
		if _, err := os.Stat(entry); err != nil {
			break
		}
		var v [5]uint64
		for j, name := range []string{"type", "phys_addr", "virt_addr", "num_pages", "attribute"} {
			if v[j], err = readHex(filepath.Join(entry, name)); err != nil {
				return nil, err
			}
			e.memory = le.AppendUint64(e.memory, v[j]) // the type has 32 bits, and 32 of padding
		}
	}
	if len(e.memory) == 0 {
		return nil, errors.New("the firmware's runtime services are not mapped")
	}
	return e, nil
}

func readHex(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 0, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return v, nil
}
