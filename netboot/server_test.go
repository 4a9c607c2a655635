package netboot

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"bmc/netboot/dhcp"
	"bmc/netboot/httpboot"
	"bmc/netboot/ipxe"
)

func testConfig(d *directory) Config {
	return Config{Interface: "rack0", Addr: netip.MustParseAddr("10.77.0.1"), Directory: d, Seeder: d, Events: d.event}
}

func TestNewRefuses(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "ipxe.efi")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no interface":       func(c *Config) { c.Interface = "" },
		"no address":         func(c *Config) { c.Addr = netip.Addr{} },
		"an IPv6 address":    func(c *Config) { c.Addr = netip.MustParseAddr("fe80::1") },
		"a negative port":    func(c *Config) { c.HTTPPort = -1 },
		"a port too high":    func(c *Config) { c.HTTPPort = 65536 },
		"no directory":       func(c *Config) { c.Directory = nil },
		"no seeder":          func(c *Config) { c.Seeder = nil },
		"an empty loader":    func(c *Config) { c.LoaderDir = filepath.Dir(empty) },
		"no such loader dir": func(c *Config) { c.LoaderDir = filepath.Join(filepath.Dir(empty), "none") },
	} {
		t.Run(name, func(t *testing.T) {
			c := testConfig(testDirectory())
			change(&c)
			if _, err := New(c); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// What DHCP names, TFTP and HTTP must have; the name that means "your own disk",
// nobody may have.
func TestLoadersOfDHCP(t *testing.T) {
	loaders, err := ipxe.Loaders("")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dhcp.LoaderBIOS, dhcp.LoaderX64, dhcp.LoaderARM64} {
		if len(loaders[name]) == 0 {
			t.Errorf("%s is missing", name)
		}
	}
	if _, ok := loaders[dhcp.LoaderNone]; ok {
		t.Errorf("%s exists", dhcp.LoaderNone)
	}
}

func TestSource(t *testing.T) {
	d := testDirectory()
	odd := d.machines[ramdiskMAC]
	odd.Boot = BootSpec{Ramdisk: true, ConsoleTTY: "ttyS1,9600", KernelArgs: []string{"module.option=1"}}
	d.machines["52:54:00:00:00:04"] = odd
	odd.Boot.ConsoleTTY = "ttyS0 && shell"
	d.machines["52:54:00:00:00:05"] = odd
	odd.Boot = BootSpec{Elsewhere: netip.MustParseAddrPort("10.77.0.2:80")}
	d.machines["52:54:00:00:00:06"] = odd
	s, err := New(testConfig(d))
	if err != nil {
		t.Fatal(err)
	}
	src := source{s}
	script := func(mac string) (string, string, error) {
		name, text, err := src.Script(t.Context(), mac, netip.Addr{})
		return name, string(text), err
	}
	if name, text, err := script(ramdiskMAC); err != nil || name != "ramdisk" || !strings.Contains(text, " console=ttyS0,115200 no_timer_check panic=30 quiet ||") {
		t.Errorf("%s: %v\n%s", name, err, text)
	}
	if name, text, err := script("52:54:00:00:00:04"); err != nil || name != "ramdisk" || !strings.Contains(text, " console=ttyS1,9600 no_timer_check panic=30 quiet module.option=1 ||") {
		t.Errorf("%s: %v\n%s", name, err, text)
	}
	if _, text, err := script("52:54:00:00:00:05"); err == nil {
		t.Errorf("a console that is none was accepted:\n%s", text)
	}
	if name, text, err := script("52:54:00:00:00:06"); err != nil || name != "elsewhere" || !strings.Contains(text, "http://10.77.0.2/boot/ipxe?mac=52:54:00:00:00:06 ||") {
		t.Errorf("%s: %v\n%s", name, err, text)
	}
	if l, ok := s.lease("52:54:00:00:00:06", dhcp.Origin{}); !ok || l.Local {
		t.Errorf("a machine that is sent elsewhere is to load iPXE: %+v", l)
	}
	if name, text, err := script(diskMAC); err != nil || name != "local" || text != ipxe.Local {
		t.Errorf("%s: %v\n%s", name, err, text)
	}
	late := d.machines[diskMAC]
	late.Boot = BootSpec{Late: true}
	d.machines[diskMAC] = late
	if name, text, err := script(diskMAC); err != nil || name != "again" || text != ipxe.Again {
		t.Errorf("nobody knows yet whether another server answers: %s: %v\n%s", name, err, text)
	}
	if l, ok := s.lease(diskMAC, dhcp.Origin{}); !ok || !l.Late || l.Silent {
		t.Errorf("%+v", l)
	}
	if _, _, err := script(strangerMAC); !errors.Is(err, httpboot.ErrNone) {
		t.Errorf("a stranger's script: %v", err)
	}

	if data, err := src.Seed(t.Context(), ramdiskMAC, netip.Addr{}); err != nil || string(data) != "seed of "+ramdiskMAC {
		t.Errorf("seed: %q, %v", data, err)
	}
	for _, mac := range []string{diskMAC, strangerMAC} {
		if data, err := src.Seed(t.Context(), mac, netip.Addr{}); !errors.Is(err, httpboot.ErrNone) {
			t.Errorf("seed of %s: %q, %v", mac, data, err)
		}
	}
	if a, ok := src.Assigned(ramdiskMAC, netip.Addr{}); !ok || a.String() != "10.77.0.101" {
		t.Errorf("assigned: %v", a)
	}
	if _, ok := src.Assigned(strangerMAC, netip.Addr{}); ok {
		t.Error("a stranger has an address")
	}
}

// Another server is better, and has said what it answers a machine. Only when its own
// answers do not arrive is that said here.
func TestSpareAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := testDirectory()
		s, err := New(testConfig(d))
		if err != nil {
			t.Fatal(err)
		}
		check := func(want string, boot BootSpec, wantLocal bool) {
			t.Helper()
			m := d.machines[diskMAC]
			m.Boot = boot
			d.machines[diskMAC] = m
			if name, _, err := (source{s}).Script(t.Context(), diskMAC, netip.Addr{}); err != nil || name != want {
				t.Errorf("%+v: %s, %v, want %s", boot, name, err, want)
			}
			if l, ok := s.lease(diskMAC, dhcp.Origin{}); !ok || !l.Silent || l.Spare != boot.Spare || l.Local != wantLocal {
				t.Errorf("%+v: %+v", boot, l)
			}
		}
		its := netip.MustParseAddrPort("10.77.0.2:80")
		for _, want := range []string{"elsewhere", "local"} {
			check("elsewhere", BootSpec{Silent: true, Elsewhere: its}, false)
			check("elsewhere", BootSpec{Silent: true, Elsewhere: its, Spare: true}, false)
			check(want, BootSpec{Silent: true, Elsewhere: its, Spare: true, Disk: true}, true)
			for range 4 { // the machine asks in vain
				s.tries.Ask(diskMAC, dhcpv4.TransactionID{1})
				time.Sleep(4 * time.Second)
			}
		}
	})
}

func TestLease(t *testing.T) {
	s, err := New(testConfig(testDirectory()))
	if err != nil {
		t.Fatal(err)
	}
	l, ok := s.lease(ramdiskMAC, dhcp.Origin{})
	if !ok || l.Local || !l.Authoritative || l.Addr.String() != "10.77.0.101/24" || l.Hostname != "r1-u01" {
		t.Errorf("%+v", l)
	}
	if l, ok := s.lease(diskMAC, dhcp.Origin{}); !ok || !l.Local {
		t.Errorf("%+v", l)
	}
	if l, ok := s.lease(strangerMAC, dhcp.Origin{}); ok {
		t.Errorf("a stranger has %+v", l)
	}
}

func TestEvents(t *testing.T) {
	addr := netip.MustParseAddr("10.77.0.101")
	tests := []struct {
		emit func(*Server)
		want Event
	}{
		{func(s *Server) { s.seenDHCP(dhcp.Seen{MAC: strangerMAC}) }, Event{Kind: EventUnknown, MAC: strangerMAC}},
		{func(s *Server) {
			s.seenDHCP(dhcp.Seen{MAC: ramdiskMAC, Known: true, Outcome: dhcp.Offered, Addr: addr})
		}, Event{Kind: EventDHCP, MAC: ramdiskMAC, Detail: "offered"}},
		{func(s *Server) { s.seenDHCP(dhcp.Seen{MAC: ramdiskMAC, Known: true, Outcome: dhcp.Acked, Addr: addr}) }, Event{Kind: EventLease, MAC: ramdiskMAC}},
		{func(s *Server) {
			s.seenDHCP(dhcp.Seen{MAC: ramdiskMAC, Known: true, Outcome: dhcp.Refused, Addr: addr, Reason: "x"})
		}, Event{Kind: EventDHCP, MAC: ramdiskMAC, Detail: "refused"}},
		{func(s *Server) {
			s.seenDHCP(dhcp.Seen{MAC: ramdiskMAC, Known: true, Outcome: dhcp.Declined, Addr: addr})
		}, Event{Kind: EventDecline, MAC: ramdiskMAC}},
		{func(s *Server) {
			s.seenDHCP(dhcp.Seen{MAC: ramdiskMAC, Known: true, Outcome: dhcp.Released, Addr: addr})
		}, Event{Kind: EventRelease, MAC: ramdiskMAC}},
		{func(s *Server) { s.seenDHCP(dhcp.Seen{MAC: ramdiskMAC, Known: true, Reason: "why", Addr: addr}) }, Event{Kind: EventUnserved, MAC: ramdiskMAC, Detail: "why"}},
		{func(s *Server) { s.loaderSent(addr, "ipxe.efi") }, Event{Kind: EventLoader, MAC: ramdiskMAC, Detail: "ipxe.efi"}},
		{func(s *Server) { s.served(httpboot.Served{Kind: httpboot.Loader, Addr: addr, Name: "ipxe.efi"}) }, Event{Kind: EventLoader, MAC: ramdiskMAC, Detail: "ipxe.efi"}},
		{func(s *Server) {
			s.served(httpboot.Served{Kind: httpboot.Script, MAC: ramdiskMAC, Addr: addr, Name: "local"})
		}, Event{Kind: EventScript, MAC: ramdiskMAC, Detail: "local"}},
		{func(s *Server) { s.served(httpboot.Served{Kind: httpboot.Seed, MAC: ramdiskMAC, Addr: addr}) }, Event{Kind: EventSeed, MAC: ramdiskMAC}},
		{func(s *Server) { s.served(httpboot.Served{Kind: httpboot.Refused, MAC: strangerMAC, Addr: addr}) }, Event{Kind: EventRefused, MAC: strangerMAC}},
	}
	for _, tt := range tests {
		d := testDirectory()
		s, err := New(testConfig(d))
		if err != nil {
			t.Fatal(err)
		}
		tt.emit(s)
		if tt.want.MAC == ramdiskMAC {
			tt.want.ServerID = "srv-01"
		}
		if tt.want.Kind != EventUnknown {
			tt.want.Addr = addr
		}
		if !slices.Equal(d.seen, []Event{tt.want}) {
			t.Errorf("got %+v, want %+v", d.seen, tt.want)
		}
	}
}

// The first server that fails ends the others, and its error is Run's.
func TestServeEndsTogether(t *testing.T) {
	s, err := New(testConfig(testDirectory()))
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	wait := func(ctx context.Context) error { <-ctx.Done(); return nil }
	if err := s.serve(t.Context(), wait, func(context.Context) error { return broken }, wait); !errors.Is(err, broken) {
		t.Errorf("serve: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.serve(ctx, wait, wait); err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestRunWithoutInterface(t *testing.T) {
	c := testConfig(testDirectory())
	c.Interface = "no-such-nic"
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("Run without its interface returned nil")
	}
}
