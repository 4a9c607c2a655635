package machine

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"bmc/lab/vswitch"
)

func testConfig(t *testing.T, firmware string) Config {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	sw := vswitch.New(log)
	t.Cleanup(func() {
		if err := sw.Close(); err != nil {
			t.Error(err)
		}
	})
	return Config{
		Name: "m1", Dir: t.TempDir(), Firmware: firmware, MemoryMiB: 256, DiskBytes: 64 << 20,
		MAC: "52:54:00:00:00:01", UUID: "b3c1f0de-0001-4000-8000-000000000001", Serial: "LAB-R1-U01",
		Switch: sw, Log: log,
	}
}

func TestConfigValidate(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no name":     func(c *Config) { c.Name = "" },
		"firmware":    func(c *Config) { c.Firmware = "coreboot" },
		"no MAC":      func(c *Config) { c.MAC = "" },
		"odd disk":    func(c *Config) { c.DiskBytes = 1<<20 + 1 },
		"tiny memory": func(c *Config) { c.MemoryMiB = 64 },
		"UEFI memory": func(c *Config) { c.Firmware, c.MemoryMiB = UEFI, 128 },
		"no switch":   func(c *Config) { c.Switch = nil },
	} {
		c := testConfig(t, BIOS)
		change(&c)
		if err := c.validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestArgs(t *testing.T) {
	bios, uefi := testConfig(t, BIOS), testConfig(t, UEFI)
	for _, tc := range []struct {
		name  string
		args  []string
		want  []string
		never []string
	}{
		{"bios, network", bios.args(Network), []string{"bootindex=1 -drive", "disk0,drive=d0,serial=LAB-R1-U01-0,bootindex=2", "tb-size=64", "serial=LAB-R1-U01,uuid=b3c1"}, []string{"romfile", "pflash", "kvm"}},
		{"uefi, disk", uefi.args(Disk), []string{"bootindex=2,romfile= ", "serial=LAB-R1-U01-0,bootindex=1", "OVMF_CODE_4M.fd", "file=vars.fd"}, nil},
	} {
		line := strings.Join(tc.args, " ") + " "
		for _, w := range tc.want {
			if !strings.Contains(line, w) {
				t.Errorf("%s: no %q in %s", tc.name, w, line)
			}
		}
		for _, n := range tc.never {
			if strings.Contains(line, n) {
				t.Errorf("%s: %q in %s", tc.name, n, line)
			}
		}
	}
}

func TestDiskSerial(t *testing.T) {
	for serial, want := range map[string]string{
		"S1":                       "S1-0",
		"LAB-0123456789-0123456-7": "123456789-0123456-7-0"[1:],
	} {
		c := Config{Serial: serial}
		if got := c.DiskSerial(); got != want || len(got) > 20 {
			t.Errorf("serial %s: disk %s (%d characters), want %s", serial, got, len(got), want)
		}
	}
}

// qemu returns a machine that really runs, or skips.
func qemu(t *testing.T, firmware string) (*Machine, vswitch.Link) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a machine")
	}
	if err := Requirements(firmware); err != nil {
		t.Skip(err)
	}
	cfg := testConfig(t, firmware)
	a, b := vswitch.Pipe()
	if _, err := cfg.Switch.Attach("test", a); err != nil {
		t.Fatal(err)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			raw, err := os.ReadFile(cfg.SerialLog())
			t.Logf("console: %s (%v)", raw[max(0, len(raw)-2000):], err)
		}
	})
	return m, b
}

// watchDiscovers sends the time of each DHCPDISCOVER that the machine puts on
// the wire.
func watchDiscovers(t *testing.T, m *Machine, wire vswitch.Link) <-chan time.Time {
	t.Helper()
	mac, err := net.ParseMAC(m.Config().MAC)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan time.Time, 1000)
	go func() {
		buf := make([]byte, vswitch.MaxFrame)
		for {
			n, err := wire.Read(buf)
			if err != nil {
				return
			}
			f := buf[:n]
			// Ethernet, IPv4, UDP from port 68 to 67, the DHCP cookie.
			if n > 282 && bytes.Equal(f[6:12], mac) && f[12] == 8 && f[13] == 0 && f[23] == 17 &&
				f[35] == 68 && f[37] == 67 && bytes.Equal(f[278:282], []byte{0x63, 0x82, 0x53, 0x63}) {
				seen <- time.Now()
			}
		}
	}()
	return seen
}

// wantDiscover waits for a DHCPDISCOVER sent after begin.
func wantDiscover(t *testing.T, seen <-chan time.Time, begin time.Time) {
	t.Helper()
	deadline := time.After(120 * time.Second)
	for {
		select {
		case at := <-seen:
			if at.After(begin) {
				t.Logf("DHCPDISCOVER after %.1f s", at.Sub(begin).Seconds())
				return
			}
		case <-deadline:
			t.Fatal("no DHCPDISCOVER within 120 s")
		}
	}
}

func TestPowerAndNetworkBoot(t *testing.T) {
	for _, firmware := range []string{BIOS, UEFI} {
		t.Run(firmware, func(t *testing.T) {
			t.Parallel()
			m, wire := qemu(t, firmware)
			seen := watchDiscovers(t, m, wire)
			ctx, begin := t.Context(), time.Now()
			if s := m.State(); s.On || s.PID != 0 {
				t.Fatalf("new machine: %+v", s)
			}
			if err := m.Reset(ctx); !errors.Is(err, ErrOff) {
				t.Fatalf("reset while off: %v", err)
			}
			if err := m.PowerOn(ctx); err != nil {
				t.Fatal(err)
			}
			if err := m.PowerOn(ctx); err != nil {
				t.Fatalf("second power-on: %v", err)
			}
			if s := m.State(); !s.On || s.PID == 0 || s.Starts != 1 {
				t.Fatalf("running machine: %+v", s)
			}
			wantDiscover(t, seen, begin)
			if err := m.PowerOff(ctx); err != nil {
				t.Fatal(err)
			}
			if s := m.State(); s.On {
				t.Fatalf("after power-off: %+v", s)
			}
		})
	}
}

// bootSector is an MBR that writes "DISK\n" to the first serial port and resets
// through the keyboard controller.
var bootSector = func() []byte {
	code := []byte{0xfa} // cli
	for _, c := range []byte("DISK\n") {
		code = append(code, 0xba, 0xf8, 0x03, 0xb0, c, 0xee) // mov dx,3f8h; mov al,c; out dx,al
	}
	// Poll a bit, so that a test can act between two boots: cx = 0, loop on port 80h.
	code = append(code, 0xbb, 0x20, 0x00)             // mov bx,32
	code = append(code, 0x31, 0xc9)                   // outer: xor cx,cx
	code = append(code, 0xe6, 0x80, 0xe2, 0xfc)       // inner: out 80h,al; loop inner
	code = append(code, 0x4b, 0x75, 0xf7)             // dec bx; jnz outer
	code = append(code, 0xb0, 0xfe, 0xe6, 0x64, 0xf4) // mov al,feh; out 64h,al; hlt
	sector := make([]byte, 512)
	copy(sector, code)
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}()

// TestOneShotOverride: a machine set to boot from disk for ever, with a one-shot
// network override, asks the network once; its own reset goes to the disk.
func TestOneShotOverride(t *testing.T) {
	m, wire := qemu(t, BIOS)
	seen, cfg := watchDiscovers(t, m, wire), m.Config()
	f, err := os.OpenFile(cfg.DiskPath(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(bootSector)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, begin := t.Context(), time.Now()
	for _, o := range []Override{{Device: Disk, Persistent: true}, {Device: Network}} {
		if err := m.SetBoot(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	wantDiscover(t, seen, begin)
	if b := m.State().Boot; b.Device != Disk || !b.Persistent {
		t.Fatalf("after the one-shot boot: %+v", b)
	}
	if strings.Contains(serialLog(t, cfg), "DISK") {
		t.Fatal("the disk booted before the network was asked")
	}
	if err := m.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	// Two lines: the reset by the BMC and the disk's own reset both end on disk.
	deadline := time.Now().Add(60 * time.Second)
	for strings.Count(serialLog(t, cfg), "DISK") < 2 {
		if time.Now().After(deadline) {
			t.Fatalf("no second boot from disk; %+v", m.State())
		}
		time.Sleep(20 * time.Millisecond)
	}
	// While it runs: the next reset goes to the network, once.
	begin = time.Now()
	if err := m.SetBoot(ctx, Override{Device: Network}); err != nil {
		t.Fatal(err)
	}
	wantDiscover(t, seen, begin)
	for deadline := time.Now().Add(60 * time.Second); m.State().Boot.Device != Disk; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after the one-shot boot: %+v", m.State())
		}
	}
}

func serialLog(t *testing.T, cfg Config) string {
	t.Helper()
	raw, err := os.ReadFile(cfg.SerialLog())
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return string(raw)
}
