package efiboot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"bmc/ramdisk/gpt"
)

func esp(id byte) gpt.Partition {
	return gpt.Partition{Number: 2, Type: gpt.ESP, GUID: gpt.GUID{id}, First: 4096, Last: 135167}
}

// firmware is a folder of variables as OVMF leaves it: its own entries for the
// setup program, a disk and the network.
func firmware(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	whole := option{description: "UEFI Misc Device", path: []byte{2, 1, 12, 0, 0xd0, 0x41, 3, 10, 0, 0, 0, 0, 1, 1, 6, 0, 2, 0, endPath, 0xff, 4, 0}}
	for name, value := range map[string][]byte{
		"Boot0000": whole.encode(), "Boot0001": {1, 2, 3}, "Boot0003": whole.encode(),
	} {
		if err := write(dir, name+global, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeOrder(dir, []uint16{0, 1, 3}); err != nil {
		t.Fatal(err)
	}
	if err := write(dir, "BootCurrent"+global, []byte{1, 0}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func order(t *testing.T, dir string) []uint16 {
	t.Helper()
	o, err := readOrder(dir)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestInstallAndPrune(t *testing.T) {
	dir := firmware(t)
	name, err := Install(dir, "bmc debian-12", `\EFI\BOOT\BOOTX64.EFI`, esp(1))
	if err != nil || name != "Boot0002" {
		t.Fatalf("%q, %v", name, err)
	}
	if got := order(t, dir); !slices.Equal(got, []uint16{2, 0, 1, 3}) {
		t.Errorf("order %v", got)
	}
	if name, err = Install(dir, "bmc debian-12", `\EFI\BOOT\BOOTX64.EFI`, esp(1)); err != nil || name != "Boot0002" {
		t.Errorf("again: %q, %v", name, err)
	}
	if name, err = Install(dir, "the tenant's own", `\EFI\debian\grubx64.efi`, esp(9)); err != nil || name != "Boot0004" {
		t.Errorf("second: %q, %v", name, err)
	}
	gone, err := Prune(dir, func(g gpt.GUID) bool { return g[0] == 1 })
	if err != nil || !slices.Equal(gone, []string{"Boot0004"}) {
		t.Errorf("pruned %v, %v", gone, err)
	}
	gone, err = Prune(dir, func(gpt.GUID) bool { return false })
	if err != nil || !slices.Equal(gone, []string{"Boot0002"}) {
		t.Errorf("pruned %v, %v", gone, err)
	}
	if got := order(t, dir); !slices.Equal(got, []uint16{0, 1, 3}) {
		t.Errorf("order %v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "Boot0002"+global)); err == nil {
		t.Error("the entry is still there")
	}
}

func TestFirstEntryAndLast(t *testing.T) {
	dir := t.TempDir()
	if name, err := Install(dir, "bmc", `\A.EFI`, esp(1)); err != nil || name != "Boot0000" {
		t.Fatalf("%q, %v", name, err)
	}
	if _, err := Prune(dir, func(gpt.GUID) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("left %v", files)
	}
	if _, err := Install(filepath.Join(dir, "none"), "bmc", `\A.EFI`, esp(1)); err == nil {
		t.Error("no variables, and no error")
	}
}

// The bytes were laid out by hand from UEFI 2.10, 3.1.3 and 10.3.5.1.
func TestEncoding(t *testing.T) {
	got := option{description: "ab", path: hardDrivePath(esp(0xaa), `\A`)}.encode()
	want, err := hex.DecodeString("01000000" + "3800" + "610062000000" +
		"04012a00" + "02000000" + "0010000000000000" + "0000020000000000" + "aa000000000000000000000000000000" + "0202" +
		"04040a00" + "5c0041000000" + "7fff0400")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	o, err := decode(got)
	if err != nil || o.description != "ab" {
		t.Errorf("%+v, %v", o, err)
	}
	if g, ok := o.partition(); !ok || g[0] != 0xaa {
		t.Error("no partition")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(option{description: "bmc", path: hardDrivePath(esp(1), `\EFI\BOOT\BOOTX64.EFI`)}.encode())
	f.Add(binary.LittleEndian.AppendUint16([]byte{1, 0, 0, 0}, 0xffff))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := decode(b); err == nil {
			o.partition()
		}
	})
}
