//go:build e2e

// Package e2e breaks a real lab on purpose. `make e2e` runs it; it needs what
// `make demo` needs.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"bmc/e2e/harness"
)

func root(t *testing.T) string {
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// up brings a lab up for one test; on failure it prints what explains it.
func up(t *testing.T, change func(*harness.Options)) *harness.Lab {
	t.Helper()
	o := harness.Options{Bin: filepath.Join(root(t), "bin"), Ramdisk: filepath.Join(root(t), "build/ramdisk"),
		Dir: t.TempDir(), Nodes: 1, Servers: 1, Firmware: "bios", Disk: "1GiB", Log: os.Stdout}
	if change != nil {
		change(&o)
	}
	l, err := harness.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if t.Failed() {
			out, _ := l.BMC(ctx, "explain", "r1-u01")
			t.Logf("%s\n%s", out, l.Console(ctx, "r1-u01", 30))
		}
		if err := l.Down(ctx); err != nil {
			t.Error(err)
		}
	})
	ssh := filepath.Join(l.Home(), ".ssh")
	if err := os.MkdirAll(ssh, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(ssh, "id_ed25519")).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v %s", err, out)
	}
	return l
}

func image(t *testing.T, name string) string {
	return filepath.Join(root(t), "build/images", name+".img")
}

func must(t *testing.T, l *harness.Lab, args ...string) string {
	t.Helper()
	t.Log("bmc", strings.Join(args, " "))
	out, err := l.BMCTo(t.Context(), os.Stdout, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused runs a command that must fail with a reason and an exit code.
func refused(t *testing.T, l *harness.Lab, code int, reason string, args ...string) {
	t.Helper()
	_, err := l.BMC(t.Context(), args...)
	var f *harness.Failure
	if !errors.As(err, &f) {
		t.Fatalf("bmc %s: %v, want exit code %d", strings.Join(args, " "), err, code)
	}
	if f.Code != code || !strings.Contains(f.Stderr, reason) || !strings.Contains(f.Stderr, "hint:") {
		t.Errorf("bmc %s: exit code %d and\n%s\nwant exit code %d, reason %s and a hint", strings.Join(args, " "), f.Code, f.Stderr, code, reason)
	}
}

func enrolled(t *testing.T, l *harness.Lab) {
	t.Helper()
	must(t, l, "inventory", "apply", "-f", l.Env("BMC_INVENTORY"), "--wait", "--timeout", "6m")
}

func state(t *testing.T, l *harness.Lab, ref string) string {
	t.Helper()
	var s struct {
		State string `json:"state"`
	}
	if err := l.JSON(t.Context(), &s, "get", ref); err != nil {
		t.Fatal(err)
	}
	return s.State
}

// The whole life with a controller and a store that are not our own.
func TestJourneyWithIPMISimAndMinIO(t *testing.T) {
	journey := filepath.Join(t.TempDir(), "journey") // `go run` passes no signal on
	if out, err := exec.Command("go", "build", "-o", journey, "bmc/e2e/journey").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v %s", err, out)
	}
	for _, firmware := range []string{"bios", "uefi"} {
		t.Run(firmware, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), journey, "-servers", "1", "-nodes", "3", "-firmware", firmware,
				"-bmc", "ipmi_sim", "-s3", "minio:"+filepath.Join(root(t), "build/minio"), "-disk", "1GiB", "-image", image(t, "tiny"))
			cmd.Dir, cmd.Stdout, cmd.Stderr = root(t), os.Stdout, os.Stderr
			cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
			cmd.WaitDelay = 2 * time.Minute
			if err := cmd.Run(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A controller's address that belongs to the neighbour must never wipe the
// neighbour: nothing is written to either disk.
func TestWrongControllerAddress(t *testing.T) {
	l := up(t, func(o *harness.Options) { o.Servers = 2 })
	file := l.Env("BMC_INVENTORY")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	addresses := regexp.MustCompile(`address: "?(10\.78\.[0-9.]+(:\d+)?)"?`).FindAllStringSubmatch(string(text), -1)
	if len(addresses) != 2 {
		t.Fatalf("the inventory has the controllers %v", addresses)
	}
	passwords := regexp.MustCompile(`password: "?([a-z0-9]+)"?`).FindAllStringSubmatch(string(text), -1)
	if len(passwords) != 2 {
		t.Fatalf("the inventory has %d passwords", len(passwords))
	}
	// The credentials go with the address: else the controllers refuse them.
	swapped := strings.NewReplacer(addresses[0][1], addresses[1][1], addresses[1][1], addresses[0][1],
		passwords[0][1], passwords[1][1], passwords[1][1], passwords[0][1]).Replace(string(text))
	if err := os.WriteFile(file, []byte(swapped), 0o600); err != nil {
		t.Fatal(err)
	}
	precious := bytes.Repeat([]byte("precious data of somebody else\n"), 4096)
	for _, m := range []string{"r1-u01", "r1-u02"} {
		disk, err := l.Disk(m)
		if err != nil {
			t.Fatal(err)
		}
		writeAt(t, disk, 1<<20, precious)
	}
	_, err = l.BMCTo(t.Context(), os.Stdout, "inventory", "apply", "-f", file, "--wait", "--timeout", "14m")
	var f *harness.Failure
	if !errors.As(err, &f) || f.Code != 7 || !strings.Contains(f.Stderr, "BMC_MISMATCH") {
		t.Fatalf("got %v, want exit code 7 with BMC_MISMATCH", err)
	}
	for _, m := range []string{"r1-u01", "r1-u02"} {
		disk, err := l.Disk(m)
		if err != nil {
			t.Fatal(err)
		}
		if got := readAt(t, disk, 1<<20, len(precious)); !bytes.Equal(got, precious) {
			t.Errorf("the disk of %s was changed", m)
		}
		if s := state(t, l, m); s == "available" {
			t.Errorf("%s is available", m)
		}
	}
	// The operator corrects the file and tries again.
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, l, "inventory", "apply", "-f", file)
	must(t, l, "retry", "r1-u01", "--wait", "--timeout", "6m")
	if s := state(t, l, "r1-u01"); s != "available" {
		t.Errorf("after the correction r1-u01 is %s", s)
	}
}

// What was stored is not what was signed: the write is refused and the server
// never becomes active.
func TestCorruptChunk(t *testing.T) {
	l := up(t, nil)
	must(t, l, "image", "push", image(t, "tiny"))
	enrolled(t, l)
	flipStored(t, l)
	_, err := l.BMCTo(t.Context(), os.Stdout, "create", "--name", "web-1", "--image", "tiny", "--wait", "--timeout", "8m")
	var f *harness.Failure
	if !errors.As(err, &f) || f.Code != 7 || !strings.Contains(f.Stderr, "CORRUPT_CHUNK") {
		t.Fatalf("got %v, want exit code 7 with CORRUPT_CHUNK", err)
	}
	if s := state(t, l, "web-1"); s != "failed" {
		t.Errorf("the server is %s", s)
	}
	out := must(t, l, "events", "web-1")
	if strings.Contains(out, "server.active") {
		t.Errorf("it was active once:\n%s", out)
	}
}

// flipStored changes one byte in the middle of each of the store's files.
func flipStored(t *testing.T, l *harness.Lab) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(filepath.Join(l.Dir(), "s3"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, "chunks") {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() < 1000 {
			return err
		}
		at := info.Size() / 2
		b := readAt(t, path, at, 1)
		writeAt(t, path, at, []byte{b[0] ^ 1})
		n++
		return nil
	})
	if err != nil || n == 0 {
		t.Fatalf("changed %d stored chunks: %v", n, err)
	}
}

// Refusals before anything is written.
func TestRefusals(t *testing.T) {
	l := up(t, nil)
	must(t, l, "image", "push", image(t, "tiny"))
	refused(t, l, 5, "NO_CAPACITY", "create", "--name", "web-1", "--image", "tiny")
	enrolled(t, l)
	refused(t, l, 3, "NOT_FOUND", "create", "--name", "web-1", "--image", "nope")
	refused(t, l, 3, "NOT_FOUND", "destroy", "nope", "--yes")
	refused(t, l, 3, "NOT_FOUND", "create", "--name", "web-1", "--image", "tiny", "--size", "nope")
	refused(t, l, 2, "INVALID_ARGUMENT", "create", "--name", "Not A Name", "--image", "tiny")

	// An image larger than the disk.
	big := filepath.Join(t.TempDir(), "big.img")
	if err := os.WriteFile(big, []byte("boot"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 8<<30); err != nil {
		t.Fatal(err)
	}
	spec := filepath.Join(filepath.Dir(big), "big.yaml")
	if err := os.WriteFile(spec, []byte("name: big\nos: none\nfirmware: [bios, uefi]\nconfigure: none\nready: none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, l, "image", "push", big)
	refused(t, l, 5, "IMAGE_TOO_LARGE", "create", "--name", "web-1", "--image", "big")

	// A token that has expired, and one that never was.
	token := strings.TrimSpace(must(t, l, "token", "create", "temp", "--role", "member", "--expires-in", "1s"))
	eventually(t, 20*time.Second, "the token expires", func() bool {
		_, err := l.BMCWith(t.Context(), []string{"BMC_TOKEN=" + token}, "list")
		var f *harness.Failure
		return errors.As(err, &f) && f.Code == 4 && strings.Contains(f.Stderr, "TOKEN_EXPIRED")
	})
	_, err := l.BMCWith(t.Context(), []string{"BMC_TOKEN=bmct_tok-aaaaaaaaaaaaaaaa_nonsense"}, "list")
	var f *harness.Failure
	if !errors.As(err, &f) || f.Code != 4 || !strings.Contains(f.Stderr, "UNAUTHENTICATED") {
		t.Errorf("a wrong token: %v", err)
	}

	must(t, l, "create", "--name", "web-1", "--image", "tiny", "--wait", "--timeout", "5m")
	refused(t, l, 5, "NAME_TAKEN", "create", "--name", "web-1", "--image", "tiny")
	refused(t, l, 5, "NO_CAPACITY", "create", "--name", "web-2", "--image", "tiny")
}

// What a machine's firmware would ask, asked by the programs that everybody has,
// from a station on the rack's network: the agent that runs answers an enrolled
// MAC with its own address, serves it the loader, and says nothing to others.
func TestRealClients(t *testing.T) {
	l := up(t, nil)
	enrolled(t, l)
	ns := l.Env("BMC_RACK_R1_PROBE_NETNS")
	if ns == "" {
		t.Fatal("the lab names no probe station")
	}
	var s struct {
		Address string   `json:"address"`
		MACs    []string `json:"macs"`
	}
	if err := l.JSON(t.Context(), &s, "get", "r1-u01"); err != nil {
		t.Fatal(err)
	}
	in := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + ns}, args...)...).CombinedOutput()
		return string(out), err
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "udhcpc.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = bound ] && echo \"bound $ip $mask $siaddr\"\nexit 0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	udhcpc := func() (string, error) {
		return in("udhcpc", "-i", "rack0", "-f", "-q", "-n", "-t", "3", "-T", "1", "-s", script)
	}
	if out, err := udhcpc(); err == nil || strings.Contains(out, "bound") {
		t.Errorf("a MAC that nobody enrolled was answered: %s", out)
	}
	for _, args := range [][]string{{"link", "set", "rack0", "down"}, {"link", "set", "rack0", "address", s.MACs[0]}, {"link", "set", "rack0", "up"}} {
		if out, err := in(append([]string{"ip"}, args...)...); err != nil {
			t.Fatalf("ip %v: %v %s", args, err, out)
		}
	}
	out, err := udhcpc()
	if err != nil || !strings.Contains(out, "bound "+s.Address) {
		t.Fatalf("udhcpc as %s: %v\n%s\nwant %s", s.MACs[0], err, out, s.Address)
	}
	if out, err := in("ip", "address", "add", s.Address+"/24", "dev", "rack0"); err != nil {
		t.Fatalf("ip address add: %v %s", err, out)
	}
	if out, err := in("tftp", "-m", "binary", "10.77.1.1", "-c", "get", "undionly.kpxe", filepath.Join(dir, "tftp")); err != nil {
		t.Fatalf("tftp: %v %s", err, out)
	}
	if out, err := in("curl", "-sSf", "-o", filepath.Join(dir, "http"), "http://10.77.1.1/loader/undionly.kpxe"); err != nil {
		t.Fatalf("curl: %v %s", err, out)
	}
	a, errA := os.ReadFile(filepath.Join(dir, "tftp"))
	b, errB := os.ReadFile(filepath.Join(dir, "http"))
	if errA != nil || errB != nil || len(a) < 10_000 || !bytes.Equal(a, b) {
		t.Errorf("the loader has %d bytes by TFTP and %d by HTTP (%v, %v)", len(a), len(b), errA, errB)
	}
	if out, err := in("curl", "-sS", "-o", filepath.Join(dir, "script"), "-w", "%{http_code}", "http://10.77.1.1/boot/ipxe?mac=52:54:00:ff:ff:ff"); err != nil || out != "404" {
		t.Errorf("the script of an unknown MAC: %v %s", err, out)
	}
}

func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited for: %s", what)
		}
	}
}

func writeAt(t *testing.T, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(b, at)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func readAt(t *testing.T, path string, at int64, n int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b
}

// Kexec is broken on purpose: a server arrives all the same, by its firmware, and
// says why.
func TestBrokenKexec(t *testing.T) {
	l := up(t, nil)
	enrolled(t, l)
	dir := t.TempDir()
	spec, err := os.ReadFile(strings.TrimSuffix(image(t, "tiny"), ".img") + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	// The image itself stays as it is: its boot loader knows better.
	for name, edit := range map[string][2]string{
		"no-kernel":  {`kernel: .*`, `kernel: /etc/hostname`},                                            // the kernel refuses to load it
		"into-panic": {`cmdline: .*`, `cmdline: root=LABEL=root console=ttyS0,115200 rdinit=/bin/false`}, // init ends, and with it the kernel
	} {
		text := regexp.MustCompile(edit[0]).ReplaceAllString(string(spec), edit[1])
		text = regexp.MustCompile(`name: .*`).ReplaceAllString(text, "name: "+name)
		if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(image(t, "tiny"), filepath.Join(dir, name+".img")); err != nil {
			if err := os.Symlink(image(t, "tiny"), filepath.Join(dir, name+".img")); err != nil {
				t.Fatal(err)
			}
		}
		must(t, l, "image", "push", filepath.Join(dir, name+".img"))
	}
	for _, tt := range []struct{ image, says, rung string }{
		{"no-kernel", "started by firmware: the kernel refuses to load /etc/hostname", "no kexec ("},
		{"into-panic", "started by kexec", "not ready in half the time: off, on, boot from disk"},
	} {
		must(t, l, "create", "--name", "web-1", "--image", tt.image, "--wait", "--timeout", "12m")
		if s := state(t, l, "web-1"); s != "active" {
			t.Errorf("%s: the server is %s", tt.image, s)
		}
		out := must(t, l, "operation", "list", "-o", "json")
		for _, want := range []string{tt.says, tt.rung} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no operation says %q:\n%s", tt.image, want, out)
			}
		}
		must(t, l, "destroy", "web-1", "--yes", "--wait", "--timeout", "6m")
	}
	if out := must(t, l, "events"); !strings.Contains(out, "r1-u01 came up from disk, and not by kexec: 1 of 2 for bmc/lab-bios") {
		t.Errorf("no event counts the failure:\n%s", out)
	}
}
