package ramdisk

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/manifest"
	"bmc/metal"
	"bmc/ramdisk/block"
	"bmc/ramdisk/efiboot"
	"bmc/ramdisk/gpt"
)

const mib = 1 << 20

// testMachine has disks that are files full of a former tenant's bytes.
func testMachine(t *testing.T, uefi bool, disks map[string]int64) *Machine {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the test's image is for x86_64")
	}
	m := &Machine{log: slog.New(slog.DiscardHandler), root: t.TempDir()}
	put := func(name, content string) {
		file := filepath.Join(m.root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, size := range disks {
		put("sys/block/"+name+"/size", fmt.Sprint(size/512))
		put("sys/block/"+name+"/serial", "S-"+name)
		put("sys/block/"+name+"/queue/logical_block_size", "512")
		if name == "sdz" {
			put("sys/block/"+name+"/removable", "1")
		}
		put("dev/"+name, strings.Repeat("tenant's marker ", int(size/16)))
	}
	if uefi {
		put(efiboot.Dir+"/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", "\x06\x00\x00\x00\x00")
	}
	return m
}

func (m *Machine) do(t *testing.T, task *agentv1.Task) (*agentv1.CompleteTaskRequest, error) {
	t.Helper()
	return m.Run(t.Context(), task, func(done, total uint64, _ string) {
		if done > total {
			t.Errorf("progress %d of %d", done, total)
		}
	})
}

func (m *Machine) content(t *testing.T, disk string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.root, "dev", disk))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// image is 8 MiB with an ESP and a root partition, and its chunks on a server.
func image(t *testing.T, edit func(*manifest.Spec)) ([]byte, *agentv1.WriteImageTask) {
	t.Helper()
	raw := bytes.Repeat([]byte{0}, 8*mib)
	head, tail := gpt.Format(512, 8*mib/512, gpt.Layout{Type: gpt.ESP, First: 2048, Last: 4095}, gpt.Layout{Type: gpt.GUID{1}, First: 4096, Last: 14335})
	copy(raw, head)
	copy(raw[len(raw)-len(tail):], tail)
	copy(raw[3*mib:], bytes.Repeat([]byte("the system"), 1000))
	spec := manifest.Spec{Name: "test", OS: "Test", Firmware: []string{"bios", "uefi"}, ChunkSize: 1 * mib}.WithDefaults()
	if edit != nil {
		edit(&spec)
	}
	frames := map[string][]byte{}
	m, err := manifest.Build(t.Context(), bytes.NewReader(raw), int64(len(raw)), spec, func(f manifest.ChunkFrame) error {
		frames[f.StoredSHA256.String()] = f.Data
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(frames[path.Base(r.URL.Path)]))
	}))
	t.Cleanup(srv.Close)
	key, err := manifest.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return raw, &agentv1.WriteImageTask{Manifest: m.Canonical(), Signature: m.Sign(key), TrustedKeys: []string{manifest.PublicKey(key)}, ChunkUrl: srv.URL + "/%s"}
}

func TestWriteConfigureWipe(t *testing.T) {
	m := testMachine(t, true, map[string]int64{"vda": 16 * mib, "sdz": 1 * mib})
	raw, write := image(t, nil)
	r, err := m.do(t, &agentv1.Task{Kind: &agentv1.Task_WriteImage{WriteImage: write}})
	if err != nil {
		t.Fatal(err)
	}
	if in := r.GetInstalled(); in.GetRootDisk() != "S-vda" || in.GetBytesVerified() != 8*mib {
		t.Errorf("installed %v", in)
	}
	disk := m.content(t, "vda")
	if !bytes.Equal(disk[2*mib:7*mib], raw[2*mib:7*mib]) {
		t.Error("the disk differs from the image")
	}
	table, err := gpt.Read(bytes.NewReader(disk), 512)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Grow(16*mib, 0); err != nil {
		t.Errorf("the table does not fit the disk: %v", err)
	}
	if !bytes.Equal(disk[16*mib-512:16*mib-504], []byte("EFI PART")) {
		t.Error("no backup at the disk's end")
	}

	r, err = m.do(t, &agentv1.Task{Kind: &agentv1.Task_Configure{Configure: &agentv1.ConfigureTask{Manifest: write.GetManifest(), RootDisk: "S-vda"}}})
	if err != nil {
		t.Fatal(err)
	}
	if in := r.GetInstalled(); in.GetBootEntry() != "Boot0000" || in.GetBytesVerified() != 8*mib {
		t.Errorf("installed %v", in)
	}

	r, err = m.do(t, &agentv1.Task{Kind: &agentv1.Task_Wipe{Wipe: &agentv1.WipeTask{}}})
	if err != nil {
		t.Fatal(err)
	}
	if w := r.GetWipes(); len(w) != 1 || w[0].GetDisk() != "S-vda" || w[0].GetBytesReadBack() != 16*mib {
		t.Errorf("evidence %v", w)
	}
	if !block.AllZero(m.content(t, "vda")) || block.AllZero(m.content(t, "sdz")) {
		t.Error("the fixed disk and it alone must be empty")
	}
	if _, err := os.Stat(filepath.Join(m.efivars(), "Boot0000-8be4df61-93ca-11d2-aa0d-00e098032b8c")); err == nil {
		t.Error("the boot entry outlived the wipe")
	}
}

func TestNothingIsWrittenOnRefusal(t *testing.T) {
	for _, tt := range []struct {
		name string
		code metal.Code
		disk int64
		spec func(*manifest.Spec)
		edit func(*agentv1.WriteImageTask)
	}{
		{"too large", metal.CodeImageTooLarge, 4 * mib, nil, nil},
		{"signature", metal.CodeSignature, 16 * mib, nil, func(w *agentv1.WriteImageTask) { w.TrustedKeys = nil }},
		{"firmware", metal.CodeFirmwareUnfit, 16 * mib, func(s *manifest.Spec) { s.Firmware, s.BootLoader = []string{"uefi"}, `\EFI\BOOT\BOOTX64.EFI` }, nil},
		{"sector size", metal.CodeNoDisk, 16 * mib, func(s *manifest.Spec) { s.SectorSize = 4096 }, nil},
		{"no such disk", metal.CodeNoDisk, 16 * mib, nil, func(w *agentv1.WriteImageTask) { w.RootDiskHint = "naa.1" }},
		{"chunk URL", metal.CodeImageUnavailable, 16 * mib, nil, func(w *agentv1.WriteImageTask) { w.ChunkUrl = "file:///%s" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := testMachine(t, false, map[string]int64{"vda": tt.disk})
			before := m.content(t, "vda")
			_, write := image(t, tt.spec)
			if tt.edit != nil {
				tt.edit(write)
			}
			_, err := m.do(t, &agentv1.Task{Kind: &agentv1.Task_WriteImage{WriteImage: write}})
			if metal.CodeOf(err) != tt.code {
				t.Errorf("got %v, want %s", err, tt.code)
			}
			if !bytes.Equal(before, m.content(t, "vda")) {
				t.Error("the disk was written")
			}
		})
	}
}

func TestWipeFailsClosed(t *testing.T) {
	m := testMachine(t, false, map[string]int64{"vda": 4 * mib, "vdb": 4 * mib})
	wipe := func(disks ...string) (*agentv1.CompleteTaskRequest, error) {
		return m.do(t, &agentv1.Task{Kind: &agentv1.Task_Wipe{Wipe: &agentv1.WipeTask{Disks: disks}}})
	}
	if _, err := wipe("S-none"); metal.CodeOf(err) != metal.CodeWipeFailed {
		t.Error(err)
	}
	// A disk that shrank since it was inspected is another disk.
	if err := os.Truncate(filepath.Join(m.root, "dev/vdb"), 2*mib); err != nil {
		t.Fatal(err)
	}
	r, err := wipe()
	if metal.CodeOf(err) != metal.CodeWipeFailed || len(r.GetWipes()) != 1 {
		t.Errorf("%v, evidence %v", err, r.GetWipes())
	}
	// So is one that became write-protected: inspection does not even list it.
	m = testMachine(t, false, map[string]int64{"vda": mib, "vdb": mib})
	if err := os.WriteFile(filepath.Join(m.root, "sys/block/vdb/ro"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r, err := wipe(); metal.CodeOf(err) != metal.CodeWipeFailed || !strings.Contains(err.Error(), "vdb") {
		t.Errorf("%v, evidence %v", err, r.GetWipes())
	}
	if _, err := testMachine(t, false, nil).do(t, &agentv1.Task{Kind: &agentv1.Task_Wipe{Wipe: &agentv1.WipeTask{}}}); metal.CodeOf(err) != metal.CodeNoDisk {
		t.Error(err)
	}
	if _, err := testMachine(t, true, map[string]int64{"vda": mib}).do(t, &agentv1.Task{}); metal.CodeOf(err) != metal.CodeInternal {
		t.Error(err)
	}
}

func TestPartitionNode(t *testing.T) {
	for want, disk := range map[string]string{"sda3": "sda", "nvme0n1p3": "nvme0n1", "mmcblk0p3": "mmcblk0", "vdaa3": "vdaa"} {
		if got := partitionNode(disk, 3); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
