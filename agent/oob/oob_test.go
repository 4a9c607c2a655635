package oob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bmc/agent/oob/oobtest"
	"bmc/metal"
)

var quick = Timing{
	Wait: 100 * time.Millisecond, Read: 5 * time.Second, Act: 5 * time.Second, Dialog: 10 * time.Second, Settle: 30 * time.Second,
	PollMin: 5 * time.Millisecond, PollMax: 20 * time.Millisecond, ActAgain: 100 * time.Millisecond,
}

func config(b *oobtest.BMC) Config {
	return Config{Server: "r1-u01", Protocol: ProtocolIPMI, Address: b.Address, Username: oobtest.Username, Password: oobtest.Password, Timing: quick}
}

func dial(t *testing.T, cfg Config) Controller {
	t.Helper()
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func TestPower(t *testing.T) {
	b := oobtest.Start(t)
	c := dial(t, config(b))
	for _, want := range []metal.Power{metal.PowerOn, metal.PowerOn, metal.PowerOff, metal.PowerOff} {
		if err := c.SetPower(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Power(t.Context()); err != nil || got != want {
			t.Fatalf("power = %v, %v; want %v", got, err, want)
		}
	}
	if got := b.Log(); !slices.Equal(got, []string{"on", "off"}) {
		t.Errorf("commands = %v: one that reads as wanted must be left alone", got)
	}
}

func TestSoftOff(t *testing.T) {
	b := oobtest.Start(t)
	b.SetOn(true)
	c := dial(t, config(b))
	if err := c.SoftOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.SoftOff(t.Context()); err != nil { // off already
		t.Fatal(err)
	}
	if got := b.Log(); !slices.Equal(got, []string{"soft"}) {
		t.Errorf("commands = %v", got)
	}
}

func TestBootDevice(t *testing.T) {
	b := oobtest.Start(t)
	c := dial(t, config(b))
	booted := make(chan string, 1)
	b.OnPowerOn(func(dev string) { booted <- dev })
	steps := []struct {
		device          string
		persistent, efi bool
		log             string
		boots           []string // of consecutive power-ons
	}{
		{DevicePXE, false, false, "boot pxe once", []string{"pxe", "default"}},
		{DeviceDisk, true, true, "boot disk persistent efi", []string{"disk", "disk"}},
		{DevicePXE, false, true, "boot pxe once efi", []string{"pxe", "default"}},
	}
	for _, s := range steps {
		if err := c.SetBootDevice(t.Context(), s.device, s.persistent, s.efi); err != nil {
			t.Fatal(err)
		}
		if log := b.Log(); log[len(log)-1] != s.log {
			t.Errorf("controller got %q, want %q", log[len(log)-1], s.log)
		}
		for i, want := range s.boots {
			if err := errors.Join(c.SetPower(t.Context(), metal.PowerOn), c.SetPower(t.Context(), metal.PowerOff)); err != nil {
				t.Fatal(err)
			}
			if got := <-booted; got != want {
				t.Errorf("%s: boot %d from %s, want %s", s.log, i, got, want)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	b := oobtest.Start(t)
	c := dial(t, config(b))
	b.SetFaults(oobtest.Faults{ForgetPersist: true})
	if err := c.SetBootDevice(t.Context(), DeviceDisk, true, false); metal.CodeOf(err) != metal.CodeOOBRefused {
		t.Errorf("persistence that was not kept: %v", err)
	}
	b.SetFaults(oobtest.Faults{RefuseBootOpts: true})
	if err := c.SetBootDevice(t.Context(), DevicePXE, false, false); metal.CodeOf(err) != metal.CodeOOBRefused {
		t.Errorf("boot options refused: %v", err)
	}
	b.SetFaults(oobtest.Faults{RefuseActs: true})
	err := c.SetPower(t.Context(), metal.PowerOn)
	if metal.CodeOf(err) != metal.CodeOOBRefused {
		t.Errorf("power refused: %v", err)
	}
	var e *metal.Error
	if want := "management controller " + b.Address + " of r1-u01 refused to turn on"; !errors.As(err, &e) || e.Message != want {
		t.Errorf("message = %q, want %q", err, want)
	}
}

// A controller that accepts and does nothing is asked again, and after the
// time to settle it is a failure: accepted is not done.
func TestAcceptedIsNotDone(t *testing.T) {
	b := oobtest.Start(t)
	c := dial(t, config(b))
	b.SetFaults(oobtest.Faults{IgnoreActs: 2})
	if err := c.SetPower(t.Context(), metal.PowerOn); err != nil {
		t.Fatal(err)
	}
	if got := b.Log(); !slices.Equal(got, []string{"on", "on", "on"}) {
		t.Errorf("commands = %v", got)
	}
	b.SetFaults(oobtest.Faults{IgnoreActs: 1 << 30})
	cfg := config(b)
	cfg.Timing.Settle = 300 * time.Millisecond
	lying := dial(t, cfg)
	if err := lying.SetPower(t.Context(), metal.PowerOff); metal.CodeOf(err) != metal.CodeOOBRefused || !strings.Contains(err.Error(), "still does not read so") {
		t.Errorf("a lying controller: %v", err)
	}
}

func TestLostAnswers(t *testing.T) {
	b := oobtest.Start(t)
	cfg := config(b)
	cfg.Timing.Act, cfg.Timing.ActAgain = 200*time.Millisecond, time.Minute
	c := dial(t, cfg)
	b.DropAnswers(1)
	if got, err := c.Power(t.Context()); err != nil || got != metal.PowerOff {
		t.Errorf("a lost answer to a read: %v, %v", got, err)
	}
	// The answer to the command is lost: the state is read, and the command is
	// not sent again.
	b.OnPowerOn(func(string) {})
	if _, err := c.Power(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.DropAnswers(0)
	hang := &hangAfter{b: b}
	b.OnPowerOn(hang.fire)
	if err := c.SetPower(t.Context(), metal.PowerOn); err != nil {
		t.Fatal(err)
	}
	if got := b.Log(); !slices.Equal(got, []string{"on"}) {
		t.Errorf("commands = %v", got)
	}
}

// hangAfter loses the answer to the very command that powers the machine.
type hangAfter struct{ b *oobtest.BMC }

func (h *hangAfter) fire(string) { h.b.DropAnswers(1) }

func TestWrongPassword(t *testing.T) {
	b := oobtest.Start(t)
	for _, tc := range []struct{ name, user, password string }{
		{"password", oobtest.Username, "wrong"},
		{"user", "nobody", oobtest.Password},
	} {
		cfg := config(b)
		cfg.Username, cfg.Password = tc.user, tc.password
		if _, err := Dial(t.Context(), cfg); metal.CodeOf(err) != metal.CodeOOBAuth {
			t.Errorf("wrong %s: %v", tc.name, err)
		}
	}
	if n := b.Sessions(); n > 2 { // refused handshakes, pending until they expire
		t.Errorf("%d sessions left", n)
	}
}

func TestUnreachable(t *testing.T) {
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	addr := socket.LocalAddr().String()
	_ = socket.Close()
	_, err = Dial(t.Context(), Config{Server: "r1-u01", Protocol: ProtocolIPMI, Address: addr, Timing: quick})
	if metal.CodeOf(err) != metal.CodeOOBUnreachable || !strings.Contains(err.Error(), "management controller "+addr+" of r1-u01 does not answer") {
		t.Errorf("closed port: %v", err)
	}
}

// A controller that hangs costs each call its bound and no more.
func TestHang(t *testing.T) {
	b := oobtest.Start(t)
	cfg := config(b)
	cfg.Timing.Wait = 20 * time.Millisecond
	cfg.Timing.Act, cfg.Timing.Read, cfg.Timing.Dialog, cfg.Timing.Settle = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond, 500*time.Millisecond
	c := dial(t, cfg)
	b.Hang(true)
	start := time.Now()
	if _, err := c.Power(t.Context()); metal.CodeOf(err) != metal.CodeOOBUnreachable {
		t.Errorf("power of a hung controller: %v", err)
	}
	if err := c.SetPower(t.Context(), metal.PowerOn); metal.CodeOf(err) != metal.CodeOOBUnreachable {
		t.Errorf("power on a hung controller: %v", err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("took %s", d)
	}
	b.Hang(false)
	if err := c.SetPower(t.Context(), metal.PowerOn); err != nil {
		t.Errorf("after it recovered: %v", err)
	}
}

func TestNoSessionLeaks(t *testing.T) {
	b := oobtest.Start(t)
	for i := range 12 { // the controller has four slots
		c := dial(t, config(b))
		if _, err := c.Power(t.Context()); err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel() // logout must not depend on the caller's context
		if err := c.Close(ended); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.Sessions(); n != 0 {
		t.Errorf("%d sessions left", n)
	}
}

// One kept session serves many concurrent callers; a controller that restarted
// and forgot it gets a new one.
func TestOneSession(t *testing.T) {
	b := oobtest.Start(t)
	p := NewPool()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := p.Get(config(b)).Power(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := b.Sessions(); n != 1 {
		t.Errorf("%d sessions, want 1", n)
	}
	b.ForgetSessions()
	if _, err := p.Get(config(b)).Power(t.Context()); err != nil {
		t.Errorf("after the controller restarted: %v", err)
	}
	p.Close(t.Context())
	if n := b.Sessions(); n != 0 {
		t.Errorf("%d sessions left", n)
	}
}

func TestStatus(t *testing.T) {
	p := NewPool()
	defer p.Close(context.Background())
	var cfgs []Config
	for i := range 20 {
		b := oobtest.Start(t)
		b.SetOn(i%2 == 0)
		b.Hang(i == 7)
		cfg := config(b)
		cfg.Timing.Act, cfg.Timing.Read = time.Second, time.Second
		cfgs = append(cfgs, cfg)
	}
	for i, r := range p.Status(t.Context(), cfgs) {
		want := []metal.Power{metal.PowerOn, metal.PowerOff}[i%2]
		if i == 7 {
			if metal.CodeOf(r.Err) != metal.CodeOOBUnreachable || r.Power != metal.PowerUnknown {
				t.Errorf("the hung one: %+v", r)
			}
		} else if r.Err != nil || r.Power != want {
			t.Errorf("reading %d = %+v, want %v", i, r, want)
		}
	}
}

func TestSecretsStayOut(t *testing.T) {
	cfg := Config{Server: "r1-u01", Address: "10.78.0.11", Username: "the-user", Password: "the-password"}
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	log.Info("config", "oob", cfg)
	fmt.Fprintf(&out, "%v %+v %#v %s", cfg, cfg, cfg, cfg)
	for _, secret := range []string{"the-password", "the-user"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%s shows in %s", secret, out.String())
		}
	}
}

func TestSplit(t *testing.T) {
	for _, tc := range []struct {
		in, protocol, host string
		port               int
	}{
		{"10.78.0.11", ProtocolIPMI, "10.78.0.11", 623},
		{"10.78.0.11:6230", ProtocolIPMI, "10.78.0.11", 6230},
		{"fd00::11", ProtocolIPMI, "fd00::11", 623},
		{"[fd00::11]:624", ProtocolIpmitool, "fd00::11", 624},
		{"bmc-u01.lab", ProtocolRedfish, "bmc-u01.lab", 443},
	} {
		host, port, err := split(tc.in, tc.protocol)
		if host != tc.host || port != tc.port || err != nil {
			t.Errorf("split(%q) = %q, %d, %v", tc.in, host, port, err)
		}
	}
}
