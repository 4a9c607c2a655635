package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bmc/lab/machine"
	"bmc/lab/s3"
)

// testLab is a small lab whose programs are this test binary.
func testLab(t *testing.T) Config {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	if !mayMakeNetworks() {
		try := exec.Command("true")
		try.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
		if err := try.Run(); err != nil {
			t.Skipf("needs root, or user namespaces for everybody: %v", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, p := range []string{"bmc-lab", "bmc-controlplane", "bmc-agent"} {
		if err := os.Symlink(self, filepath.Join(bin, p)); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"vmlinuz", "initrd.img"} {
		if err := os.WriteFile(filepath.Join(bin, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := Config{Dir: filepath.Join(t.TempDir(), "lab"), Bin: bin, Ramdisk: bin, Nodes: 3, Agents: 2, DiskBytes: 16 << 20}
	if machine.Requirements(machine.BIOS) == nil {
		cfg.Servers, cfg.Firmware = 2, []string{machine.BIOS}
	}
	t.Cleanup(func() {
		if _, err := Down(context.Background(), cfg.Dir); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(cfg.Dir, "logs", "*"))
			for _, l := range append(logs, filepath.Join(cfg.Dir, superviseLog)) {
				t.Logf("%s:\n%s", l, tail(l, 30))
			}
		}
		if left := processes(bin); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return cfg
}

// processes lists what runs a program in bin, or has the lab's folder open as
// its working directory.
func processes(bin string) []string {
	var found []string
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range all {
		raw, err := os.ReadFile(p)
		if err == nil && bytes.Contains(raw, []byte(bin)) {
			found = append(found, strings.ReplaceAll(string(raw), "\x00", " "))
		}
	}
	return found
}

func start(t *testing.T, cfg Config) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := Start(ctx, cfg, func(step string, took time.Duration) { t.Logf("%s: %s", step, took) }); err != nil {
		t.Fatal(err)
	}
}

func TestUpAndDown(t *testing.T) {
	cfg := testLab(t)
	start(t, cfg)
	s, err := NewClient(cfg.Dir).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !s.Ready || len(s.Daemons) != 3+2+1 || len(s.Servers) != cfg.Servers || len(s.Addresses) != 3 {
		t.Fatalf("status %+v", s)
	}
	for _, d := range s.Daemons {
		if d.Ended != "" {
			t.Errorf("%s: %s", d.Name, d.Ended)
		}
	}
	env, err := s.Environ()
	if err != nil {
		t.Fatal(err)
	}
	joined := strings.Join(env, "\n")
	for _, want := range []string{"BMC_ADDR=127.0.0.1:", "BMC_TOKEN=bmct_x_y", "BMC_CACERT=" + cfg.Dir, "BMC_INVENTORY=" + cfg.Dir, "BMC_LAB_DIR=" + cfg.Dir, "BMC_RACK_R1_NETNS=/proc/" + strconv.Itoa(s.PID)} {
		if !strings.Contains(joined, want) {
			t.Errorf("no %q in\n%s", want, joined)
		}
	}
	if err := Start(t.Context(), cfg, nil); !errors.As(err, new(*RunningError)) {
		t.Errorf("second lab in the same folder: %v", err)
	}
	for _, v := range s.Servers {
		testController(t, s, v)
	}
	was, err := Down(t.Context(), cfg.Dir)
	if err != nil || !was {
		t.Fatalf("down: %v, %v", was, err)
	}
	if left := processes(cfg.Bin); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := Clean(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

// testController drives a machine by ipmitool, from where the agent is.
func testController(t *testing.T, s Status, v ServerStatus) {
	t.Helper()
	for _, p := range []string{"ipmitool", "nsenter"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Logf("%s is not installed", p)
			return
		}
	}
	raw, err := os.ReadFile(s.Inventory)
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(raw), v.OOB+"\n")
	_, after, _ = strings.Cut(after, "password: ")
	password, _, _ := strings.Cut(after, "\n")
	cipher := "17"
	if s.BMC == BMCSim {
		cipher = "3"
	}
	ipmi := func(args ...string) string {
		a := append(append(s.Enter(s.Racks[v.Rack]), "--", "ipmitool", "-I", "lanplus", "-H", v.OOB, "-U", "admin", "-P", password, "-C", cipher), args...)
		out, err := exec.CommandContext(t.Context(), "nsenter", a...).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	for _, step := range []struct{ args, want string }{
		{"power status", "is off"}, {"chassis bootdev pxe", "pxe"}, {"power on", "Up/On"}, {"power status", "is on"}, {"power off", "Down/Off"}, {"power status", "is off"},
	} {
		if out := ipmi(strings.Fields(step.args)...); !strings.Contains(out, step.want) {
			t.Errorf("%s: ipmitool %s: %q, want %q", v.Name, step.args, out, step.want)
		}
	}
	log, err := os.ReadFile(filepath.Join(s.Dir, "oob.jsonl"))
	if err != nil || !strings.Contains(string(log), v.Name) || strings.Contains(string(log), password) {
		t.Errorf("record of commands: %v\n%s", err, log)
	}
}

func TestUpWithIPMISim(t *testing.T) {
	cfg := testLab(t)
	if _, err := exec.LookPath("ipmi_sim"); err != nil || cfg.Servers == 0 {
		t.Skip("needs ipmi_sim and QEMU")
	}
	cfg.BMC, cfg.Nodes, cfg.Agents, cfg.Servers = BMCSim, 1, 1, 1
	start(t, cfg)
	s, err := NewClient(cfg.Dir).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	testController(t, s, s.Servers[0])
}

// TestCrash: a supervisor that is killed takes every child with it, and the next
// Start uses the same folder.
func TestCrash(t *testing.T) {
	cfg := testLab(t)
	cfg.Nodes, cfg.Agents = 1, 1
	start(t, cfg)
	c := NewClient(cfg.Dir)
	if cfg.Servers > 0 {
		if err := c.Power(t.Context(), "r1-u01", "on"); err != nil {
			t.Fatal(err)
		}
	}
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pids := []int{s.PID}
	for _, d := range s.Daemons {
		pids = append(pids, d.PID)
	}
	for _, v := range s.Servers {
		if v.PID != 0 {
			pids = append(pids, v.PID)
		}
	}
	for _, pid := range pids {
		waitGone(t, pid)
	}
	// The lock goes with the last of the supervisor's threads.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		pid, err := Running(cfg.Dir)
		if pid == 0 && err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a dead lab runs as %d (%v)", pid, err)
		}
	}
	start(t, cfg)
}

// waitGone waits until a process has ended; who was its parent may not have
// reaped it.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(raw), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there: %s", pid, raw)
		}
	}
}

func TestFailureNamesThePartAndItsLog(t *testing.T) {
	cfg := testLab(t)
	t.Setenv("LAB_TEST_SICK_NODE", "cp2")
	err := Start(t.Context(), cfg, func(string, time.Duration) {})
	if err == nil || !strings.Contains(err.Error(), "cp2") || !strings.Contains(err.Error(), "this node is sick") {
		t.Fatalf("error %v", err)
	}
	if pid, err := Running(cfg.Dir); pid != 0 || err != nil {
		t.Fatalf("a failed lab runs as %d (%v)", pid, err)
	}
	if left := processes(cfg.Bin); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestInterrupt(t *testing.T) {
	cfg := testLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := Start(ctx, cfg, func(step string, _ time.Duration) {
		if step == "object store" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if left := processes(cfg.Bin); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestForeignFolder(t *testing.T) {
	cfg := testLab(t)
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(cfg.Dir, "thesis.txt")
	if err := os.WriteFile(precious, []byte("years of work"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Start(t.Context(), cfg, nil); err == nil || !strings.Contains(err.Error(), "thesis.txt") {
		t.Fatalf("error %v", err)
	}
	if err := Clean(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Fatal(err)
	}
}

// TestStoreOutside: the lab reaches a store that only the host can reach.
func TestStoreOutside(t *testing.T) {
	cfg := testLab(t)
	dir := t.TempDir()
	file := storeFile{
		Bucket: "elsewhere", AccessKey: "me", Region: storeRegion,
		SecretKeyFile: filepath.Join(dir, "secret"), CAFile: filepath.Join(dir, "cert.pem"),
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file.Endpoint = "https://" + free.Addr().String()
	if err := errors.Join(
		free.Close(),
		os.WriteFile(file.SecretKeyFile, []byte("outside-secret\n"), 0o600),
		s3.WriteCertificate(file.CAFile, filepath.Join(dir, "key.pem"), storeAddr().Addr().AsSlice()),
		writeYAML(filepath.Join(dir, "store.yaml"), file),
	); err != nil {
		t.Fatal(err)
	}
	store := exec.Command(filepath.Join(cfg.Bin, "bmc-lab"), "s3", "--listen", strings.TrimPrefix(file.Endpoint, "https://"),
		"--data", filepath.Join(dir, "data"), "--access-key", "me", "--secret-key-file", file.SecretKeyFile,
		"--cert", file.CAFile, "--key", filepath.Join(dir, "key.pem"))
	if err := store.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = store.Process.Kill()
		_ = store.Wait()
	}()
	cfg.Nodes, cfg.Agents, cfg.Servers, cfg.S3 = 1, 1, 0, filepath.Join(dir, "store.yaml")
	start(t, cfg)
	if _, err := os.Stat(filepath.Join(dir, "data", "data", "elsewhere")); err != nil {
		t.Fatalf("no bucket in the store outside: %v", err)
	}
	raw, err := os.ReadFile(filepath.Join(cfg.Dir, "nodes", "cp1", "config.yaml"))
	if err != nil || !strings.Contains(string(raw), "endpoint: https://10.76.0.5:9000") || !strings.Contains(string(raw), "bucket: elsewhere") {
		t.Fatalf("%v: the node's configuration is\n%s", err, raw)
	}
}
