package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/bootseed"
	"bmc/ramdisk/agenttest"
)

// machine is a QEMU machine that boots a built ramdisk with a seed of its own.
type machine struct {
	agent   *agenttest.Agent
	console *console
	exited  chan error
}

type console struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	times []lineTime
}

// lineTime is when a line of the console began to arrive.
type lineTime struct {
	at     time.Time
	offset int
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.times = append(c.times, lineTime{time.Now(), c.buf.Len()})
	return c.buf.Write(p)
}

// seen is when the console had all of a text; zero: never.
func (c *console) seen(text string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := strings.Index(c.buf.String(), text)
	if i < 0 {
		return time.Time{}
	}
	var at time.Time
	for _, l := range c.times {
		if l.offset >= i+len(text) {
			break
		}
		at = l.at
	}
	return at
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// ramdiskDir skips unless the environment names a built ramdisk: these tests
// emulate a CPU for minutes.
func ramdiskDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("BMC_TEST_RAMDISK")
	if dir == "" {
		t.Skip("BMC_TEST_RAMDISK is not set to a built ramdisk (make ramdisk)")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	return dir
}

// banner is what the built ramdisk's init says first.
func banner(t *testing.T) string {
	t.Helper()
	manifest, err := os.ReadFile(filepath.Join(ramdiskDir(t), "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d description
	if err := json.Unmarshal(manifest, &d); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("bmc-ramdisk %s (%s)", d.Version, d.Commit)
}

const testMAC = "52:54:00:12:34:01"

// boot starts a machine whose user-mode network reaches this process at 10.0.2.2.
func boot(t *testing.T, args ...string) *machine {
	t.Helper()
	return bootForwarding(t, "", args...)
}

// bootForwarding is boot with a port of this host, "" for none, that leads to the
// machine's SSH port.
func bootForwarding(t *testing.T, port string, args ...string) *machine {
	t.Helper()
	user := "user,id=n0"
	if port != "" {
		user += ",hostfwd=tcp:127.0.0.1:" + port + "-:22"
	}
	dir := ramdiskDir(t)
	a, err := agenttest.New("agent")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := a.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Stop)
	_, agentPort, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := bootseed.Seed{ServerID: a.ServerID, Token: a.Token, Agent: "10.0.2.2:" + agentPort, CAPEM: a.CAPEM(),
		Now: time.Now(), ConsoleTTY: "ttyS0,115200", MAC: testMAC}.CPIO()
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := os.ReadFile(filepath.Join(dir, "initrd.img"))
	if err != nil {
		t.Fatal(err)
	}
	both := filepath.Join(t.TempDir(), "initrd.img")
	if err := os.WriteFile(both, append(initrd, seed...), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &machine{agent: a, console: &console{}, exited: make(chan error, 1)}
	cmd := exec.CommandContext(t.Context(), "qemu-system-x86_64", append([]string{
		"-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-smp", "2", "-m", "512", "-nodefaults", "-display", "none",
		"-serial", "stdio", "-no-reboot", "-uuid", "6b1f5a10-0000-4000-8000-525400123401", "-smbios", "type=1,serial=SN-0001",
		"-netdev", user, "-device", "virtio-net-pci,netdev=n0,romfile=,mac=" + testMAC, "-device", "virtio-rng-pci",
		"-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", both, "-append", "console=ttyS0,115200 no_timer_check panic=30",
	}, args...)...)
	cmd.Stdout, cmd.Stderr = m.console, m.console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { m.exited <- cmd.Wait(); close(done) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if t.Failed() || testing.Verbose() {
			t.Logf("console:\n%s", m.console)
		}
	})
	return m
}

func disk(t *testing.T, name string, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	return file
}

func virtio(file, serial string) []string {
	return []string{"-drive", "if=none,discard=unmap,detect-zeroes=off,format=raw,id=" + serial + ",file=" + file,
		"-device", "virtio-blk-pci,drive=" + serial + ",serial=" + serial}
}

func (m *machine) do(t *testing.T, ctx context.Context, task *agentv1.Task) *agentv1.CompleteTaskRequest {
	t.Helper()
	m.agent.Push(task)
	r, err := m.agent.Result(ctx, task.GetId())
	if err != nil {
		t.Fatalf("task %s: %v", task.GetId(), err)
	}
	return r
}

func (m *machine) waitExit(t *testing.T, ctx context.Context) {
	t.Helper()
	select {
	case err := <-m.exited:
		if err != nil {
			t.Fatal(err)
		}
	case <-ctx.Done():
		t.Fatal("the machine is still on")
	}
}

// details checks what an inspection asks devices for: disks' health, the modules of
// memory, and the machine's own controller, which QEMU simulates without a LAN.
func details(t *testing.T, h *agentv1.Hardware) {
	t.Helper()
	for _, d := range h.GetDisks() {
		state, firmware := d.GetHealth().GetState(), d.GetFirmware()
		if want := map[bool]string{true: "", false: "ok"}[d.GetName() == "vda"]; state != want || (firmware == "") != (want == "") {
			t.Errorf("disk %s: health %v, firmware %q", d.GetName(), d.GetHealth(), firmware)
		}
	}
	if len(h.GetDimms()) == 0 || h.GetDimms()[0].GetSizeBytes() != 512<<20 || h.GetCpuSockets() == 0 || h.GetCpuCores() == 0 {
		t.Errorf("memory %v, %d sockets, %d cores", h.GetDimms(), h.GetCpuSockets(), h.GetCpuCores())
	}
	if h.GetOobFirmware() == "" || h.GetOobAddress() != "" {
		t.Errorf("controller at %q, firmware %q", h.GetOobAddress(), h.GetOobFirmware())
	}
}

func TestQEMUInspect(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // half a minute for LLDP, which nobody speaks here
	defer cancel()
	start := time.Now()
	args := append(virtio(disk(t, "a", 64<<20), "DISK-A"),
		"-device", "ahci,id=ahci", "-drive", "if=none,format=raw,id=s0,file="+disk(t, "b", 32<<20),
		"-device", "ide-hd,bus=ahci.0,drive=s0,serial=SATA-B,wwn=0x5000c500a1b2c3d4",
		"-drive", "if=none,format=raw,id=n0,file="+disk(t, "c", 48<<20), "-device", "nvme,drive=n0,serial=NVME-C",
		"-netdev", "user,id=n1", "-device", "e1000e,netdev=n1,romfile=,mac=52:54:00:12:34:02",
		"-device", "ipmi-bmc-sim,id=bmc0", "-device", "isa-ipmi-kcs,bmc=bmc0")
	m := boot(t, args...)
	hello, err := m.agent.Greeted(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("hello after %.1f s", time.Since(start).Seconds())
	if hello.GetIdentity().GetSerial() != "SN-0001" || hello.GetIdentity().GetUuid() != "6b1f5a10-0000-4000-8000-525400123401" {
		t.Errorf("identity %v", hello.GetIdentity())
	}
	r := m.do(t, ctx, &agentv1.Task{Id: "op/1/inspect", Kind: &agentv1.Task_Inspect{Inspect: &agentv1.InspectTask{}}})
	h := r.GetHardware()
	var disks []string
	for _, d := range h.GetDisks() {
		disks = append(disks, fmt.Sprintf("%s %d %s %s %s %d", d.GetName(), d.GetSizeBytes()>>20, d.GetKind(), d.GetWwn(), d.GetSerial(), d.GetSectorSize()))
	}
	for _, want := range []string{"vda 64 virtual  DISK-A 512", "sda 32 virtual naa.5000c500a1b2c3d4 SATA-B 512", "nvme0n1 48 nvme "} {
		if !strings.Contains(strings.Join(disks, "\n"), want) {
			t.Errorf("no disk %q in %q", want, disks)
		}
	}
	if h.GetFirmware() != "bios" || h.GetCpuThreads() != 2 || h.GetMemoryBytes() != 512<<20 || len(h.GetNics()) != 2 || !h.GetNics()[0].GetLink() || !h.GetNics()[1].GetLink() {
		t.Errorf("hardware %v", h)
	}
	details(t, h)
	m.do(t, ctx, &agentv1.Task{Id: "op/1/off", Kind: &agentv1.Task_PowerOff{PowerOff: &agentv1.PowerOffTask{}}})
	m.waitExit(t, ctx)
	if !strings.Contains(m.console.String(), banner(t)) {
		t.Error("the console does not name the version")
	}
}

// Where the time of a boot goes, from the emulator's start to the hello. The kernel's
// notices, by which it is told, cost time, too; a netboot has it quiet.
func TestQEMUBootPhases(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	last := time.Now()
	// Arguments of QEMU, with @ for a space in one of them.
	args := append(virtio(disk(t, "a", 64<<20), "DISK-A"), strings.Fields(os.Getenv("BMC_TEST_QEMU"))...)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "@", " ")
	}
	m := boot(t, args...)
	if _, err := m.agent.Greeted(ctx); err != nil {
		t.Fatal(err)
	}
	hello := time.Now()
	start := last
	for _, phase := range []struct{ until, name string }{
		{"Linux version", "firmware, and the kernel unpacked"},
		{"Trying to unpack rootfs", "kernel, until it unpacks the initrd"},
		{"Freeing initrd memory", "initrd unpacked"},
		{"Run /init", "kernel, rest"},
		{banner(t), "init started"},
		{"starting the network", "mounts, seed"},
		{"network is up", "NIC driver, link, DHCP"},
		{"calling the agent", "devices settled, inspected"},
	} {
		at := m.console.seen(phase.until)
		if at.IsZero() {
			t.Logf("        %s: the console does not say", phase.name)
			continue
		}
		t.Logf("%6.2f s %s", at.Sub(last).Seconds(), phase.name)
		last = at
	}
	t.Logf("%6.2f s TLS, hello", hello.Sub(last).Seconds())
	t.Logf("%6.2f s in all", hello.Sub(start).Seconds())
}

func TestQEMUSaysWhyAndLeaves(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	m := boot(t, "-append", "console=ttyS0,115200 no_timer_check panic=30")
	m.agent.Refuse(status.Error(codes.PermissionDenied, "the boot token is not valid"))
	m.waitExit(t, ctx) // -no-reboot makes the reboot an exit
	if out := m.console.String(); !strings.Contains(out, "the boot token is not valid") || !strings.Contains(out, "bmc: leaving how=reboot") {
		t.Error("the console does not say why")
	}
}
