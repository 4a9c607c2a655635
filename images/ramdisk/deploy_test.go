package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/manifest"
	"bmc/ramdisk/block"
	"bmc/ramdisk/gpt"
)

const (
	mib      = 1 << 20
	sshKey   = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHdKMGqxzt4hPVRyFzLrfQSh4lVCKYhkkIuTQpXyVgyA user@laptop"
	rootFrom = 6 * mib // of the test image's root partition
)

func tool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"", "/sbin/", "/usr/sbin/"} {
		if p, err := exec.LookPath(dir + name); err == nil {
			return p
		}
	}
	t.Skip(name + " is not installed")
	return ""
}

// testImage is a disk of 40 MiB: an ESP and a real ext4 file system.
func testImage(t *testing.T) *agentv1.WriteImageTask {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\ndebian:x:1000:1000::/home/debian:/bin/bash\n", "etc/hosts": "127.0.0.1\tlocalhost\n",
		"etc/machine-id": "0123\n", "home/debian/.profile": "", "usr/lib/big": strings.Repeat("not compressible? it is ", 100_000),
	} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const size = 40 * mib
	head, tail := gpt.Format(512, size/512,
		gpt.Layout{Type: gpt.ESP, First: 2048, Last: rootFrom/512 - 1}, gpt.Layout{Type: gpt.GUID{1}, First: rootFrom / 512, Last: size/512 - 2049})
	fsImage := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command(tool(t, "mke2fs"), "-q", "-t", "ext4", "-b", "4096", "-L", "root", "-d", root, fsImage, "33M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	fsys, err := os.ReadFile(fsImage)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, size)
	copy(raw, head)
	copy(raw[rootFrom:], fsys)
	copy(raw[size-len(tail):], tail)
	return publish(t, raw, manifest.Spec{Name: "test", OS: "Test", User: "debian", Firmware: []string{"bios", "uefi"}, RootPartition: 2,
		Configure: manifest.ConfigureFiles, Network: manifest.NetworkNetworkd}.WithDefaults())
}

// publish signs an image and serves its chunks to the guest.
func publish(t *testing.T, raw []byte, spec manifest.Spec) *agentv1.WriteImageTask {
	t.Helper()
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
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	key, err := manifest.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return &agentv1.WriteImageTask{Manifest: m.Canonical(), Signature: m.Sign(key), TrustedKeys: []string{manifest.PublicKey(key)},
		ChunkUrl: "http://10.0.2.2:" + port + "/images/chunks/%s?op=op-1"}
}

// ovmf returns arguments for a machine with UEFI whose variables last.
func ovmf(t *testing.T) []string {
	t.Helper()
	const code, vars = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
	b, err := os.ReadFile(vars)
	if err != nil {
		t.Skip("ovmf is not installed")
	}
	mine := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(mine, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-machine", "q35", "-drive", "if=pflash,format=raw,readonly=on,file=" + code, "-drive", "if=pflash,format=raw,file=" + mine}
}

func TestQEMUDeploy(t *testing.T) {
	for _, firmware := range []string{"bios", "uefi"} {
		t.Run(firmware, func(t *testing.T) { deploy(t, firmware) })
	}
}

func deploy(t *testing.T, firmware string) {
	ramdiskDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const size = 1 << 30
	file := disk(t, "root", size)
	if err := os.WriteFile(file, bytes.Repeat([]byte("former tenant"), 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	args := append(virtio(file, "DISK-A"), "-m", "256") // a small machine: buffers must fit, too
	if firmware == "uefi" {
		args = append(args, ovmf(t)...)
	}
	image := testImage(t)

	m := boot(t, args...)
	phase := func(id string, task *agentv1.Task) *agentv1.CompleteTaskRequest {
		t.Helper()
		start := time.Now()
		task.Id = "op-1/1/" + id
		r := m.do(t, ctx, task)
		if r.GetReason() != "" {
			t.Fatalf("%s: %s: %s", id, r.GetReason(), r.GetMessage())
		}
		t.Logf("%s: %.1f s, %d progress reports", id, time.Since(start).Seconds(), len(m.agent.Progress(task.GetId())))
		return r
	}
	start := time.Now()
	hello, err := m.agent.Greeted(ctx)
	if err != nil || hello.GetIdentity().GetFirmware() != firmware {
		t.Fatalf("hello %v, %v", hello, err)
	}
	t.Logf("hello: %.1f s", time.Since(start).Seconds())
	w := phase("wipe", &agentv1.Task{Kind: &agentv1.Task_Wipe{Wipe: &agentv1.WipeTask{}}})
	if len(w.GetWipes()) != 1 || w.GetWipes()[0].GetBytesReadBack() != size || w.GetWipes()[0].GetMethod() != "discard" {
		t.Errorf("evidence %v", w.GetWipes())
	}
	wr := phase("write", &agentv1.Task{Kind: &agentv1.Task_WriteImage{WriteImage: image}})
	if in := wr.GetInstalled(); in.GetRootDisk() != "DISK-A" || in.GetBytesVerified() != 40*mib {
		t.Errorf("installed %v", in)
	}
	c := phase("configure", &agentv1.Task{Kind: &agentv1.Task_Configure{Configure: &agentv1.ConfigureTask{
		Manifest: image.GetManifest(), RootDisk: "DISK-A", Hostname: "web-1", SshKeys: []string{sshKey}, Address: "10.77.0.11/24",
		Gateway: "10.77.0.1", Dns: []string{"10.77.0.1"}, Mac: testMAC, InstanceId: "op-1",
	}}})
	if in := c.GetInstalled(); len(in.GetSshHostKeys()) != 1 || (in.GetBootEntry() != "") != (firmware == "uefi") {
		t.Errorf("installed %v", in)
	}
	phase("reboot", &agentv1.Task{Kind: &agentv1.Task_Reboot{Reboot: &agentv1.RebootTask{}}}) // -no-reboot makes it an exit
	m.waitExit(t, ctx)
	checkDisk(t, file, c.GetInstalled().GetSshHostKeys()[0])

	// A second boot, as after destroy: the disk and the boot entry go.
	m = boot(t, args...)
	phase("clean", &agentv1.Task{Kind: &agentv1.Task_Wipe{Wipe: &agentv1.WipeTask{}}})
	phase("off", &agentv1.Task{Kind: &agentv1.Task_PowerOff{PowerOff: &agentv1.PowerOffTask{}}})
	m.waitExit(t, ctx)
	if b, err := os.ReadFile(file); err != nil || !block.AllZero(b) {
		t.Error("the disk is not empty")
	}
	if entry := c.GetInstalled().GetBootEntry(); firmware == "uefi" && !strings.Contains(m.console.String(), "boot entries removed entries=["+entry+"]") {
		t.Error("the boot entry was not removed")
	}
}

// checkDisk looks at the disk with other people's programs.
func checkDisk(t *testing.T, file, hostKey string) {
	t.Helper()
	if out, err := exec.Command(tool(t, "sfdisk"), "--verify", file).CombinedOutput(); err != nil || !strings.Contains(string(out), "No errors detected") {
		t.Errorf("sfdisk: %v\n%s", err, out)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := gpt.Read(f, 512)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := table.Partition(2)
	offset, length := table.Bytes(p)
	if offset != rootFrom || offset+length != 1023*mib {
		t.Errorf("root partition at %d, %d bytes", offset, length)
	}
	part := filepath.Join(t.TempDir(), "part")
	data := make([]byte, length)
	if _, err := f.ReadAt(data, offset); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(part, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool(t, "e2fsck"), "-fn", part).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	debugfs := func(cmd string) string {
		out, err := exec.Command(tool(t, "debugfs"), "-R", cmd, part).CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	for name, want := range map[string]string{
		"/etc/hostname": "web-1\n", "/home/debian/.ssh/authorized_keys": sshKey, "/etc/systemd/network/10-bmc.network": "Address=10.77.0.11/24",
		"/etc/ssh/ssh_host_ed25519_key.pub": hostKey,
	} {
		if got := debugfs("cat " + name); !strings.Contains(got, want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := debugfs("stat /home/debian/.ssh/authorized_keys"); !strings.Contains(got, "Mode:  0600") || !strings.Contains(got, "User:  1000") {
		t.Error(got)
	}
	if got := debugfs("stats"); !strings.Contains(got, "Block count:              260352") {
		t.Errorf("the file system was not grown:\n%.1500s", got)
	}
}
