package efiboot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"

	"bmc/ramdisk/gpt"
)

// Dir is where efivarfs is mounted.
const Dir = "/sys/firmware/efi/efivars"

const (
	global     = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	attributes = 7 // non-volatile, boot service, runtime
	maxSize    = 64 << 10
	// FS_IOC_GETFLAGS and SETFLAGS, and the flag that efivarfs puts on most
	// variables so that rm -rf does not brick machines.
	immutable = 0x10
)

var entryName = regexp.MustCompile(`^Boot([0-9A-F]{4})` + global + `$`)

// Install makes the loader on a partition the first thing to boot and returns
// the entry's name ("Boot0003"). An entry for the same partition is reused.
func Install(dir, description, loader string, p gpt.Partition) (string, error) {
	entries, err := list(dir)
	if err != nil {
		return "", err
	}
	number, found := uint16(0), false
	for _, n := range slices.Sorted(keys(entries)) {
		if guid, ok := entries[n].partition(); ok && guid == p.GUID {
			number, found = n, true
			break
		}
	}
	for !found {
		if _, taken := entries[number]; !taken {
			break
		}
		if number++; number == 0 {
			return "", errors.New("no boot entry is free")
		}
	}
	o := option{description: description, path: hardDrivePath(p, loader)}
	if err := write(dir, entryFile(number), o.encode()); err != nil {
		return "", err
	}
	order, err := readOrder(dir)
	if err != nil {
		return "", err
	}
	order = slices.DeleteFunc(order, func(n uint16) bool { return n == number })
	if err := writeOrder(dir, append([]uint16{number}, order...)); err != nil {
		return "", err
	}
	return fmt.Sprintf("Boot%04X", number), nil
}

// Prune removes the entries that start from a partition which no longer exists:
// after a wipe, those of the former tenant. It returns their names.
func Prune(dir string, exists func(gpt.GUID) bool) ([]string, error) {
	entries, err := list(dir)
	if err != nil {
		return nil, err
	}
	var gone []uint16
	for _, n := range slices.Sorted(keys(entries)) {
		if guid, ok := entries[n].partition(); ok && !exists(guid) {
			gone = append(gone, n)
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	order, err := readOrder(dir)
	if err != nil {
		return nil, err
	}
	// The order first: it must not name what is not there.
	order = slices.DeleteFunc(order, func(n uint16) bool { return slices.Contains(gone, n) })
	if err := writeOrder(dir, order); err != nil {
		return nil, err
	}
	var names []string
	for _, n := range gone {
		file := filepath.Join(dir, entryFile(n))
		thaw(file)
		if err := os.Remove(file); err != nil {
			return names, fmt.Errorf("remove Boot%04X: %w", n, err)
		}
		names = append(names, fmt.Sprintf("Boot%04X", n))
	}
	return names, nil
}

func keys(m map[uint16]option) func(func(uint16) bool) {
	return func(yield func(uint16) bool) {
		for n := range m {
			if !yield(n) {
				return
			}
		}
	}
}

func entryFile(n uint16) string { return fmt.Sprintf("Boot%04X", n) + global }

// list reads every boot entry. Malformed ones are kept as empty: their numbers
// are taken.
func list(dir string) (map[uint16]option, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("EFI variables: %w", err)
	}
	entries := map[uint16]option{}
	for _, f := range files {
		m := entryName.FindStringSubmatch(f.Name())
		if m == nil {
			continue
		}
		var n uint16
		if _, err := fmt.Sscanf(m[1], "%04X", &n); err != nil {
			continue
		}
		data, err := read(dir, f.Name())
		if err != nil {
			return nil, err
		}
		o, err := decode(data)
		if err != nil {
			o = option{}
		}
		entries[n] = o
	}
	return entries, nil
}

func readOrder(dir string) ([]uint16, error) {
	data, err := read(dir, "BootOrder"+global)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var order []uint16
	for ; len(data) >= 2; data = data[2:] {
		order = append(order, binary.LittleEndian.Uint16(data))
	}
	return order, nil
}

func writeOrder(dir string, order []uint16) error {
	var data []byte
	for _, n := range order {
		data = binary.LittleEndian.AppendUint16(data, n)
	}
	if len(data) == 0 { // an empty variable does not exist
		file := filepath.Join(dir, "BootOrder"+global)
		thaw(file)
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return write(dir, "BootOrder"+global, data)
}

// read returns a variable's value, without its attributes.
func read(dir, name string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil, fmt.Errorf("EFI variable: %w", err)
	}
	if len(data) < 4 || len(data) > maxSize {
		return nil, fmt.Errorf("EFI variable %s has %d bytes", name, len(data))
	}
	return data[4:], nil
}

// write sets a variable. efivarfs wants attributes and value in one write.
func write(dir, name string, value []byte) error {
	file := filepath.Join(dir, name)
	thaw(file)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("EFI variable: %w", err)
	}
	data := append(binary.LittleEndian.AppendUint32(nil, attributes), value...)
	if _, err = f.Write(data); err == nil {
		// efivarfs has set the size already; where it is a plain folder, cut.
		_ = f.Truncate(int64(len(data)))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("EFI variable %s: %w", name, err)
	}
	return nil
}

// thaw clears the immutable flag. Errors show in what follows.
func thaw(file string) {
	f, err := os.Open(file)
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 {
		return
	}
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable)
}
