package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"

	"bmc/internal/manifest"
	"bmc/ramdisk/configure"
	"bmc/ramdisk/gpt"
)

// peerKey is a public key that nobody holds: nobody logs in.
const peerKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHdKMGqxzt4hPVRyFzLrfQSh4lVCKYhkkIuTQpXyVgyA nobody"

// configured copies an image and puts into it, as the ramdisk would, a host name,
// an address and an SSH host key, with debugfs and without mounting it.
func configured(ctx context.Context, image, to string) error {
	text, err := os.ReadFile(strings.TrimSuffix(image, filepath.Ext(image)) + ".yaml")
	if err != nil {
		return err
	}
	var spec manifest.Spec
	if err := yaml.Unmarshal(text, &spec); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", image, to).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	disk, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	table, err := gpt.Read(disk, 512)
	if err != nil {
		return err
	}
	for _, p := range table.Partitions() {
		if p.Number == spec.RootPartition {
			return errors.Join(personalise(ctx, disk, p, spec.WithDefaults(), to+".root"), disk.Close())
		}
	}
	return fmt.Errorf("%s has no partition %d", image, spec.RootPartition)
}

// personalise takes the root partition out, changes it and puts it back.
func personalise(ctx context.Context, disk *os.File, p gpt.Partition, spec manifest.Spec, part string) error {
	defer os.Remove(part) //nolint:errcheck // in a temporary folder
	from, size := int64(p.First)*512, int64(p.Last-p.First+1)*512
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, io.NewSectionReader(disk, from, size)); err != nil {
		return err
	}
	tree := part + ".tree"
	defer os.RemoveAll(tree) //nolint:errcheck // the same
	for _, dir := range []string{"etc/ssh", "etc/systemd/network", "root", "home/" + spec.User} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"/etc/passwd", "/etc/hosts"} {
		if err := debugfs(ctx, part, fmt.Sprintf("dump %s %s", name, filepath.Join(tree, name))); err != nil {
			return err
		}
	}
	m := &manifest.Manifest{Version: manifest.Version, Spec: spec}
	if _, err := configure.Apply(tree, m, configure.Params{Hostname: "peer", SSHKeys: []string{peerKey}, Address: guestAddr + prefix,
		MAC: peerMAC, InstanceID: "peer"}); err != nil {
		return err
	}
	script, err := putAll(tree)
	if err != nil {
		return err
	}
	if err := debugfs(ctx, part, script); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err = io.Copy(io.NewOffsetWriter(disk, from), f)
	return err
}

// putAll is debugfs's commands that copy a tree into a file system. Folders that
// are there already stay as they are.
func putAll(tree string) (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == tree {
			return err
		}
		name, info := strings.TrimPrefix(path, tree), fs.FileInfo(nil)
		if d.IsDir() {
			fmt.Fprintf(&b, "mkdir %s\n", name)
			return nil
		}
		if info, err = d.Info(); err != nil {
			return err
		}
		fmt.Fprintf(&b, "rm %s\nwrite %s %s\nset_inode_field %s mode 0100%03o\n", name, path, name, name, info.Mode().Perm())
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			fmt.Fprintf(&b, "set_inode_field %s uid %d\nset_inode_field %s gid %d\n", name, s.Uid, name, s.Gid)
		}
		return nil
	})
	return b.String(), err
}

// debugfs does commands on a file system in a file. It exits with 0 whatever they
// did; what matters is found missing when nobody answers.
func debugfs(ctx context.Context, part, commands string) error {
	cmd := exec.CommandContext(ctx, "debugfs", "-w", "-f", "-", part)
	cmd.Stdin = strings.NewReader(commands + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("debugfs: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
