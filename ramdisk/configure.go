package ramdisk

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/manifest"
	"bmc/metal"
	"bmc/ramdisk/block"
	"bmc/ramdisk/configure"
	"bmc/ramdisk/efiboot"
	"bmc/ramdisk/gpt"
	"bmc/ramdisk/hardware"
	"bmc/ramdisk/rootfs"
)

// configure makes the written image this server, and the disk the first thing
// that the firmware starts.
func (m *Machine) configure(task *agentv1.ConfigureTask) (*agentv1.CompleteTaskRequest, error) {
	image, err := manifest.Parse(task.GetManifest())
	if err != nil {
		return nil, err
	}
	d, err := m.find(task.GetRootDisk())
	if err != nil {
		return nil, failed(metal.CodeConfigureFailed, "the root disk", err)
	}
	installed := &agentv1.Installed{RootDisk: hardware.DiskID(d), BytesWritten: m.written.written, BytesVerified: m.written.verified}
	if image.Configure != manifest.ConfigureNone {
		if installed.SshHostKeys, err = m.configureRoot(d, image, task); err != nil {
			return nil, err
		}
	}
	if m.uefi() && image.BootsBy(manifest.FirmwareUEFI) {
		// Firmware that refuses still finds \EFI\BOOT on the disk; the agent
		// sees the missing entry and raises a condition.
		if installed.BootEntry, err = m.bootEntry(d, image); err != nil {
			m.log.Warn("boot entry not written", "err", err)
		} else {
			m.log.Info("disk boots first", "entry", installed.BootEntry)
		}
	}
	return &agentv1.CompleteTaskRequest{Installed: installed}, nil
}

func (m *Machine) configureRoot(d *agentv1.Disk, image *manifest.Manifest, task *agentv1.ConfigureTask) ([]string, error) {
	fsys, err := rootfs.Mount(context.Background(), m.node(d, image.RootPartition))
	if err != nil {
		return nil, failed(metal.CodeConfigureFailed, "the root file system cannot be mounted", err)
	}
	r, err := configure.Apply(fsys.Dir, image, configure.Params{
		Hostname: task.GetHostname(), SSHKeys: task.GetSshKeys(), UserData: task.GetUserData(),
		Address: task.GetAddress(), Gateway: task.GetGateway(), DNS: task.GetDns(), MAC: task.GetMac(), InstanceID: task.GetInstanceId(),
	})
	if unmountErr := fsys.Unmount(); unmountErr != nil {
		err = errors.Join(err, failed(metal.CodeConfigureFailed, "the root file system cannot be unmounted", unmountErr))
	}
	if err == nil {
		err = m.flush(d)
	}
	return r.HostKeys, err
}

// flush puts everything on the disk's stable storage.
func (m *Machine) flush(d *agentv1.Disk) error {
	f, err := m.open(d)
	if err != nil {
		return failed(metal.CodeConfigureFailed, "the root disk", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return failed(metal.CodeConfigureFailed, "the root disk does not flush", err)
	}
	return nil
}

// partitions reads a disk's partition table.
func (m *Machine) partitions(d *agentv1.Disk) ([]gpt.Partition, error) {
	f, err := m.open(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	table, err := gpt.Read(&block.Unaligned{D: f}, f.SectorSize())
	if err != nil {
		return nil, err
	}
	return table.Partitions(), nil
}

func (m *Machine) bootEntry(d *agentv1.Disk, image *manifest.Manifest) (string, error) {
	partitions, err := m.partitions(d)
	if err != nil {
		return "", err
	}
	for _, p := range partitions {
		if p.Type == gpt.ESP {
			return efiboot.Install(m.efivars(), "bmc "+image.Name, image.BootLoader, p)
		}
	}
	return "", fmt.Errorf("the image has no EFI system partition")
}

func (m *Machine) node(d *agentv1.Disk, partition int) string {
	return filepath.Join(m.root, "dev", partitionNode(d.GetName(), partition))
}
