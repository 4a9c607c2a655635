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
		if s.cfg.Tries.Waited(mac, false) {
			t.Error("has waited")
		}
		at("edk2-pxe-discover", 4*time.Second, Offered)
		at("edk2-pxe-request", time.Second, Acked)
		at("ipxedust-efi-discover", 10*time.Second, Offered) // its loader, of the same boot
		at("ipxedust-efi-request", 0, Acked)
		if !s.cfg.Tries.Waited(mac, false) {
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

// A server whose better is there answers a machine all the same which asks on and on,
// as far as the better one agrees, and goes on with that machine's boot.
func TestSpare(t *testing.T) {
	lease := testLease
	lease.Silent, lease.Spare = true, true
	now := time.Unix(0, 0)
	s := newServer(Config{Identity: testID, Tries: &Tries{now: func() time.Time { return now }}}, &discard{})
	at := func(name string, after time.Duration, want Outcome) {
		t.Helper()
		now = now.Add(after)
		req, err := dhcpv4.FromBytes(captured(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if d := s.decide(req.ClientHWAddr.String(), req, lease); d.Outcome != want || want == Ignored && d.Reason != Elsewhere {
			t.Errorf("%s, %v later: %v (%s), want %v", name, after, d.Outcome, d.Reason, want)
		}
	}
	mac := testMAC.String()
	at("edk2-pxe-discover", 0, Ignored)
	at("edk2-pxe-discover", 4*time.Second, Ignored)
	if s.cfg.Tries.Waited(mac, true) || !s.cfg.Tries.Waited(mac, false) {
		t.Error("4 s are enough without a better server, and too few with one")
	}
	lease.Spare = false // the better one has not agreed
	at("edk2-pxe-discover", 8*time.Second, Ignored)
	lease.Spare = true
	at("edk2-pxe-discover", 0, Offered)
	at("edk2-pxe-request", time.Second, Acked)
	at("ipxedust-efi-discover", 20*time.Second, Offered)
	if !s.cfg.Tries.Waited(mac, true) {
		t.Error("has not waited")
	}
	now = now.Add(triesKept + time.Second)
	at("edk2-pxe-discover", 0, Ignored) // another boot
}

// A machine that boots again and again, and is answered where this server does not see
// it, has not asked in vain: its tries are of many boots.
func TestTriesOfManyBoots(t *testing.T) {
	for _, tt := range []struct {
		name    string
		id      func(try int) byte // transaction IDs
		between []time.Duration
		want    bool // after 2 s
	}{
		{"each boot asks once, with an ID of its own", func(i int) byte { return byte(i) }, []time.Duration{20 * time.Second, 20 * time.Second, 20 * time.Second, 6 * time.Second}, false},
		{"each boot asks once, its IDs are the same", func(int) byte { return 1 }, []time.Duration{40 * time.Second, 50 * time.Second}, false},
		{"firmware", func(int) byte { return 1 }, []time.Duration{4 * time.Second}, true},
		{"firmware's last try", func(int) byte { return 1 }, []time.Duration{4 * time.Second, 8 * time.Second, 16 * time.Second, 33 * time.Second}, true},
		{"firmware that takes an ID for each try", func(i int) byte { return byte(i) }, []time.Duration{4 * time.Second}, true},
		{"iPXE", func(int) byte { return 1 }, []time.Duration{time.Second, 2 * time.Second}, true},
	} {
		now := time.Unix(0, 0)
		tries := Tries{now: func() time.Time { return now }}
		tries.Ask("m", dhcpv4.TransactionID{tt.id(0)})
		var got time.Duration
		for i, d := range tt.between {
			now = now.Add(d)
			got = tries.Ask("m", dhcpv4.TransactionID{tt.id(i + 1)})
		}
		if (got >= lateAfter) != tt.want || tries.Waited("m", false) != tt.want {
			t.Errorf("%s: it has asked for %v", tt.name, got)
		}
	}
}

// Tries are bounded, and too many cost time and nothing else.
func TestTriesAreBounded(t *testing.T) {
	now := time.Unix(0, 0)
	tries := Tries{now: func() time.Time { return now }}
	for i := range 2*maxTries + 1 {
		tries.Ask(string(rune('a'+i)), dhcpv4.TransactionID{})
	}
	if n := len(tries.by); n > maxTries {
		t.Errorf("%d are kept", n)
	}
	tries.Ask("x", dhcpv4.TransactionID{})
	if now = now.Add(lateAfter); tries.Ask("x", dhcpv4.TransactionID{}) < lateAfter {
		t.Error("one that asks again is not answered")
	}
}
