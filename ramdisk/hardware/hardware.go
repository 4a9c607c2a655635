// Package hardware inspects the machine that it runs on. Inspect reads /sys and
// /proc only, below a root that tests choose; Probe and Listen ask devices and the
// network. None of them ever writes to a disk.
package hardware

import (
	"bufio"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// Secure Boot's state, an EFI variable of the global vendor (UEFI 2.10, 3.3).
const secureBootVar = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

// tree is a file system as the kernel shows it, below a root.
type tree string

// Inspect reads everything below root, "/" on a real machine. What cannot be
// read stays empty: half an inventory is better than none, and the agent
// compares identities itself.
func Inspect(root string) *agentv1.Hardware {
	t := tree(root)
	h := &agentv1.Hardware{
		Vendor:          t.dmi("sys_vendor"),
		Product:         t.dmi("product_name"),
		Serial:          t.dmi("product_serial"),
		Uuid:            strings.ToLower(t.dmi("product_uuid")),
		FirmwareVersion: strings.TrimSpace(t.dmi("bios_vendor") + " " + t.dmi("bios_version")),
		Firmware:        Firmware(root),
		SecureBoot:      t.secureBoot(),
		Arch:            arch(),
		Disks:           Disks(root),
		Nics:            NICs(root),
	}
	h.CpuModel, h.CpuThreads = t.cpu()
	h.MemoryBytes = t.memory()
	h.BoardSerial = t.dmi("board_serial")
	if table, err := os.ReadFile(filepath.Join(root, "sys/firmware/dmi/tables/DMI")); err == nil {
		h.Dimms = modules(table)
		h.CpuSockets, h.CpuCores = processors(table)
	}
	return h
}

// Firmware says how the machine was started: "uefi" or "bios".
func Firmware(root string) string {
	if _, err := os.Stat(filepath.Join(root, "sys/firmware/efi")); err == nil {
		return "uefi"
	}
	return "bios"
}

func arch() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

// dmi returns a string of the system's SMBIOS type 1 or 0. The fillers that
// vendors leave in place say nothing and are dropped.
func (t tree) dmi(name string) string {
	v := t.text("sys/class/dmi/id/" + name)
	if strings.HasSuffix(name, "_uuid") {
		return metal.ProperUUID(v)
	}
	return metal.ProperSerial(v)
}

func (t tree) secureBoot() bool {
	b, err := os.ReadFile(filepath.Join(string(t), secureBootVar))
	return err == nil && len(b) == 5 && b[4] == 1 // four bytes of attributes come first
}

func (t tree) cpu() (model string, threads uint32) {
	f, err := os.Open(filepath.Join(string(t), "proc/cpuinfo"))
	if err != nil {
		return "", 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		key, value, _ := strings.Cut(s.Text(), ":")
		switch strings.TrimSpace(key) {
		case "processor":
			threads++
		case "model name":
			model = strings.TrimSpace(value)
		}
	}
	return model, threads
}

// memory returns what is installed, by SMBIOS type 17. The kernel's own count
// lacks what it and the firmware keep for themselves, which would put a
// machine of exactly 64 GiB out of a size that asks for 64 GiB.
func (t tree) memory() uint64 {
	kernel := t.memTotal()
	table, err := os.ReadFile(filepath.Join(string(t), "sys/firmware/dmi/tables/DMI"))
	if err != nil {
		return kernel
	}
	// A table that says less than the kernel sees, or far more, is wrong.
	if n := installedMemory(table); n >= kernel && (n < 2*kernel || n-kernel < 1<<30) {
		return n
	}
	return kernel
}

func (t tree) memTotal() uint64 {
	f, err := os.Open(filepath.Join(string(t), "proc/meminfo"))
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "MemTotal:"); ok {
			kib, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 54)
			return kib << 10
		}
	}
	return 0
}

// text returns a file's content as one line; "" when it cannot be read.
func (t tree) text(name string) string {
	b, err := os.ReadFile(filepath.Join(string(t), name))
	if err != nil {
		return ""
	}
	return printable(b)
}

func (t tree) number(name string) uint64 {
	n, _ := strconv.ParseUint(t.text(name), 10, 64)
	return n
}

// printable reduces what a device says of itself to one clean line: these
// bytes come from firmware and end in logs and tables.
func printable(b []byte) string {
	if len(b) > 256 {
		b = b[:256]
	}
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, string(b))
	return strings.Join(strings.Fields(clean), " ")
}
