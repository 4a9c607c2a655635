package oob

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"bmc/lab/machine"
	"bmc/lab/virtualbmc"
	"bmc/metal"
)

// redfishBMC is a simulated service (lab/virtualbmc) before a machine that remembers.
func redfishBMC(t *testing.T) (*virtualbmc.Redfish, *plain, Config) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &plain{}
	r, err := virtualbmc.ServeRedfish(l, virtualbmc.Config{Name: "r1-u01", User: "admin", Password: "secret-of-the-bmc", Machine: m})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, m, Config{Server: "r1-u01", Protocol: ProtocolRedfish, Address: l.Addr().String(), Username: "admin", Password: "secret-of-the-bmc", Timing: quick}
}

func TestRedfish(t *testing.T) {
	r, m, cfg := redfishBMC(t)
	c := dial(t, cfg)
	for _, s := range []struct {
		device          string
		persistent, efi bool
		want            machine.Override
	}{
		{DevicePXE, false, true, machine.Override{Device: machine.Network, EFI: true}},
		{DeviceDisk, true, false, machine.Override{Device: machine.Disk, Persistent: true}},
	} {
		if err := c.SetBootDevice(t.Context(), s.device, s.persistent, s.efi); err != nil {
			t.Fatal(err)
		}
		if got := m.State().Boot; got != s.want {
			t.Errorf("the machine boots by %+v, want %+v", got, s.want)
		}
	}
	for _, want := range []metal.Power{metal.PowerOn, metal.PowerOn, metal.PowerOff, metal.PowerOff} {
		if err := c.SetPower(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Power(t.Context()); err != nil || got != want {
			t.Fatalf("power = %v, %v; want %v", got, err, want)
		}
	}
	if err := c.SetPower(t.Context(), metal.PowerOn); err != nil {
		t.Fatal(err)
	}
	// A machine that is asked to shut down has accepted it: whoever asked waits, and does
	// not cut its power.
	if err := c.SoftOff(t.Context()); err != nil {
		t.Errorf("soft off: %v", err)
	}
	if got, want := m.log(), []string{"boot network", "boot disk", "on", "off", "on", "soft"}; !slices.Equal(got, want) {
		t.Errorf("the machine saw %v, want %v", got, want)
	}
	if watts, ok, err := c.(Meter).Watts(t.Context()); watts != 121 || !ok || err != nil {
		t.Errorf("draws %d, %v, %v", watts, ok, err)
	}
	if r.Sessions() != 1 {
		t.Errorf("%d sessions, want one for all", r.Sessions())
	}
	if err := c.Close(t.Context()); err != nil || r.Sessions() != 0 {
		t.Errorf("logout: %v, %d sessions left", err, r.Sessions())
	}
}

func TestRedfishRefusals(t *testing.T) {
	r, m, cfg := redfishBMC(t)
	for _, tc := range []struct {
		what   string
		faults virtualbmc.RedfishFaults
		do     func(Controller) error
		code   metal.Code // "": it works
	}{
		{"an override that may not stay", virtualbmc.RedfishFaults{RefuseAlway: true}, func(c Controller) error {
			return c.SetBootDevice(t.Context(), DeviceDisk, true, true)
		}, metal.CodeOOBRefused},
		{"an override that is not kept", virtualbmc.RedfishFaults{Forgetful: true}, func(c Controller) error {
			return c.SetBootDevice(t.Context(), DevicePXE, false, true)
		}, metal.CodeOOBRefused},
		{"one that does not want to hear of UEFI", virtualbmc.RedfishFaults{RefuseMode: true}, func(c Controller) error {
			return c.SetBootDevice(t.Context(), DevicePXE, false, true)
		}, ""},
		{"no way to switch off", virtualbmc.RedfishFaults{ResetTypes: []string{"On"}}, func(c Controller) error {
			return errors.Join(c.SetPower(t.Context(), metal.PowerOn), c.SetPower(t.Context(), metal.PowerOff))
		}, metal.CodeOOBRefused},
		{"a button alone", virtualbmc.RedfishFaults{ResetTypes: []string{"ForceOn", "PushPowerButton"}}, func(c Controller) error {
			return errors.Join(c.SetPower(t.Context(), metal.PowerOn), c.SoftOff(t.Context()))
		}, ""},
		{"no session service", virtualbmc.RedfishFaults{NoSessions: true}, func(c Controller) error {
			return c.SetPower(t.Context(), metal.PowerOn)
		}, ""},
		{"two systems behind one service", virtualbmc.RedfishFaults{Systems: 2}, func(c Controller) error {
			_, err := c.Power(t.Context())
			return err
		}, metal.CodeOOBRefused},
		{"no room for a session", virtualbmc.RedfishFaults{Login: virtualbmc.Refusal{Status: 403, ID: "SessionLimitExceeded"}}, func(c Controller) error {
			_, err := c.Power(t.Context())
			return err
		}, metal.CodeOOBRefused},
		{"an internal error", virtualbmc.RedfishFaults{Status: 500}, func(c Controller) error {
			_, err := c.Power(t.Context())
			return err
		}, metal.CodeOOBRefused},
	} {
		t.Run(tc.what, func(t *testing.T) {
			r.Bend(tc.faults)
			defer r.Bend(virtualbmc.RedfishFaults{})
			m.do("", func(s *machine.State) { *s = machine.State{} })
			c := newController(cfg)
			defer c.Close(context.Background())
			err := tc.do(c)
			if tc.code == "" && err != nil || tc.code != "" && metal.CodeOf(err) != tc.code {
				t.Errorf("%v, want code %q", err, tc.code)
			}
		})
	}
	if r.Sessions() != 0 {
		t.Errorf("%d sessions leaked", r.Sessions())
	}
	cfg.Password = "wrong"
	if _, err := Dial(t.Context(), cfg); metal.CodeOf(err) != metal.CodeOOBAuth {
		t.Errorf("wrong password: %v", err)
	}
}

// A controller that has restarted knows the session no more: that is no wrong password.
func TestRedfishForgottenSession(t *testing.T) {
	r, _, cfg := redfishBMC(t)
	c := dial(t, cfg)
	r.Forget()
	if _, err := c.Power(t.Context()); err != nil {
		t.Error(err)
	}
	r.Forget()
	if err := c.SetBootDevice(t.Context(), DevicePXE, false, true); err != nil {
		t.Error(err)
	}
}

// A hung controller takes no longer than a reading may.
func TestRedfishHung(t *testing.T) {
	r, _, cfg := redfishBMC(t)
	cfg.Timing.Read, cfg.Timing.Dialog = 300*time.Millisecond, 300*time.Millisecond
	c := dial(t, cfg)
	r.Bend(virtualbmc.RedfishFaults{Hang: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	if _, err := c.Power(ctx); metal.CodeOf(err) != metal.CodeOOBUnreachable {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 4*time.Second { // the logout has two of its own
		t.Errorf("it took %v", took)
	}
}

// Sweeps use one session, as long as it serves.
func TestRedfishSweepsKeepTheSession(t *testing.T) {
	r, m, cfg := redfishBMC(t)
	p := NewPool()
	read := func() Reading {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return p.Status(ctx, []Config{cfg})[0]
	}
	for range 5 {
		if got := read(); got.Power != metal.PowerOff || got.Err != nil {
			t.Fatalf("%+v", got)
		}
	}
	logins := strings.Count(strings.Join(r.Requests(), "\n"), "GET /redfish/v1/Systems\n")
	if logins != 1 || r.Sessions() != 1 {
		t.Errorf("%d logins, %d sessions: %v", logins, r.Sessions(), r.Requests())
	}
	r.Forget()
	m.do("", func(s *machine.State) { s.On = true })
	if got := read(); got.Power != metal.PowerOn || got.Err != nil {
		t.Errorf("after a restart of the controller: %+v", got)
	}
	p.Close(t.Context())
	if r.Sessions() != 0 {
		t.Errorf("%d sessions left", r.Sessions())
	}
}

// An agent that is stopped between its look at the lease and its send meets its session
// closed, as over IPMI.
func TestRedfishTakeOver(t *testing.T) {
	r, m, cfg := redfishBMC(t)
	first, second := &grant{epoch: 1, held: true}, &grant{}
	cfg.Lease = first
	a := newController(cfg)
	defer a.Close(context.Background())
	cfg.Lease = second
	b := newController(cfg)
	defer b.Close(context.Background())
	if _, err := a.Power(t.Context()); err != nil {
		t.Fatal(err)
	}
	taken := false
	a.paused = func() { // its lease runs out here, and another agent gets it
		if taken {
			return
		}
		taken = true
		first.set(1, false)
		second.set(2, true)
		if _, err := b.Power(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := a.SetPower(t.Context(), metal.PowerOn); !errors.Is(err, ErrLease) {
		t.Errorf("the former agent's command: %v", err)
	}
	if got := m.log(); len(got) != 0 {
		t.Errorf("the machine saw %v of an agent whose lease had ended", got)
	}
	if r.Sessions() != 1 {
		t.Errorf("%d sessions, want the successor's alone", r.Sessions())
	}
}
