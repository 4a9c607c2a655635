// Package machine is one QEMU machine with real firmware: a server of a virtual
// rack, without its BMC.
package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"bmc/lab/vswitch"
)

// Firmware of a machine.
const (
	BIOS = "bios"
	UEFI = "uefi"
)

const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// Config describes a machine. Dir is its own folder: disk.img, vars.fd,
// serial.log, qemu.log and the console's socket live there.
type Config struct {
	Name      string
	Dir       string
	Firmware  string // BIOS or UEFI
	MemoryMiB int
	CPUs      int
	DiskBytes int64
	MAC       string
	UUID      string
	Serial    string // SMBIOS type 1; the disk's is <Serial>-0, cut to 20 characters
	Switch    *vswitch.Switch
	// Start starts a child; nil means (*exec.Cmd).Start. The lab passes one that
	// ties the child's life to its own.
	Start func(*exec.Cmd) error
	Log   *slog.Logger
}

// Requirements says what this computer lacks to run machines with the given
// firmware; nil means nothing.
func Requirements(firmware ...string) error {
	var errs []error
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		errs = append(errs, errors.New("qemu-system-x86_64 is missing: apt install qemu-system-x86"))
	}
	for _, f := range firmware {
		if f != UEFI {
			continue
		}
		if _, err := os.Stat(ovmfCode); err != nil {
			errs = append(errs, errors.New(ovmfCode+" is missing: apt install ovmf"))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) validate() error {
	switch {
	case c.Name == "" || c.Dir == "":
		return errors.New("machine needs a name and a folder")
	case c.Firmware != BIOS && c.Firmware != UEFI:
		return fmt.Errorf("machine %s: unknown firmware %q", c.Name, c.Firmware)
	case c.MAC == "" || c.UUID == "" || c.Serial == "":
		return fmt.Errorf("machine %s: MAC, UUID and serial are required", c.Name)
	case c.DiskBytes < 1<<20 || c.DiskBytes%512 != 0:
		return fmt.Errorf("machine %s: disk of %d bytes", c.Name, c.DiskBytes)
	case c.MemoryMiB < 96 || (c.Firmware == UEFI && c.MemoryMiB < 192):
		return fmt.Errorf("machine %s: %d MiB of memory are too few for its firmware", c.Name, c.MemoryMiB)
	case c.Switch == nil:
		return fmt.Errorf("machine %s: no switch", c.Name)
	}
	return nil
}

// DiskSerial is the serial number that the guest sees of the disk. virtio-blk
// carries 20 characters of it.
func (c *Config) DiskSerial() string {
	const suffix, room = "-0", 20
	s := c.Serial
	if len(s) > room-len(suffix) {
		s = s[len(s)-(room-len(suffix)):]
	}
	return s + suffix
}

// prepare makes the folder, an empty sparse disk and the firmware's variables,
// where they are not there yet.
func (c *Config) prepare() error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(c.DiskPath(), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	err = f.Truncate(c.DiskBytes)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("disk of %s: %w", c.Name, err)
	}
	vars := filepath.Join(c.Dir, "vars.fd")
	if _, err := os.Stat(vars); c.Firmware != UEFI || err == nil {
		return nil
	}
	raw, err := os.ReadFile(ovmfVars)
	if err != nil {
		return fmt.Errorf("firmware of %s: %w", c.Name, err)
	}
	return os.WriteFile(vars, raw, 0o644)
}

// DiskPath is the raw image behind the machine's disk.
func (c *Config) DiskPath() string { return filepath.Join(c.Dir, "disk.img") }

// SerialLog is where the serial console is recorded.
func (c *Config) SerialLog() string { return filepath.Join(c.Dir, "serial.log") }

// File descriptors that QEMU inherits.
const (
	nicFD     = 3
	monitorFD = 4
)

// args is QEMU's command line; every path is relative to Dir, because a Unix
// socket's path has 107 characters at most. The machine starts paused.
//
// TCG is forced: where the lab was made, /dev/kvm exists and guests hang on it.
// Without tb-size the translation cache alone takes a gigabyte.
func (c *Config) args(first Device) []string {
	net, disk := bootIndexes(first)
	nic := "virtio-net-pci,id=" + nicID + ",netdev=n0,mac=" + c.MAC + ",bootindex=" + strconv.Itoa(net)
	if c.Firmware == UEFI {
		nic += ",romfile=" // OVMF has its own driver; QEMU's EFI ROM costs over a minute
	}
	a := []string{
		"-name", c.Name,
		"-machine", "q35,graphics=off", // no display: the BIOS talks on the serial port
		"-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max",
		"-smp", strconv.Itoa(max(1, c.CPUs)), "-m", strconv.Itoa(c.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-uuid", c.UUID,
		"-smbios", "type=1,manufacturer=bmc,product=lab-" + c.Firmware + ",serial=" + c.Serial + ",uuid=" + c.UUID,
		"-netdev", fmt.Sprintf("dgram,id=n0,local.type=fd,local.str=%d", nicFD),
		"-device", nic,
		"-drive", "if=none,id=d0,format=raw,file=disk.img,cache=unsafe,discard=unmap,detect-zeroes=unmap",
		"-device", "virtio-blk-pci,id=" + diskID + ",drive=d0,serial=" + c.DiskSerial() + ",bootindex=" + strconv.Itoa(disk),
		"-device", "virtio-rng-pci",
		"-chardev", "socket,id=ser0,path=console.sock,server=on,wait=off,logfile=serial.log,logappend=on",
		"-serial", "chardev:ser0",
		"-chardev", fmt.Sprintf("socket,id=mon0,fd=%d", monitorFD),
		"-mon", "chardev=mon0,mode=control",
	}
	if c.Firmware == UEFI {
		a = append(a,
			"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+ovmfCode,
			"-drive", "if=pflash,format=raw,unit=1,file=vars.fd")
	}
	return a
}

// Devices' IDs, and where QEMU's object tree has them.
const (
	nicID, diskID = "net0", "disk0"
	peripheral    = "/machine/peripheral/"
)

func bootIndexes(first Device) (net, disk int) {
	if first == Disk {
		return 2, 1
	}
	return 1, 2
}

// setBootIndexes changes what the next reset does; the running boot is not
// touched. No two devices may have the same index, not even for a moment.
func setBootIndexes(ctx context.Context, q *qmp, first Device) error {
	set := func(id string, v int) error {
		return q.execute(ctx, "qom-set", map[string]any{"path": peripheral + id, "property": "bootindex", "value": v})
	}
	net, disk := bootIndexes(first)
	return errors.Join(set(nicID, 9), set(diskID, disk), set(nicID, net))
}
