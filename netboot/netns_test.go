package netboot

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const inside = "BMC_NETBOOT_TEST_NAMESPACE"

// inNamespace runs the rest of a test in a network namespace of its own, which
// nobody else sees and which is gone with its last process: it starts the test
// binary again with this test alone and reports true there. programs must be installed.
func inNamespace(t *testing.T, programs ...string) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		return true
	}
	for _, p := range append(programs, "unshare", "nsenter", "ip") {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
	if testing.Short() {
		t.Skip("takes seconds and namespaces")
	}
	t.Parallel()
	how := []string{"-n"}
	if os.Geteuid() != 0 {
		how = []string{"-Urn"}
	}
	if out, err := exec.Command("unshare", append(how, "true")...).CombinedOutput(); err != nil {
		t.Skipf("no network namespace to be had: %v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", append(how, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")...)
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in the namespace: %v", err)
	}
	t.Logf("%s", out)
	return false
}

// host is a network namespace with one Ethernet port.
type host struct {
	t   *testing.T
	pid string // of the process that holds the namespace
	dir string
}

// rack is the server's side: a bridge with the server's address.
type rack struct {
	t     *testing.T
	ports int
}

func newRack(t *testing.T) *rack {
	t.Helper()
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip", "link", "add", "rack0", "type", "bridge", "stp_state", "0", "forward_delay", "0")
	run(t, "ip", "addr", "add", "10.77.0.1/24", "dev", "rack0")
	run(t, "ip", "link", "set", "rack0", "up")
	return &rack{t: t}
}

// newHost makes a namespace without ports; it ends with the test.
func newHost(t *testing.T) *host {
	t.Helper()
	cmd := exec.Command("unshare", "-n", "sh", "-c", "echo ready; exec cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("namespace: %q, %v", line, err)
	}
	h := &host{t: t, pid: strconv.Itoa(cmd.Process.Pid), dir: t.TempDir()}
	h.run("ip", "link", "set", "lo", "up")
	return h
}

// plug connects a host's port to the rack's bridge.
func (r *rack) plug(h *host, port, mac string) {
	r.t.Helper()
	r.ports++
	peer := "p" + strconv.Itoa(r.ports)
	run(r.t, "ip", "link", "add", peer, "master", "rack0", "type", "veth", "peer", "name", port, "netns", h.pid)
	run(r.t, "ip", "link", "set", peer, "up")
	h.run("ip", "link", "set", port, "address", mac)
	h.run("ip", "link", "set", port, "up")
}

// host makes a machine on the rack's network: one port, eth0.
func (r *rack) host(mac string) *host {
	r.t.Helper()
	h := newHost(r.t)
	r.plug(h, "eth0", mac)
	return h
}

func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(h.t.Context(), "nsenter", append([]string{"-t", h.pid, "-n", "--"}, args...)...)
	cmd.Dir = h.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (h *host) run(args ...string) string {
	h.t.Helper()
	out, err := h.command(args...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// start runs a program until the test ends.
func (h *host) start(args ...string) {
	h.t.Helper()
	cmd := h.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if h.t.Failed() {
			h.t.Logf("%s:\n%s", args[0], out.String())
		}
	})
}

// script writes an executable that stores its environment in env.<word>; word
// is the shell's, "$1" for udhcpc and "$reason" for dhclient.
func (h *host) script(word string) string {
	h.t.Helper()
	path := filepath.Join(h.dir, "script")
	text := "#!/bin/sh\nenv > " + h.dir + "/tmp.$$ && mv " + h.dir + "/tmp.$$ " + h.dir + "/env." + word + "\n"
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// environment waits for what a script has stored.
func (h *host) environment(word string) map[string]string {
	h.t.Helper()
	var env map[string]string
	waitFor(h.t, "the script's "+word, func() bool {
		text, err := os.ReadFile(filepath.Join(h.dir, "env."+word))
		if err != nil {
			return false
		}
		env = map[string]string{}
		for line := range strings.Lines(string(text)) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
			env[k] = v
		}
		return true
	})
	return env
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// waitFor polls what other programs do, half a minute at most.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// directory is a Directory and Seeder of fixed machines; seen collects events.
type directory struct {
	machines map[string]Machine

	mu   sync.Mutex
	seen []Event
}

func (d *directory) Lookup(mac string) (Machine, bool) {
	m, ok := d.machines[mac]
	return m, ok
}

func (d *directory) LookupAddr(addr netip.Addr) (Machine, bool) {
	for _, m := range d.machines {
		if m.Addr.Addr() == addr {
			return m, true
		}
	}
	return Machine{}, false
}

func (d *directory) Seed(_ context.Context, mac string) ([]byte, error) {
	return []byte("seed of " + mac), nil
}

func (d *directory) event(e Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = append(d.seen, e)
}

func (d *directory) has(kind EventKind, mac, detail string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.seen {
		if e.Kind == kind && e.MAC == mac && e.Detail == detail {
			return true
		}
	}
	return false
}

const (
	ramdiskMAC  = "52:54:00:00:00:01"
	diskMAC     = "52:54:00:00:00:02"
	relayMAC    = "52:54:00:00:00:03"
	strangerMAC = "52:54:00:00:00:99"
)

func testDirectory() *directory {
	machine := func(mac, addr string, ramdisk bool) Machine {
		return Machine{
			ServerID: "srv-" + mac[15:], MAC: mac, Hostname: "r1-u" + mac[15:], Addr: netip.MustParsePrefix(addr),
			Gateway: netip.MustParseAddr("10.77.0.1"), DNS: []netip.Addr{netip.MustParseAddr("10.77.0.2")}, Domain: "rack.test",
			LeaseTime: 8 * time.Second, Authoritative: true, Boot: BootSpec{Ramdisk: ramdisk},
		}
	}
	behind := machine(relayMAC, "10.88.0.103/24", true)
	behind.Gateway = netip.MustParseAddr("10.88.0.1")
	return &directory{machines: map[string]Machine{
		ramdiskMAC: machine(ramdiskMAC, "10.77.0.101/24", true),
		diskMAC:    machine(diskMAC, "10.77.0.102/24", false),
		relayMAC:   behind,
	}}
}

// serveRack runs a Server on the rack until the test ends.
func serveRack(t *testing.T, d *directory) {
	t.Helper()
	serveOn(t, d, "rack0", "10.77.0.1")
}

// serveOn runs a Server on an interface, for racks behind relays as well.
func serveOn(t *testing.T, d *directory, name, addr string, relayed ...Rack) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"vmlinuz": "kernel", "initrd.img": "initrd"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(Config{
		Interface: name, Addr: netip.MustParseAddr(addr), Directory: d, Seeder: d, Events: d.event, Relayed: relayed,
		Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd.img"),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Run did not return")
		}
	})
	waitFor(t, "the servers", func() bool {
		select {
		case err := <-done:
			t.Fatalf("Run: %v", err)
		default:
		}
		return listening(netip.MustParseAddr(addr))
	})
}

// listening says whether something listens on an address' TCP port 80, which is
// opened last.
func listening(addr netip.Addr) bool {
	text, err := os.ReadFile("/proc/self/net/tcp")
	b := addr.As4()
	return err == nil && bytes.Contains(text, fmt.Appendf(nil, "%02X%02X%02X%02X:0050 00000000:0000 0A", b[3], b[2], b[1], b[0]))
}
