package light

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bmc/lab/machine"
	"bmc/lab/netns"
	"bmc/lab/virtualbmc"
	"bmc/lab/vswitch"
)

var testSubnet = netip.MustParsePrefix("10.9.0.0/24")

func namespace(t *testing.T, name string) *netns.Namespace {
	t.Helper()
	n, err := netns.New(name)
	if errors.Is(err, unix.EPERM) {
		t.Skipf("no right to make a network namespace here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, n) })
	return n
}

func closed(t *testing.T, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// testRack is a switch with the light machines' namespace behind it.
func testRack(t *testing.T) (*Rack, *vswitch.Switch) {
	t.Helper()
	space := namespace(t, "light")
	sw := vswitch.New(slog.New(slog.DiscardHandler))
	t.Cleanup(func() { closed(t, sw) })
	r, err := NewRack(space, sw, testSubnet, netip.Addr{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, r) })
	return r, sw
}

// events are what a Record wrote, to be waited for.
type events struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func newEvents() *events { return &events{more: make(chan struct{}, 1)} }

func (e *events) Write(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case e.more <- struct{}{}:
	default:
	}
	return e.buf.Write(b)
}

func (e *events) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.buf.String()
}

func (e *events) count(what string) int { return strings.Count(e.String(), what) }

// await waits until the text has come n times.
func (e *events) await(t *testing.T, what string, n int) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for e.count(what) < n {
		select {
		case <-e.more:
		case <-deadline:
			t.Fatalf("%q came %d times, want %d:\n%s", what, e.count(what), n, e)
		}
	}
}

func event(kind string) string { return fmt.Sprintf("%q:%q", "event", kind) }

func testConfig(t *testing.T, r *Rack, n int, out *events) Config {
	quick := 2 * time.Millisecond
	c := Config{
		Name: fmt.Sprintf("m%03d", n), Rack: r, MAC: [6]byte{0x52, 0x54, 0, 9, 0, byte(n)},
		UUID: fmt.Sprintf("4c41420a-0000-4001-8000-%012d", n), Serial: fmt.Sprintf("SN%03d", n), Firmware: machine.UEFI, HTTPBoot: true,
		DiskPath: filepath.Join(t.TempDir(), fmt.Sprint(n)), DiskBytes: 64 << 20, Memory: 1 << 30, CPUs: 1, Seed: 1,
		Timing: Timing{Post: quick, Kernel: quick, Task: quick, OS: quick, Soft: quick, Retry: 20 * time.Millisecond},
		Record: NewRecord(out), Log: slog.New(slog.DiscardHandler),
	}
	return c
}

func heap() int64 {
	for range 3 { // the switch's pool of frames lives through one collection
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// settled waits until no more than n goroutines are left.
func settled(n int) int {
	for range 500 {
		if runtime.NumGoroutine() <= n {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return runtime.NumGoroutine()
}

// TestTwoHundred tells what a machine costs, with its controller, off and on, and
// that power cycles leave nothing behind.
func TestTwoHundred(t *testing.T) {
	const n = 200
	r, _ := testRack(t)
	out := newEvents()
	before, goroutines := heap(), runtime.NumGoroutine()
	var ms []*Machine
	for i := range n {
		c := testConfig(t, r, i, out)
		m, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		b, err := virtualbmc.Serve(conn, virtualbmc.Config{Name: c.Name, User: "admin", Password: "secret", Machine: m, Log: c.Log})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			closed(t, b)
			closed(t, m)
		})
		ms = append(ms, m)
	}
	each := func(what string) {
		per := (heap() - before - int64(len(out.String()))) / n
		t.Logf("%s: %d KiB and %.1f goroutines a machine", what, per>>10, float64(runtime.NumGoroutine()-goroutines)/n)
		if per > 1<<20 {
			t.Errorf("%s: a machine takes %d bytes", what, per)
		}
	}
	each("off")
	off := runtime.NumGoroutine()
	for cycle := 1; cycle <= 3; cycle++ {
		for _, m := range ms {
			if err := m.PowerOn(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		// Nobody answers: the network, then the empty disk, then the prompt.
		out.await(t, event(NoBoot), cycle*2*n)
		each("on")
		for _, m := range ms {
			if err := m.PowerOff(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if left := settled(off); left > off {
			t.Fatalf("%d goroutines after cycle %d, %d before", left, cycle, off)
		}
	}
	each("off again")
}

func TestBootOrderOfDevices(t *testing.T) {
	r, _ := testRack(t)
	out := newEvents()
	m, err := New(testConfig(t, r, 1, out))
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, m)
	for _, step := range []struct {
		set  machine.Override
		want string
	}{
		{machine.Override{Device: machine.Disk, Persistent: true}, "disk"},
		{machine.Override{Device: machine.Network}, "network"}, // once
		{machine.Override{}, ""},
	} {
		if step.want == "" {
			break
		}
		if err := errors.Join(m.SetBoot(t.Context(), step.set), m.PowerOn(t.Context())); err != nil {
			t.Fatal(err)
		}
		out.await(t, `"detail":"`+step.want+`"`, 1)
		if err := m.PowerOff(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	out.await(t, `"event":"boot","start":3,"detail":"disk"`, 1) // the one shot is used up
	if err := m.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	out.await(t, event(Reset), 1)
	out.await(t, `"event":"boot","start":3,"detail":"disk"`, 2)
	if s := m.State(); !s.On || s.Starts != 3 || s.Resets != 1 || s.Boot.Device != machine.Disk {
		t.Errorf("%+v", s)
	}
	if err := m.SoftOff(t.Context()); err != nil { // firmware does not listen
		t.Fatal(err)
	}
	if !m.State().On {
		t.Error("firmware obeyed the power button")
	}
}

func TestDisk(t *testing.T) {
	d, err := newDisk(filepath.Join(t.TempDir(), "d"), 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.boot(); !errors.Is(err, errNoSystem) {
		t.Fatalf("an empty disk boots: %v", err)
	}
	if err := d.use(func(f *os.File) error {
		_, err := f.WriteAt([]byte{0x55, 0xaa}, 510)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if s, err := d.boot(); s != nil || err != nil {
		t.Fatalf("%v, %v", s, err)
	}
	if err := d.install(&system{Hostname: "web-1", HostKey: []byte("key")}); err != nil {
		t.Fatal(err)
	}
	if s, err := d.boot(); err != nil || s.Hostname != "web-1" {
		t.Fatalf("%v, %v", s, err)
	}
	// What is not zero is found, wherever it is.
	if err := d.use(func(f *os.File) error { return d.zeros(f, 512, 32<<20) }); err != nil {
		t.Error(err)
	}
	if err := d.use(func(f *os.File) error { return d.zeros(f, 512, 64<<20) }); err == nil {
		t.Error("the installed system reads as zeros")
	}
	if n, err := d.wipe(); n != 64<<20 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := d.boot(); !errors.Is(err, errNoSystem) {
		t.Errorf("a wiped disk boots: %v", err)
	}
}

func TestManifestFits(t *testing.T) {
	d := &disk{size: 64 << 20}
	for name, m := range map[string]manifest{
		"other firmware": {Firmware: []string{"bios"}, SectorSize: 512, SizeBytes: 1 << 20},
		"too large":      {Firmware: []string{"uefi"}, SectorSize: 512, SizeBytes: 64 << 20},
		"other sectors":  {Firmware: []string{"uefi"}, SectorSize: 4096, SizeBytes: 1 << 20},
	} {
		if err := m.fits(d, "uefi"); err == nil {
			t.Errorf("%s: fits", name)
		}
	}
	if err := (&manifest{Firmware: []string{"uefi"}, SectorSize: 512, SizeBytes: 1 << 20}).fits(d, "uefi"); err != nil {
		t.Error(err)
	}
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// A machine leaves its rack only through the router that DHCP has named to it.
func TestRouter(t *testing.T) {
	router, outside := netip.MustParseAddr("10.77.9.1"), netip.MustParseAddr("10.99.0.1")
	for _, tt := range []struct {
		rack, told netip.Addr
		want       bool
	}{
		{router, router, true},
		{router, netip.Addr{}, false},
		{router, netip.MustParseAddr("10.77.9.2"), false},
		{netip.Addr{}, router, false},
		{netip.Addr{}, netip.Addr{}, false},
	} {
		c := &nic{rack: &Rack{subnet: netip.MustParsePrefix("10.77.9.0/24"), router: tt.rack}}
		c.setRouter(tt.told)
		if !c.reaches(router) || c.reaches(outside) != tt.want {
			t.Errorf("rack's router %v, told %v: reaches %v, want %v", tt.rack, tt.told, c.reaches(outside), tt.want)
		}
	}
}
