package hardware

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	agentv1 "bmc/api/agent/v1"
)

// fixture lays out a tree; a value that starts with "->" is a symlink.
func fixture(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, file)
		} else {
			err = os.WriteFile(file, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// memoryTable is an SMBIOS table with one DIMM of each given size in MiB.
func memoryTable(sizes ...uint16) string {
	var table []byte
	for _, s := range sizes {
		device := make([]byte, 0x28)
		device[0], device[1] = 17, byte(len(device))
		binary.LittleEndian.PutUint16(device[0x0c:], s)
		table = append(append(table, device...), "DIMM 0\x00\x00"...)
	}
	return string(append(table, 127, 4, 0, 0, 0, 0))
}

var qemuBIOS = map[string]string{
	"sys/class/dmi/id/sys_vendor":             "QEMU\n",
	"sys/class/dmi/id/product_name":           "Standard PC (Q35 + ICH9, 2009)\n",
	"sys/class/dmi/id/product_serial":         "SN-0001\n",
	"sys/class/dmi/id/product_uuid":           "6B1F5A10-0000-4000-8000-525400000001\n",
	"sys/class/dmi/id/bios_vendor":            "SeaBIOS\n",
	"sys/class/dmi/id/bios_version":           "1.16.2\n",
	"sys/firmware/dmi/tables/DMI":             memoryTable(512),
	"proc/meminfo":                            "MemTotal:         480000 kB\nMemFree: 1 kB\n",
	"proc/cpuinfo":                            "processor\t: 0\nmodel name\t: QEMU TCG CPU\n\nprocessor\t: 1\nmodel name\t: QEMU TCG CPU\n",
	"sys/block/vda/size":                      "4194304\n",
	"sys/block/vda/ro":                        "0\n",
	"sys/block/vda/serial":                    "disk-0001\n",
	"sys/block/vda/queue/logical_block_size":  "512\n",
	"sys/block/vda/queue/physical_block_size": "4096\n",
	"sys/block/vda/queue/rotational":          "1\n",
	"sys/block/vda/removable":                 "0\n",
	"sys/block/loop0/size":                    "100\n",
	"sys/block/sr0/size":                      "100\n",
	"sys/class/net/lo/address":                "00:00:00:00:00:00\n",
	"sys/class/net/eth0/address":              "52:54:00:00:00:01\n",
	"sys/class/net/eth0/carrier":              "1\n",
	"sys/class/net/eth0/speed":                "-1\n",
	"sys/class/net/eth0/device/driver":        "->../../../bus/virtio/drivers/virtio_net",
}

var metalUEFI = map[string]string{
	"sys/class/dmi/id/sys_vendor":                "Dell Inc.\n",
	"sys/class/dmi/id/product_serial":            "To Be Filled By O.E.M.\n",
	"sys/firmware/efi/runtime":                   "0x0\n",
	secureBootVar:                                "\x06\x00\x00\x00\x01",
	"sys/firmware/dmi/tables/DMI":                memoryTable(16384, 0, 16384),
	"proc/meminfo":                               "MemTotal:       32800000 kB\n",
	"sys/block/nvme0n1/size":                     "1875385008\n",
	"sys/block/nvme0n1/wwid":                     "eui.0025385b71b0a1c2\n",
	"sys/block/nvme0n1/device/serial":            "S4EVNX0M   \n",
	"sys/block/nvme0n1/device/firmware_rev":      "1B2QEXP7\n",
	"sys/block/sda/device/rev":                   "TN05\n",
	"sys/class/dmi/id/board_serial":              "Default string\n",
	"sys/block/nvme0n1/device/model":             "Samsung SSD 970 PRO 1TB                 \n",
	"sys/block/nvme0n1/queue/logical_block_size": "4096\n",
	"sys/block/nvme0c0n1/size":                   "1875385008\n",
	"sys/block/sda/size":                         "7814037168\n",
	"sys/block/sda/device/wwid":                  "naa.5000c500a1b2c3d4\n",
	"sys/block/sda/device/vendor":                "ATA     \n",
	"sys/block/sda/device/model":                 "ST4000NM0035-1V4\n",
	"sys/block/sda/device/vpd_pg80":              "\x00\x80\x00\x08ZC1ABCDE",
	"sys/block/sda/queue/rotational":             "1\n",
	"sys/block/sda/queue/logical_block_size":     "512\n",
	"sys/block/sdb/size":                         "0\n",
	"sys/block/sdc/size":                         "62000000\n",
	"sys/block/sdc/removable":                    "1\n",
	"sys/block/sdc/device/vendor":                "SanDisk\n",
	"sys/block/sdc/device/model":                 "Ultra\n",
	"sys/block/sdc/device/wwid":                  "t10.USB     SanDisk\n",
	"sys/block/sdc/queue/logical_block_size":     "512\n",
	"sys/block/sdd/size":                         "100\n",
	"sys/block/sdd/ro":                           "1\n",
	"sys/class/net/eno1/address":                 "AA:BB:CC:00:11:22\n",
	"sys/class/net/eno1/speed":                   "25000\n",
	"sys/class/net/eno1/carrier":                 "0\n",
	"sys/class/net/eno1/device/driver":           "->../drivers/bnxt_en",
}

func TestInspect(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  *agentv1.Hardware
	}{
		{"QEMU with BIOS", qemuBIOS, &agentv1.Hardware{
			Serial: "SN-0001", Uuid: "6b1f5a10-0000-4000-8000-525400000001", Vendor: "QEMU",
			Product: "Standard PC (Q35 + ICH9, 2009)", Firmware: "bios", FirmwareVersion: "SeaBIOS 1.16.2",
			CpuModel: "QEMU TCG CPU", CpuThreads: 2, MemoryBytes: 512 << 20, Arch: arch(),
			Disks: []*agentv1.Disk{{Name: "vda", SizeBytes: 2 << 30, Kind: "virtual", Serial: "disk-0001", SectorSize: 512, PhysicalSectorSize: 4096}},
			Dimms: []*agentv1.DIMM{{SizeBytes: 512 << 20}},
			Nics:  []*agentv1.NIC{{Name: "eth0", Mac: "52:54:00:00:00:01", Link: true, Driver: "virtio_net"}},
		}},
		{"metal with UEFI", metalUEFI, &agentv1.Hardware{
			Vendor: "Dell Inc.", Firmware: "uefi", SecureBoot: true, MemoryBytes: 32 << 30, Arch: arch(),
			Dimms: []*agentv1.DIMM{{SizeBytes: 16 << 30}, {SizeBytes: 16 << 30}},
			Disks: []*agentv1.Disk{
				{Name: "sda", SizeBytes: 7814037168 * 512, Kind: "hdd", Wwn: "naa.5000c500a1b2c3d4", Serial: "ZC1ABCDE", Model: "ST4000NM0035-1V4", SectorSize: 512, Firmware: "TN05"},
				{Name: "sdc", SizeBytes: 62000000 * 512, Kind: "ssd", Model: "SanDisk Ultra", SectorSize: 512, Removable: true},
				{Name: "nvme0n1", SizeBytes: 1875385008 * 512, Kind: "nvme", Wwn: "eui.0025385b71b0a1c2", Serial: "S4EVNX0M", Model: "Samsung SSD 970 PRO 1TB", SectorSize: 4096, Firmware: "1B2QEXP7"},
			},
			Nics: []*agentv1.NIC{{Name: "eno1", Mac: "aa:bb:cc:00:11:22", SpeedMbps: 25000, Driver: "bnxt_en"}},
		}},
		{"nothing readable", nil, &agentv1.Hardware{Firmware: "bios", Arch: arch()}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Inspect(fixture(t, tt.files)), protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadOnly(t *testing.T) {
	files := map[string]string{"sys/block/vda/size": "8\n", "sys/block/vda/ro": "0\n", "sys/block/loop0/size": "8\n", "sys/block/loop0/ro": "1\n",
		"sys/block/sdb/size": "0\n", "sys/block/sdb/ro": "1\n", "sys/block/sdc/size": "8\n", "sys/block/sdc/ro": "1\n", "sys/block/sdc/removable": "1\n",
		"sys/block/nvme0n1/size": "8\n", "sys/block/nvme0n1/ro": "1\n"}
	if got := ReadOnly(fixture(t, files)); len(got) != 1 || got[0] != "nvme0n1" {
		t.Errorf("read-only disks are %v, want nvme0n1: no loop device, no empty slot, nothing removable", got)
	}
}

func TestDiskMatches(t *testing.T) {
	d := &agentv1.Disk{Name: "sda", Wwn: "naa.5000c500a1b2c3d4", Serial: "ZC1"}
	for name, want := range map[string]bool{
		"sda": true, "/dev/sda": true, "ZC1": true, "naa.5000c500a1b2c3d4": true, "0x5000c500a1b2c3d4": true,
		"": false, "/dev/": false, "sdb": false,
	} {
		if got := DiskMatches(d, name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
	if DiskMatches(&agentv1.Disk{Name: "sdb"}, "naa.") || DiskMatches(&agentv1.Disk{Name: "sdb"}, "0x") {
		t.Error("an empty WWN matches")
	}
}

func TestDiskID(t *testing.T) {
	for want, d := range map[string]*agentv1.Disk{
		"naa.1": {Name: "sda", Wwn: "naa.1", Serial: "s"}, "s": {Name: "sda", Serial: "s"}, "sda": {Name: "sda"},
	} {
		if got := DiskID(d); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func FuzzSMBIOS(f *testing.F) {
	f.Add([]byte(memoryTable(512, 0x7fff, 0x8100)))
	f.Add([]byte{17, 255, 0, 0})
	f.Fuzz(func(t *testing.T, table []byte) { installedMemory(table); modules(table); processors(table) })
}
