package ramdisk

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/manifest"
	"bmc/metal"
	"bmc/ramdisk/hardware"
	"bmc/ramdisk/kexec"
	"bmc/ramdisk/rootfs"
)

// loadKernel reads the installed image's kernel into RAM. Whoever runs the
// session jumps to it, once the agent knows. Every refusal leaves the machine as
// it was: its agent has it boot by firmware instead.
func (m *Machine) loadKernel(task *agentv1.KexecTask) error {
	image, err := manifest.Parse(task.GetManifest())
	if err != nil {
		return err
	}
	if image.Kernel == "" || image.RootPartition == 0 || image.Filesystem == "" {
		return metal.Errorf(metal.CodeKexecRefused, "image %s does not say where its kernel is", image.Name)
	}
	if why := kexec.Refusal(m.root, hardware.Inspect(m.root).GetSecureBoot()); why != "" {
		return metal.Errorf(metal.CodeKexecRefused, "%s", why)
	}
	d, err := m.find(task.GetRootDisk())
	if err != nil {
		return failed(metal.CodeKexecRefused, "the root disk", err)
	}
	running, err := os.ReadFile(filepath.Join(m.root, "proc/cmdline"))
	if err != nil {
		return failed(metal.CodeKexecRefused, "the command line that runs", err)
	}
	partitions, err := m.partitions(d)
	if err != nil {
		return failed(metal.CodeKexecRefused, "the partition table", err)
	}
	partUUID := ""
	for _, p := range partitions {
		if p.Number == image.RootPartition {
			partUUID = p.GUID.String()
		}
	}
	cmdline := kexec.Cmdline(image.Cmdline, partUUID, string(running))
	fsys, err := rootfs.MountReadOnly(context.Background(), m.node(d, image.RootPartition))
	if err != nil {
		return failed(metal.CodeKexecRefused, "the root file system cannot be mounted", err)
	}
	byFile, err := kexec.Load(fsys.Dir, image, cmdline)
	if err = errors.Join(err, fsys.Unmount()); err != nil {
		return metal.Errorf(metal.CodeKexecRefused, "%v", err)
	}
	if byFile != nil {
		m.log.Info("loaded the slower way, with a digest", "reason", byFile)
	}
	m.log.Info("the image's kernel is loaded", "kernel", image.Kernel, "cmdline", cmdline)
	return nil
}
