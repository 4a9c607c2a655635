package hardware

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	agentv1 "bmc/api/agent/v1"
)

// diskNames are the drivers whose whole devices can hold an image. Everything
// else in /sys/block is virtual (loop, dm, md, ram, zram), optical or a floppy.
var diskNames = regexp.MustCompile(`^(sd[a-z]+|vd[a-z]+|xvd[a-z]+|nvme[0-9]+n[0-9]+|mmcblk[0-9]+)$`)

// Disks lists the block devices that could hold an image, by name.
func Disks(root string) []*agentv1.Disk {
	t := tree(root)
	entries, err := os.ReadDir(filepath.Join(root, "sys/block"))
	if err != nil {
		return nil
	}
	var disks []*agentv1.Disk
	for _, e := range entries {
		if d := t.disk(e.Name()); d != nil {
			disks = append(disks, d)
		}
	}
	slices.SortFunc(disks, func(a, b *agentv1.Disk) int {
		if len(a.Name) != len(b.Name) { // sdb before sdaa
			return len(a.Name) - len(b.Name)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return disks
}

// ReadOnly names the fixed disks that refuse writes. Disks leaves them out, since
// they can hold no image; what they do hold survives every wipe.
func ReadOnly(root string) []string {
	t := tree(root)
	files, err := filepath.Glob(filepath.Join(root, "sys/block/*/ro"))
	if err != nil {
		return nil
	}
	var names []string
	for _, f := range files {
		name := filepath.Base(filepath.Dir(f))
		if dir := "sys/block/" + name + "/"; t.present(name) && t.number(dir+"ro") == 1 && t.number(dir+"removable") == 0 {
			names = append(names, name)
		}
	}
	return names
}

// present says whether a block device is a disk with something in it: an empty
// card reader has no size; hidden ones are single paths of a multipath NVMe.
func (t tree) present(name string) bool {
	dir := "sys/block/" + name + "/"
	return diskNames.MatchString(name) && t.number(dir+"size") > 0 && t.number(dir+"hidden") == 0
}

func (t tree) disk(name string) *agentv1.Disk {
	dir := "sys/block/" + name + "/"
	if !t.present(name) || t.number(dir+"ro") == 1 {
		return nil
	}
	model := t.text(dir + "device/model")
	if vendor := t.text(dir + "device/vendor"); vendor != "" && vendor != "ATA" && !strings.HasPrefix(vendor, "0x") {
		model = strings.TrimSpace(vendor + " " + model)
	}
	return &agentv1.Disk{
		Name:               name,
		SizeBytes:          t.number(dir+"size") * 512, // sysfs counts in 512 bytes, whatever the sector size
		Kind:               t.diskKind(name, model),
		Wwn:                t.wwn(dir),
		Serial:             t.diskSerial(dir),
		Model:              model,
		SectorSize:         uint32(t.number(dir + "queue/logical_block_size")),
		PhysicalSectorSize: uint32(t.number(dir + "queue/physical_block_size")),
		Firmware:           t.diskFirmware(dir),
		Removable:          t.number(dir+"removable") == 1,
	}
}

func (t tree) diskKind(name, model string) string {
	switch {
	case strings.HasPrefix(name, "nvme"):
		return "nvme"
	case strings.HasPrefix(name, "vd"), strings.HasPrefix(name, "xvd"), strings.HasPrefix(model, "QEMU"):
		return "virtual"
	case t.number("sys/block/"+name+"/queue/rotational") == 1:
		return "hdd"
	}
	return "ssd"
}

// wwn returns the device's world-wide name with its scheme ("naa.5000…"). The
// t10 scheme is vendor text, no name, and is left out.
func (t tree) wwn(dir string) string {
	for _, f := range []string{"wwid", "device/wwid"} {
		v := t.text(dir + f)
		for _, scheme := range []string{"naa.", "eui.", "nvme.", "uuid."} {
			if strings.HasPrefix(v, scheme) && !strings.Contains(v, " ") {
				return v
			}
		}
	}
	return ""
}

func (t tree) diskSerial(dir string) string {
	for _, f := range []string{"serial", "device/serial"} {
		if v := t.text(dir + f); v != "" {
			return v
		}
	}
	// SCSI's vital product data page 0x80: four bytes of header, then text.
	page, err := os.ReadFile(filepath.Join(string(t), dir, "device/vpd_pg80"))
	if err != nil || len(page) <= 4 {
		return ""
	}
	return printable(page[4:])
}

// diskFirmware is the revision, by NVMe or by SCSI's inquiry.
func (t tree) diskFirmware(dir string) string {
	if v := t.text(dir + "device/firmware_rev"); v != "" {
		return v
	}
	return t.text(dir + "device/rev")
}

// DiskID names a disk for good: kernel names change from boot to boot.
func DiskID(d *agentv1.Disk) string {
	switch {
	case d.Wwn != "":
		return d.Wwn
	case d.Serial != "":
		return d.Serial
	}
	return d.Name
}

// DiskMatches says whether a name that an operator or an earlier boot wrote
// down means this disk.
func DiskMatches(d *agentv1.Disk, name string) bool {
	name = strings.TrimPrefix(name, "/dev/")
	return name != "" && (name == d.Wwn || name == d.Serial || name == d.Name ||
		(d.Wwn != "" && "naa."+strings.TrimPrefix(name, "0x") == d.Wwn))
}
