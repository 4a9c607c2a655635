package dhcp

import (
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// A server that knows nothing for certain leaves network boots to others, and answers
// who has asked in vain: firmware by its second try, iPXE by its third. Systems that
// run are answered at once.
func TestLate(t *testing.T) {
	lease := testLease
	lease.Late = true
	now := time.Unix(0, 0)
	s := newServer(Config{Identity: testID, Tries: &Tries{now: func() time.Time { return now }}}, &discard{})
	at := func(name string, after time.Duration, want Outcome) {
		t.Helper()
		now = now.Add(after)
		req, err := dhcpv4.FromBytes(captured(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if d := s.decide(req.ClientHWAddr.String(), req, lease); d.Outcome != want {
			t.Errorf("%s, %v later: %v (%s), want %v", name, after, d.Outcome, d.Reason, want)
		}
	}
	system := request{kind: discover}.packet(t)
	if d := s.decide(testMAC.String(), system, lease); d.Outcome != Offered {
		t.Errorf("a system that runs: %v (%s)", d.Outcome, d.Reason)
	}
	mac := testMAC.String()
	for range 2 {
		at("edk2-pxe-discover", 0, Ignored)
		at("edk2-pxe-discover", time.Millisecond, Ignored) // the same, twice on its way
		if s.cfg.Tries.Waited(mac) {
			t.Error("has waited")
		}
		at("edk2-pxe-discover", 4*time.Second, Offered)
		at("edk2-pxe-request", time.Second, Acked)
		at("ipxedust-efi-discover", 10*time.Second, Offered) // its loader, of the same boot
		at("ipxedust-efi-request", 0, Acked)
		if !s.cfg.Tries.Waited(mac) {
			t.Error("has not waited")
		}
		now = now.Add(triesKept + time.Second) // another boot
	}
	at("ipxe-rom-bios-discover", 0, Ignored)
	at("ipxe-rom-bios-discover", time.Second, Ignored)
	at("ipxe-rom-bios-discover", 2*time.Second, Offered)
	// It takes another server's offer: the next boot is left to that one again.
	other := request{kind: ask, options: map[uint8]string{50: ip4("10.77.0.101"), 54: ip4("10.77.0.2"), 60: "PXEClient", 93: "\x00\x07"}}.packet(t)
	if d := s.decide(mac, other, lease); d.Outcome != Ignored || d.Reason != "chose another server" {
		t.Errorf("chosen another: %v (%s)", d.Outcome, d.Reason)
	}
	at("edk2-pxe-discover", time.Second, Ignored)
}

// Tries are bounded, and too many cost time and nothing else.
func TestTriesAreBounded(t *testing.T) {
	now := time.Unix(0, 0)
	tries := Tries{now: func() time.Time { return now }}
	for i := range 2*maxTries + 1 {
		tries.ask(string(rune('a' + i)))
	}
	if n := len(tries.by); n > maxTries {
		t.Errorf("%d are kept", n)
	}
	tries.ask("x")
	if now = now.Add(lateAfter); !tries.ask("x") {
		t.Error("one that asks again is not answered")
	}
}
