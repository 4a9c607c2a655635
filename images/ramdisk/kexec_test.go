package main

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/freeport"
	"bmc/internal/manifest"
	"bmc/metal"
)

// TestQEMUKexec deploys the image that BMC_TEST_IMAGE names and starts its kernel
// from the ramdisk. The machine runs with -no-reboot: a reset would end it.
func TestQEMUKexec(t *testing.T) {
	ramdiskDir(t)
	file := os.Getenv("BMC_TEST_IMAGE")
	if file == "" {
		t.Skip("BMC_TEST_IMAGE is not set to an image")
	}
	for _, firmware := range []string{"bios", "uefi"} {
		t.Run(firmware, func(t *testing.T) { kexecImage(t, firmware, file) })
	}
}

func kexecImage(t *testing.T, firmware, file string) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	args := append(virtio(disk(t, "root", 2<<30), "DISK-A"), "-m", "512")
	if firmware == "uefi" {
		args = append(args, ovmf(t)...)
	}
	image := realImageTask(t, file, nil)
	broken := realImageTask(t, file, func(s *manifest.Spec) { s.Kernel = "/etc/hostname" })
	port := strconv.Itoa(freeport.Port(t))
	m := bootForwarding(t, port, args...)
	step := func(task *agentv1.Task) *agentv1.CompleteTaskRequest {
		began := time.Now()
		r := m.do(t, ctx, task)
		t.Logf("task %s: %.1f s", task.GetId(), time.Since(began).Seconds())
		return r
	}
	for _, task := range []*agentv1.Task{
		{Id: "write", Kind: &agentv1.Task_WriteImage{WriteImage: image}},
		{Id: "configure", Kind: &agentv1.Task_Configure{Configure: &agentv1.ConfigureTask{Manifest: image.GetManifest(), RootDisk: "DISK-A",
			Hostname: "web-1", SshKeys: []string{sshKey}, Address: "10.0.2.15/24", Gateway: "10.0.2.2", Mac: testMAC, InstanceId: "op-1"}}},
	} {
		if r := step(task); r.GetReason() != "" {
			t.Fatalf("task %s: %s: %s", task.GetId(), r.GetReason(), r.GetMessage())
		}
	}
	// A kernel that cannot be loaded leaves the ramdisk as it was.
	r := step(&agentv1.Task{Id: "broken", Kind: &agentv1.Task_Kexec{Kexec: &agentv1.KexecTask{Manifest: broken.GetManifest(), RootDisk: "DISK-A"}}})
	if metal.Code(r.GetReason()) != metal.CodeKexecRefused || !strings.Contains(r.GetMessage(), "/etc/hostname") {
		t.Errorf("a broken kernel: %s: %s", r.GetReason(), r.GetMessage())
	}
	began := time.Now()
	r = step(&agentv1.Task{Id: "kexec", Kind: &agentv1.Task_Kexec{Kexec: &agentv1.KexecTask{Manifest: image.GetManifest(), RootDisk: "DISK-A"}}})
	if r.GetReason() != "" {
		t.Fatalf("kexec: %s: %s", r.GetReason(), r.GetMessage())
	}
	configured, err := m.agent.Result(ctx, "configure")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := shownHostKey(t, ctx, port), configured.GetInstalled().GetSshHostKeys()[0]; got != want {
		t.Errorf("the started system has the host key %q, recorded was %q", got, want)
	}
	t.Logf("from the task to the host key: %.1f s", time.Since(began).Seconds())
	if strings.Count(m.console.String(), "bmc-ramdisk ") != 1 {
		t.Error("the machine booted the ramdisk again")
	}
	if strings.Contains(m.console.String(), "loaded the slower way") {
		t.Error("kexec_load was refused, and kexec_file_load did it")
	}
}
