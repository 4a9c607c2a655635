package oob

import (
	"slices"
	"testing"
	"time"

	"bmc/lab/virtualbmc"
	"bmc/metal"
)

// lossy loses a fraction of the packets on each way to and from the controller.
func lossy(t *testing.T, fraction float64) (*plain, Config, func() []virtualbmc.Command) {
	t.Parallel() // it mostly waits
	m, cfg, b, record := startFaulty(t)
	cfg.Timing = Timing{
		Wait: 30 * time.Millisecond, Read: 2 * time.Second, Act: 150 * time.Millisecond, Dialog: 5 * time.Second, Settle: time.Minute,
		PollMin: time.Millisecond, PollMax: 20 * time.Millisecond, ActAgain: 400 * time.Millisecond,
	}
	b.Inject(virtualbmc.Fault{Kind: virtualbmc.Drop, Fraction: fraction, Seed: 11})
	return m, cfg, record
}

// A lost packet is asked for again, where nothing can come of it; a power
// command whose answer is lost is not, unless its effect is missing.
func TestLossyNetwork(t *testing.T) {
	m, cfg, record := lossy(t, 0.3) // of two requests, one is not answered
	c := newController(cfg)
	const cycles = 20
	for n := range cycles {
		if err := c.SetBootDevice(t.Context(), DevicePXE, false, n%2 == 0); err != nil {
			t.Fatalf("cycle %d: %v", n, err)
		}
		for _, want := range []metal.Power{metal.PowerOn, metal.PowerOff} {
			if err := c.SetPower(t.Context(), want); err != nil {
				t.Fatalf("cycle %d: turn %s: %v", n, want, err)
			}
			if got, err := c.Power(t.Context()); err != nil || got != want {
				t.Fatalf("cycle %d: power %v, %v; want %v", n, got, err, want)
			}
		}
	}
	if err := c.Close(t.Context()); err != nil {
		t.Log("the last session ends by itself:", err)
	}
	var power []string
	for _, did := range m.log() {
		if did == "on" || did == "off" {
			power = append(power, did)
		}
	}
	if want := slices.Repeat([]string{"on", "off"}, cycles); !slices.Equal(power, want) {
		t.Errorf("the machine was turned %q", power)
	}
	for _, cmd := range record() {
		if cmd.NetFn == 0 && cmd.Cmd == 2 && (cmd.Data == "01") == cmd.On {
			t.Errorf("%s came while the power was on=%v", cmd.Data, cmd.On)
		}
	}
}

// Each proof of a controller is a dozen exchanges, of which two are lost.
func TestLossySessions(t *testing.T) {
	_, cfg, _ := lossy(t, 0.1)
	for n := range 10 {
		g := &grant{epoch: uint64(n + 1), held: true}
		cfg.Lease = g
		c, err := Dial(t.Context(), cfg)
		if err != nil {
			t.Fatalf("session %d: %v", n, err)
		}
		_ = c.Close(t.Context()) // its answer may be lost, too
	}
}

// A controller that does not know parameter 0 of the boot options (80h) is not
// asked for it again in that session.
func TestParameterThatIsRefused(t *testing.T) {
	_, cfg, record := startLab(t)
	c := dial(t, cfg)
	for range 3 {
		if err := c.SetBootDevice(t.Context(), DevicePXE, false, true); err != nil {
			t.Fatal(err)
		}
	}
	refused := 0
	for _, cmd := range record() {
		if !cmd.OK {
			refused++
			if cmd.Result != 0x80 || cmd.Data[:2] != "00" {
				t.Errorf("%+v", cmd)
			}
		}
	}
	if refused != 1 {
		t.Errorf("%d commands refused, want 1", refused)
	}
}
