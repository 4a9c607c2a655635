// Package imaging puts a signed image on a disk and reads all of it back.
package imaging

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/manifest"
	"bmc/metal"
	"bmc/ramdisk/hardware"
)

// Accept verifies a manifest and that this machine can boot it. Nothing is
// known of the disks yet, and nothing is written before both have passed.
func Accept(data, signature []byte, trusted []string, firmware, arch string) (*manifest.Manifest, error) {
	if _, err := manifest.Verify(data, signature, trusted); err != nil {
		return nil, err
	}
	m, err := manifest.Parse(data)
	if err != nil {
		return nil, err
	}
	if m.Arch != arch {
		return nil, metal.Errorf(metal.CodeFirmwareUnfit, "image %s is for %s, this machine is %s", m.Name, m.Arch, arch)
	}
	if !m.BootsBy(firmware) {
		return nil, metal.Errorf(metal.CodeFirmwareUnfit, "image %s boots by %s, this machine was started by %s",
			m.Name, strings.Join(m.Firmware, " or "), firmware)
	}
	return m, nil
}

// Choose picks the disk for an image: the one that the hint names, else the
// smallest that fits, solid state before rotating. Of equals it is always the same one,
// whatever the kernel calls them in this boot: a task that is begun again must not leave half
// a system on another. Removable disks are never picked without a hint.
func Choose(disks []*agentv1.Disk, m *manifest.Manifest, hint string) (*agentv1.Disk, error) {
	var candidates []*agentv1.Disk
	for _, d := range disks {
		if hint == "" && !d.GetRemovable() || hardware.DiskMatches(d, hint) {
			candidates = append(candidates, d)
		}
	}
	switch {
	case len(candidates) == 0 && hint != "":
		return nil, metal.Errorf(metal.CodeNoDisk, "no disk is called %q; there are %s", hint, list(disks))
	case len(candidates) == 0:
		return nil, metal.Errorf(metal.CodeNoDisk, "the machine has no disk that an image may be written to; there are %s", list(disks))
	case hint != "" && len(candidates) > 1:
		return nil, metal.Errorf(metal.CodeNoDisk, "%q means more than one disk: %s", hint, list(candidates))
	}
	large := slices.DeleteFunc(slices.Clone(candidates), func(d *agentv1.Disk) bool { return d.GetSizeBytes() < uint64(m.SizeBytes) })
	if len(large) == 0 {
		return nil, metal.Errorf(metal.CodeImageTooLarge, "image %s needs a disk of %d bytes; there are %s", m.Name, m.SizeBytes, list(candidates))
	}
	fit := slices.DeleteFunc(large, func(d *agentv1.Disk) bool { return int(d.GetSectorSize()) != m.SectorSize })
	if len(fit) == 0 {
		return nil, metal.Errorf(metal.CodeNoDisk, "image %s needs sectors of %d bytes; there are %s", m.Name, m.SectorSize, list(candidates))
	}
	return slices.MinFunc(fit, func(a, b *agentv1.Disk) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.GetSizeBytes(), b.GetSizeBytes()), strings.Compare(hardware.DiskID(a), hardware.DiskID(b)))
	}), nil
}

func rank(d *agentv1.Disk) int {
	if d.GetKind() == "hdd" {
		return 1
	}
	return 0
}

func list(disks []*agentv1.Disk) string {
	if len(disks) == 0 {
		return "none"
	}
	var names []string
	for _, d := range disks {
		removable := ""
		if d.GetRemovable() {
			removable = ", removable"
		}
		names = append(names, fmt.Sprintf("%s (%s, %d bytes in sectors of %d%s)", d.GetName(), d.GetKind(), d.GetSizeBytes(), d.GetSectorSize(), removable))
	}
	return strings.Join(names, ", ")
}
