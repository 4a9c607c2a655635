package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/freeport"
	"bmc/internal/manifest"
)

// TestQEMURealImage deploys the image that BMC_TEST_IMAGE names (its .yaml
// beside it), boots the machine from its disk alone, and compares the SSH host
// key that answers with the one that was recorded.
func TestQEMURealImage(t *testing.T) {
	ramdiskDir(t)
	file := os.Getenv("BMC_TEST_IMAGE")
	if file == "" {
		t.Skip("BMC_TEST_IMAGE is not set to an image")
	}
	for _, firmware := range []string{"bios", "uefi"} {
		t.Run(firmware, func(t *testing.T) { realImage(t, firmware, file) })
	}
}

// realImageTask publishes an image with the description beside it, edited.
func realImageTask(t *testing.T, file string, edit func(*manifest.Spec)) *agentv1.WriteImageTask {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(strings.TrimSuffix(file, ".img") + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	var spec manifest.Spec
	if err := yaml.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(&spec)
	}
	return publish(t, raw, spec.WithDefaults())
}

func realImage(t *testing.T, firmware, file string) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	image := realImageTask(t, file, nil)
	args := append(virtio(disk(t, "root", 2<<30), "DISK-A"), "-m", "512")
	if firmware == "uefi" {
		args = append(args, ovmf(t)...)
	}
	m := boot(t, args...)
	for _, task := range []*agentv1.Task{
		{Id: "1", Kind: &agentv1.Task_WriteImage{WriteImage: image}},
		{Id: "2", Kind: &agentv1.Task_Configure{Configure: &agentv1.ConfigureTask{Manifest: image.GetManifest(), RootDisk: "DISK-A",
			Hostname: "web-1", SshKeys: []string{sshKey}, Address: "10.0.2.15/24", Gateway: "10.0.2.2", Mac: testMAC, InstanceId: "op-1"}}},
		{Id: "3", Kind: &agentv1.Task_Reboot{Reboot: &agentv1.RebootTask{}}},
	} {
		if r := m.do(t, ctx, task); r.GetReason() != "" {
			t.Fatalf("task %s: %s: %s", task.GetId(), r.GetReason(), r.GetMessage())
		}
	}
	m.waitExit(t, ctx)
	r, err := m.agent.Result(ctx, "2")
	if err != nil {
		t.Fatal(err)
	}
	hostKey := bootDisk(t, ctx, args)
	if want := r.GetInstalled().GetSshHostKeys()[0]; hostKey != want {
		t.Errorf("the booted system has the host key %q, recorded was %q", hostKey, want)
	}
}

// bootDisk starts the machine without kernel and initrd, and returns the host
// key that its SSH server shows.
func bootDisk(t *testing.T, ctx context.Context, args []string) string {
	t.Helper()
	port := strconv.Itoa(freeport.Port(t))
	out := &console{}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append([]string{
		"-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-smp", "2", "-nodefaults", "-display", "none", "-serial", "stdio",
		"-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:" + port + "-:22", "-device", "virtio-net-pci,netdev=n0,romfile=,mac=" + testMAC,
		"-device", "virtio-rng-pci",
	}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("console:\n%s", out)
		}
	})
	return shownHostKey(t, ctx, port)
}

// shownHostKey waits for an SSH server at a port of this host and returns its
// host key.
func shownHostKey(t *testing.T, ctx context.Context, port string) string {
	t.Helper()
	var shown string
	config := &ssh.ClientConfig{User: "nobody", Timeout: 10 * time.Second, HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			shown = string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key)))
			return nil
		}}
	for {
		if c, err := ssh.Dial("tcp", "127.0.0.1:"+port, config); err == nil {
			c.Close()
		}
		if shown != "" {
			return shown
		}
		select {
		case <-ctx.Done():
			t.Fatal("the system on the disk never answered by SSH")
		case <-time.After(time.Second):
		}
	}
}
