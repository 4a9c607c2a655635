package oob

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bmc/agent/oob/oobtest"
	"bmc/lab/machine"
	"bmc/lab/virtualbmc"
	"bmc/metal"
)

// grant is a lease that a test gives and takes.
type grant struct {
	mu    sync.Mutex
	epoch uint64
	held  bool
}

func (g *grant) Held() (uint64, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.epoch, g.held
}

func (g *grant) set(epoch uint64, held bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.epoch, g.held = epoch, held
}

// plain is a machine that only remembers what was done to it.
type plain struct {
	mu  sync.Mutex
	s   machine.State
	did []string
}

func (m *plain) do(what string, f func(*machine.State)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.did = append(m.did, what)
	f(&m.s)
	return nil
}

func (m *plain) State() machine.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.s
}

func (m *plain) PowerOn(context.Context) error {
	return m.do("on", func(s *machine.State) { s.On = true })
}

func (m *plain) PowerOff(context.Context) error {
	return m.do("off", func(s *machine.State) { s.On = false })
}

func (m *plain) SoftOff(context.Context) error { return m.do("soft", func(*machine.State) {}) }
func (m *plain) Reset(context.Context) error   { return m.do("reset", func(*machine.State) {}) }

func (m *plain) SetBoot(_ context.Context, o machine.Override) error {
	return m.do("boot "+string(o.Device), func(s *machine.State) { s.Boot = o })
}

func (m *plain) log() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.did)
}

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startLab starts the lab's controller over a machine, and returns what it was told.
func startLab(t *testing.T) (*plain, Config, func() []virtualbmc.Command) {
	t.Helper()
	m, cfg, _, record := startFaulty(t)
	return m, cfg, record
}

// startFaulty returns the controller as well, for its faults.
func startFaulty(t *testing.T) (*plain, Config, *virtualbmc.BMC, func() []virtualbmc.Command) {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		panic(err) // not always the test's own goroutine
	}
	m, written := &plain{}, &lockedBuffer{}
	cfg := Config{Server: "r1-u01", Address: conn.LocalAddr().String(), Username: "admin", Password: "lab-secret", CipherSuite: 17, Timing: quick}
	b, err := virtualbmc.Serve(conn, virtualbmc.Config{Name: "m1", User: "admin", Password: "lab-secret", Machine: m, Record: virtualbmc.NewRecord(written), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, cfg, b, func() (out []virtualbmc.Command) {
		for line := range strings.Lines(written.String()) {
			var c virtualbmc.Command
			if err := json.Unmarshal([]byte(line), &c); err != nil {
				t.Error(err)
			}
			out = append(out, c)
		}
		return out
	}
}

func held(cfg Config, epoch uint64) (*controller, *grant) {
	g := &grant{epoch: epoch, held: true}
	cfg.Lease = g
	return newController(cfg), g
}

// An agent is stopped between its look at the lease and its send, longer than
// its lease lasts. Its successor takes the controller over and acts. What the
// first one then sends has no effect, it says so, and it does not try again.
// Fifty times each, for power and for the boot device.
func TestPausedAgentMeetsItsSessionClosed(t *testing.T) {
	for _, tc := range []struct {
		name string
		act  func(context.Context, Controller) error
		want []string // that the successor does
	}{
		{"power on", func(ctx context.Context, c Controller) error { return c.SetPower(ctx, metal.PowerOn) }, []string{"boot disk"}},
		{"soft off", func(ctx context.Context, c Controller) error { return c.SoftOff(ctx) }, []string{"boot disk", "off"}},
		{"boot device", func(ctx context.Context, c Controller) error { return c.SetBootDevice(ctx, DevicePXE, false, false) }, []string{"boot disk"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var wg sync.WaitGroup
			for range 50 { // at once: most of the time is spent waiting for answers
				wg.Go(func() { pausedAgent(t, tc.act, tc.want) })
			}
			wg.Wait()
		})
	}
}

func pausedAgent(t *testing.T, act func(context.Context, Controller) error, want []string) {
	m, cfg, told := startLab(t)
	m.mu.Lock()
	m.s.On = slices.Contains(want, "off")
	m.mu.Unlock()
	old, lease := held(cfg, 1)
	stopped, resume := make(chan struct{}), make(chan struct{})
	old.paused = func() {
		close(stopped)
		<-resume
	}
	failed := make(chan error, 1)
	for waits, tries := true, 0; waits; { // answers may be late on a busy machine
		go func() { failed <- act(t.Context(), old) }()
		select {
		case <-stopped:
			waits = false
		case err := <-failed:
			if tries++; tries == 20 || metal.CodeOf(err) != metal.CodeOOBUnreachable {
				t.Errorf("the first agent, before it is stopped: %v", err)
				return
			}
		}
	}
	lease.set(1, false) // it has run out meanwhile

	cfg.Timing.Read, cfg.Timing.Act, cfg.Timing.Settle = 5*time.Second, 10*time.Second, time.Minute // the machine may be busy
	next, _ := held(cfg, 2)
	if err := errors.Join(next.SetBootDevice(t.Context(), DeviceDisk, true, false), next.SetPower(t.Context(), metal.PowerOff)); err != nil {
		t.Errorf("the successor: %v", err)
	}
	commands := len(told())
	close(resume)
	if err := <-failed; !errors.Is(err, ErrLease) || metal.CodeOf(err) != metal.CodeStaleEpoch {
		t.Errorf("the first agent: %v", err)
	}
	if _, err := next.Power(t.Context()); err != nil {
		t.Errorf("the successor, afterwards: %v", err)
	}
	// A boot device may be set again when an answer comes late.
	if got := slices.Compact(m.log()); !slices.Equal(got, want) {
		t.Errorf("the machine: %v, want %v", got, want)
	}
	for _, c := range told()[commands:] {
		if c.OK && c.NetFn == 0 && c.Cmd != 1 {
			t.Errorf("accepted afterwards: %+v", c)
		}
	}
	if err := errors.Join(old.Close(t.Context()), next.Close(t.Context())); err != nil {
		t.Error(err)
	}
}

// Under a new epoch the first use closes our user's other sessions, before
// anything is done; the next uses close nothing.
func TestTakeOverClosesSessions(t *testing.T) {
	_, cfg, told := startLab(t)
	ours, _ := held(cfg, 7)
	if _, err := ours.Power(t.Context()); err != nil {
		t.Fatal(err)
	}
	next, _ := held(cfg, 8)
	for range 2 {
		if err := next.SetPower(t.Context(), metal.PowerOn); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	closes := 0
	for _, c := range told() {
		if c.OK && c.Name == "Close Session" {
			closes++
		}
		if c.OK && c.NetFn == 0 {
			names = append(names, c.Name)
		}
	}
	if closes != 1 {
		t.Errorf("%d sessions were closed, want the one of the former epoch: %v", closes, told())
	}
	if i := slices.Index(names, "Chassis Control"); i < 2 || names[i-1] != "Get Chassis Status" {
		t.Errorf("chassis commands %v: reads come before the act", names)
	}
	cfg.Timing.Act, cfg.Timing.Read = 100*time.Millisecond, 100*time.Millisecond
	if err := errors.Join(ours.Close(t.Context()), next.Close(t.Context())); err != nil {
		t.Error(err)
	}
}

// Without the lease no session is opened, for reading neither; under a later
// epoch of one's own the old session and what was read on it do not count.
func TestNoLeaseNoSession(t *testing.T) {
	m, cfg, told := startLab(t)
	c, lease := held(cfg, 1)
	lease.set(1, false)
	_, err := c.Power(t.Context())
	for _, err := range []error{err, c.SetPower(t.Context(), metal.PowerOn), c.SoftOff(t.Context()), c.SetBootDevice(t.Context(), DevicePXE, false, false)} {
		if !errors.Is(err, ErrLease) {
			t.Errorf("without the lease: %v", err)
		}
	}
	if len(told()) != 0 {
		t.Errorf("the controller got %v", told())
	}
	lease.set(1, true)
	c.paused = func() { lease.set(3, true) } // lost, and got again, in the middle of the call
	if err := c.SetPower(t.Context(), metal.PowerOn); !errors.Is(err, nil) && !errors.Is(err, ErrLease) {
		t.Errorf("across epochs: %v", err)
	}
	c.paused = nil
	n := len(told())
	if err := c.SetPower(t.Context(), metal.PowerOn); err != nil {
		t.Fatal(err)
	}
	if log := told()[n:]; len(log) == 0 || !slices.ContainsFunc(log, func(c virtualbmc.Command) bool { return c.Name == "Get Session Info" }) {
		t.Errorf("no take-over under the new epoch: %v", log)
	}
	if got := m.log(); !slices.Equal(got, []string{"on"}) {
		t.Errorf("the machine: %v", got)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A controller that cannot list or end sessions is used all the same, and the
// log says so once.
func TestControllerWithoutFence(t *testing.T) {
	b := oobtest.Start(t)
	var out lockedBuffer
	cfg := config(b)
	cfg.Log = slog.New(slog.NewTextHandler(&out, nil))
	c, lease := held(cfg, 1)
	for epoch := range uint64(3) {
		lease.set(epoch+1, true)
		if err := c.SetPower(t.Context(), metal.PowerOn); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(out.String(), "the lease alone guards it"); n != 1 {
		t.Errorf("said %d times: %s", n, out.String())
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// What the machine draws is told by a controller with DCMI, and is unknown, not
// an error, where there is none.
func TestWatts(t *testing.T) {
	m, cfg, _ := startLab(t)
	for _, on := range []bool{false, true} {
		m.mu.Lock()
		m.s.On = on
		m.mu.Unlock()
		c := dial(t, cfg)
		watts, ok, err := c.(Meter).Watts(t.Context())
		if want := map[bool]int{false: 8, true: 120}[on]; watts != want || !ok || err != nil {
			t.Errorf("on=%v: %d W, %v, %v", on, watts, ok, err)
		}
		_ = c.Close(t.Context())
	}
	without := dial(t, config(oobtest.Start(t)))
	if watts, ok, err := without.(Meter).Watts(t.Context()); watts != 0 || ok || err != nil {
		t.Errorf("without DCMI: %d W, %v, %v", watts, ok, err)
	}
}

// Losing a lease ends the sessions of that rack, and of no other.
func TestRelease(t *testing.T) {
	one, two := oobtest.Start(t), oobtest.Start(t)
	p := NewPool()
	defer p.Close(context.Background())
	first, second := &grant{epoch: 1, held: true}, &grant{epoch: 1, held: true}
	get := func(b *oobtest.BMC, l Lease) Controller {
		cfg := config(b)
		cfg.Lease = l
		return p.Get(cfg)
	}
	for b, l := range map[*oobtest.BMC]Lease{one: first, two: second} {
		if _, err := get(b, l).Power(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	before := get(one, first)
	p.Release(t.Context(), first)
	if one.Sessions() != 0 || two.Sessions() != 1 {
		t.Errorf("%d and %d sessions, want 0 and 1", one.Sessions(), two.Sessions())
	}
	if get(one, first) != before {
		t.Error("two controllers for one address: each would have its session")
	}
}
