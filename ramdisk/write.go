package ramdisk

import (
	"context"
	"errors"
	"fmt"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/manifest"
	"bmc/metal"
	"bmc/ramdisk/block"
	"bmc/ramdisk/gpt"
	"bmc/ramdisk/hardware"
	"bmc/ramdisk/imaging"
	"bmc/ramdisk/rootfs"
	"bmc/ramdisk/session"
)

// write puts an image on the root disk, proves it, and only then stretches it
// over the disk.
func (m *Machine) write(ctx context.Context, task *agentv1.WriteImageTask, progress session.Progress) (*agentv1.CompleteTaskRequest, error) {
	hw := hardware.Inspect(m.root)
	image, err := imaging.Accept(task.GetManifest(), task.GetSignature(), task.GetTrustedKeys(), hw.GetFirmware(), hw.GetArch())
	if err != nil {
		return nil, err
	}
	d, err := imaging.Choose(hw.GetDisks(), image, task.GetRootDiskHint())
	if err != nil {
		return nil, err
	}
	fetcher, err := imaging.NewFetcher(task.GetChunkUrl(), imaging.Connections)
	if err != nil {
		return nil, err
	}
	defer fetcher.Close()
	m.fetches(fetcher)
	defer m.fetches(nil)
	m.log.Info("writing the image", "image", image.Name, "disk", d.GetName(), "bytes", image.DataBytes())
	r, err := m.writeDisk(ctx, d, image, fetcher, progress)
	if err != nil {
		return nil, err
	}
	m.log.Info("image is written and read back", "bytes", r.Written, "read_back", r.Verified)
	m.written = imageBytes{uint64(r.Written), uint64(r.Verified)}
	if err := m.growFilesystem(ctx, d, image); err != nil {
		return nil, err
	}
	return &agentv1.CompleteTaskRequest{Installed: &agentv1.Installed{
		RootDisk: hardware.DiskID(d), BytesWritten: m.written.written, BytesVerified: m.written.verified,
	}}, nil
}

// writeDisk has the disk open exclusively, and leaves it with its partitions
// in the kernel's hands.
func (m *Machine) writeDisk(ctx context.Context, d *agentv1.Disk, image *manifest.Manifest, src imaging.Source, progress session.Progress) (imaging.Result, error) {
	f, err := m.open(d)
	if err != nil {
		return imaging.Result{}, failed(metal.CodeWriteFailed, "disk "+d.GetName()+" cannot be opened", err)
	}
	defer f.Close()
	r, err := imaging.Write(ctx, f, image, src, imaging.Options{Rotating: d.GetKind() == "hdd", Progress: func(done, total int64, message string) {
		progress(uint64(done), uint64(total), message)
	}})
	if err != nil {
		return imaging.Result{}, err
	}
	if err := stretch(f, image); err != nil {
		return imaging.Result{}, failed(metal.CodeWriteFailed, "the partition table cannot be grown", err)
	}
	if err := m.reread(ctx, f); err != nil {
		return imaging.Result{}, failed(metal.CodeWriteFailed, "the new partitions are not seen", err)
	}
	return r, nil
}

// stretch moves the backup partition table to the disk's end and grows the
// root partition.
func stretch(f *block.File, image *manifest.Manifest) error {
	disk := &block.Unaligned{D: f}
	table, err := gpt.Read(disk, f.SectorSize())
	if errors.Is(err, gpt.ErrNone) && image.RootPartition == 0 {
		return nil // whatever it is, it stays as it is
	}
	if err != nil {
		return err
	}
	if err := table.Grow(f.Size(), image.RootPartition); err != nil {
		return err
	}
	if err := table.Write(disk, image.SizeBytes); err != nil {
		return err
	}
	return f.Sync()
}

// growFilesystem lets the root file system fill its partition.
func (m *Machine) growFilesystem(ctx context.Context, d *agentv1.Disk, image *manifest.Manifest) error {
	if image.RootPartition == 0 || image.Filesystem != "ext4" {
		return nil
	}
	fsys, err := rootfs.Mount(ctx, m.node(d, image.RootPartition))
	if err != nil {
		return failed(metal.CodeWriteFailed, "the root file system cannot be mounted", err)
	}
	grown, err := fsys.Grow()
	if err = errors.Join(err, fsys.Unmount()); err != nil {
		return failed(metal.CodeWriteFailed, "the root file system cannot be grown", err)
	}
	m.log.Info("root file system fills the disk", "bytes", grown)
	return nil
}

func failed(code metal.Code, what string, err error) error {
	return &metal.Error{Code: code, Message: fmt.Sprintf("%s: %v", what, err), Err: err}
}
