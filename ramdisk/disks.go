package ramdisk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	agentv1 "bmc/api/agent/v1"
	"bmc/ramdisk/block"
	"bmc/ramdisk/gpt"
	"bmc/ramdisk/hardware"
)

const nodeWait = 10 * time.Second

// open opens a disk and makes sure that the name still means the same device.
func (m *Machine) open(d *agentv1.Disk) (*block.File, error) {
	f, err := block.Open(filepath.Join(m.root, "dev", d.GetName()))
	if err != nil {
		return nil, err
	}
	if err := m.pinned(f, d); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (m *Machine) pinned(f *block.File, d *agentv1.Disk) error {
	number, err := f.Device()
	if err != nil {
		return err
	}
	if number != 0 {
		dev, err := os.ReadFile(filepath.Join(m.root, "sys/block", d.GetName(), "dev"))
		if want := fmt.Sprintf("%d:%d", unix.Major(number), unix.Minor(number)); err != nil || strings.TrimSpace(string(dev)) != want {
			return fmt.Errorf("disk %s is not the device that was inspected", d.GetName())
		}
	}
	for _, now := range hardware.Disks(m.root) {
		if now.GetName() == d.GetName() {
			if hardware.DiskID(now) == hardware.DiskID(d) && now.GetSizeBytes() == d.GetSizeBytes() && uint64(f.Size()) == d.GetSizeBytes() {
				return nil
			}
		}
	}
	return fmt.Errorf("disk %s has changed since it was chosen", d.GetName())
}

// find returns the one disk of a name that was reported or configured.
func (m *Machine) find(name string) (*agentv1.Disk, error) {
	var found *agentv1.Disk
	for _, d := range hardware.Disks(m.root) {
		if hardware.DiskMatches(d, name) {
			if found != nil {
				return nil, fmt.Errorf("disk %q means both %s and %s", name, found.GetName(), d.GetName())
			}
			found = d
		}
	}
	if found == nil {
		return nil, fmt.Errorf("disk %q is not there", name)
	}
	return found, nil
}

// partitionNode returns a partition's device, as the kernel names it: "sda3",
// "nvme0n1p3".
func partitionNode(disk string, number int) string {
	if unicode.IsDigit(rune(disk[len(disk)-1])) {
		disk += "p"
	}
	return fmt.Sprint(disk, number)
}

// reread makes the kernel take up a disk's partitions. Something may still be
// looking at the old ones for a moment.
func (m *Machine) reread(ctx context.Context, f *block.File) error {
	ctx, cancel := context.WithTimeout(ctx, nodeWait)
	defer cancel()
	for {
		err := f.RereadPartitions()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("reread the partition table: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// partitionGUIDs lists what any disk holds now, for boot entries.
func (m *Machine) partitionGUIDs() map[gpt.GUID]bool {
	guids := map[gpt.GUID]bool{}
	for _, d := range hardware.Disks(m.root) {
		f, err := os.Open(filepath.Join(m.root, "dev", d.GetName()))
		if err != nil {
			continue // an entry that starts from it cannot work either
		}
		if t, err := gpt.Read(f, int(d.GetSectorSize())); err == nil {
			for _, p := range t.Partitions() {
				guids[p.GUID] = true
			}
		}
		f.Close()
	}
	return guids
}
