package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"bmc/ramdisk/kmod"
)

// wanted are the modules that a server's ramdisk may need, without their
// dependencies. Drivers that do nothing without a firmware file of their own
// are left out.
var wanted = []string{
	// networks
	"virtio_net", "e1000", "e1000e", "igb", "igc", "ixgbe", "ixgbevf", "i40e", "iavf", "ice", "bnxt_en", "tg3",
	"mlx4_core", "mlx4_en", "mlx5_core", "r8169", "realtek", "broadcom", "atlantic", "be2net", "enic", "ena", "vmxnet3", "hv_netvsc",
	// disks
	"virtio_blk", "virtio_scsi", "nvme", "vmd", "ahci", "ata_piix", "ata_generic", "sd_mod", "megaraid_sas", "mpt3sas", "mpi3mr",
	"mptspi", "mptsas", "hpsa", "smartpqi", "aacraid", "vmw_pvscsi", "hv_storvsc",
	// the machine's own management controller
	"ipmi_si", "ipmi_devintf",
	// buses and entropy
	"virtio_pci", "virtio_mmio", "virtio-rng", "hv_vmbus",
	// file systems, and what they ask for by name
	"ext4", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1", "nls_utf8", "efivarfs",
	"crc32c_generic", "crc32c_intel", "crct10dif_generic", "crct10dif-pclmul", "crc32-pclmul", "crc32_generic", "crc64-rocksoft",
	"crc64_rocksoft_generic",
}

// module is one file of the kernel's package.
type module struct {
	file    string // below the modules folder, slashes
	depends []string
	aliases []string
}

// selectModules returns the wanted modules and what they depend on, by file. A wanted
// one that the kernel does not have is an error, unless the kernel was made before it
// was wanted: then it is left out, and named.
func selectModules(dir string, older bool) (list []module, missing []string, err error) {
	files := map[string]string{}
	err = filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".ko") {
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			files[kmod.Name(path)] = filepath.ToSlash(rel)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, nil, err
	}
	for _, line := range strings.Fields(string(builtin)) {
		if name := kmod.Name(line); files[name] == "" {
			files[name] = "builtin"
		}
	}
	chosen := map[string]module{}
	for _, w := range wanted {
		if older && files[kmod.Name(w)] == "" {
			missing = append(missing, w)
			continue
		}
		if err := choose(dir, kmod.Name(w), files, chosen); err != nil {
			return nil, nil, err
		}
	}
	list = make([]module, 0, len(chosen))
	for _, m := range chosen {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b module) int { return strings.Compare(a.file, b.file) })
	// The loader wants files, not names.
	for i := range list {
		for j, d := range list[i].depends {
			list[i].depends[j] = chosen[d].file
		}
	}
	return list, missing, nil
}

func choose(dir, name string, files map[string]string, chosen map[string]module) error {
	file, ok := files[name]
	if !ok {
		return fmt.Errorf("the kernel has no module %s", name)
	}
	if _, done := chosen[name]; done || file == "builtin" {
		return nil
	}
	m, err := readModule(filepath.Join(dir, file))
	if err != nil {
		return err
	}
	m.file = file
	m.depends = slices.DeleteFunc(m.depends, func(d string) bool { return files[d] == "builtin" })
	chosen[name] = m
	for _, d := range m.depends {
		if err := choose(dir, d, files, chosen); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// readModule reads what a module says of itself: zero-terminated key=value
// strings in the section .modinfo.
func readModule(path string) (module, error) {
	f, err := elf.Open(path)
	if err != nil {
		return module{}, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	section := f.Section(".modinfo")
	if section == nil {
		return module{}, fmt.Errorf("%s has no .modinfo", filepath.Base(path))
	}
	data, err := section.Data()
	if err != nil {
		return module{}, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	var m module
	for _, field := range bytes.Split(data, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch {
		case key == "alias":
			m.aliases = append(m.aliases, value)
		case key == "depends" && value != "":
			for _, d := range strings.Split(value, ",") {
				m.depends = append(m.depends, kmod.Name(d))
			}
		}
	}
	return m, nil
}

// indexes returns modules.dep and modules.alias for the chosen modules.
func indexes(list []module) (dep, alias []byte) {
	var d, a bytes.Buffer
	for _, m := range list {
		fmt.Fprintf(&d, "%s:", m.file)
		for _, f := range m.depends {
			fmt.Fprintf(&d, " %s", f)
		}
		d.WriteByte('\n')
		for _, pattern := range m.aliases {
			if !strings.ContainsAny(pattern, " \t\n") {
				fmt.Fprintf(&a, "alias %s %s\n", pattern, kmod.Name(m.file))
			}
		}
	}
	return d.Bytes(), a.Bytes()
}
