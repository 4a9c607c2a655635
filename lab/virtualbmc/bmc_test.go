package virtualbmc

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"bmc/lab/machine"
)

// fakeMachine is a machine without hardware.
type fakeMachine struct {
	mu  sync.Mutex
	s   machine.State
	did []string
}

func (m *fakeMachine) do(what string, f func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.did = append(m.did, what)
	f()
	return nil
}

func (m *fakeMachine) State() machine.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.s
}
func (m *fakeMachine) PowerOn(context.Context) error  { return m.do("on", func() { m.s.On = true }) }
func (m *fakeMachine) PowerOff(context.Context) error { return m.do("off", func() { m.s.On = false }) }
func (m *fakeMachine) SoftOff(context.Context) error  { return m.do("soft", func() {}) }
func (m *fakeMachine) Reset(context.Context) error    { return m.do("reset", func() {}) }
func (m *fakeMachine) SetBoot(_ context.Context, o machine.Override) error {
	return m.do("boot "+string(o.Device), func() { m.s.Boot = o })
}

func (m *fakeMachine) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.did, m.s = nil, machine.State{}
}

func (m *fakeMachine) done() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.did, ",")
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func ipmitool(t *testing.T, port string, cipher string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	a := append([]string{"-I", "lanplus", "-H", "127.0.0.1", "-p", port, "-U", "admin", "-P", "lab-secret", "-C", cipher}, args...)
	out, err := exec.CommandContext(ctx, "ipmitool", a...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

// serve starts a controller on loopback, with the tests' credentials where c has none.
func serve(t *testing.T, c Config) (b *BMC, port string) {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if _, port, err = net.SplitHostPort(conn.LocalAddr().String()); err != nil {
		t.Fatal(err)
	}
	c.Name, c.User, c.Log = "m1", "admin", slog.New(slog.DiscardHandler)
	if c.Password == "" {
		c.Password = "lab-secret"
	}
	if b, err = Serve(conn, c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, port
}

func TestIPMITool(t *testing.T) {
	needs(t, "ipmitool")
	m, log := &fakeMachine{}, &buffer{}
	record := NewRecord(log)
	_, port := serve(t, Config{Machine: m, Record: record})
	for _, step := range []struct {
		cipher string
		args   string
		want   string // part of the answer
		state  machine.State
	}{
		{"17", "power status", "is off", machine.State{}},
		{"3", "power status", "is off", machine.State{}},
		{"17", "chassis bootdev disk options=persistent,efiboot", "Set Boot Device to disk", machine.State{Boot: machine.Override{Device: machine.Disk, Persistent: true, EFI: true}}},
		{"17", "chassis bootparam get 5", "Force Boot from default Hard-Drive", machine.State{Boot: machine.Override{Device: machine.Disk, Persistent: true, EFI: true}}},
		{"17", "chassis bootdev pxe", "Set Boot Device to pxe", machine.State{Boot: machine.Override{Device: machine.Network}}},
		{"17", "power on", "Up/On", machine.State{On: true, Boot: machine.Override{Device: machine.Network}}},
		{"3", "power status", "is on", machine.State{On: true, Boot: machine.Override{Device: machine.Network}}},
		{"17", "power soft", "Soft", machine.State{On: true, Boot: machine.Override{Device: machine.Network}}},
		{"17", "power reset", "Reset", machine.State{On: true, Boot: machine.Override{Device: machine.Network}}},
		{"17", "power off", "Down/Off", machine.State{Boot: machine.Override{Device: machine.Network}}},
		{"17", "chassis bootdev none", "Set Boot Device to none", machine.State{}},
	} {
		out, err := ipmitool(t, port, step.cipher, strings.Fields(step.args)...)
		if err != nil || !strings.Contains(out, step.want) {
			t.Fatalf("ipmitool -C %s %s: %q (%v), want %q", step.cipher, step.args, out, err, step.want)
		}
		if got := m.State(); got != step.state {
			t.Fatalf("after %s: %+v, want %+v", step.args, got, step.state)
		}
	}
	checkRecord(t, record, log.String())
}

// checkRecord: every power command is there once, in order, with its user, and
// nothing holds the password.
func checkRecord(t *testing.T, record *Record, log string) {
	t.Helper()
	if err := record.Err(); err != nil {
		t.Fatal(err)
	}
	var actions []string
	for line := range strings.Lines(log) {
		var c Command
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatal(err)
		}
		if c.Server != "m1" || c.Time.IsZero() || c.Name == "" && c.OK || c.From == "" || c.Session == 0 {
			t.Errorf("command %+v", c)
		}
		if c.NetFn == 0 && c.Cmd == 2 && c.OK {
			if c.User != "admin" {
				t.Errorf("power command by %q", c.User)
			}
			actions = append(actions, c.Data)
		}
	}
	if got := strings.Join(actions, " "); got != "01 05 03 00" {
		t.Errorf("recorded power commands %q, want on, soft, reset, off", got)
	}
	if strings.Contains(log, "lab-secret") {
		t.Error("the record holds the password")
	}
}

func TestWrongPassword(t *testing.T) {
	needs(t, "ipmitool")
	m := &fakeMachine{}
	_, port := serve(t, Config{Password: "another", Machine: m})
	out, err := ipmitool(t, port, "17", "-R", "1", "-N", "1", "power", "on")
	if err == nil || len(m.did) > 0 {
		t.Fatalf("power on with a wrong password: %q, machine did %v", out, m.did)
	}
}

func TestLongPassword(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(conn, Config{Name: "m1", User: "admin", Password: strings.Repeat("x", 21), Machine: &fakeMachine{}}); err == nil {
		t.Fatal("accepted a password that IPMI cannot carry")
	}
}
