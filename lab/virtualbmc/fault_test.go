package virtualbmc

import (
	"encoding/json"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bougou/go-ipmi/pkg/transport/udp"
)

// TestFaults: what a real client sees of each fault, and that nothing is left of
// it afterwards.
func TestFaults(t *testing.T) {
	needs(t, "ipmitool")
	m, log := &fakeMachine{}, &buffer{}
	b, port := serve(t, Config{Machine: m, Record: NewRecord(log)})
	for _, tc := range []struct {
		name    string
		fault   Fault
		args    string
		fails   bool
		want    string        // part of what ipmitool says
		atLeast time.Duration // it takes
		did     string        // by the machine
		faulty  int           // commands in the record that the fault answered
	}{
		{"healthy", Fault{Kind: "none"}, "power status", false, "is off", 0, "", 0},
		{"hang", Fault{Kind: Hang}, "-R 1 -N 1 power on", true, "Unable to establish", time.Second, "", 0},
		{"lie about an action", Fault{Kind: Lie}, "power on", false, "Up/On", 0, "", 1},
		{"lie about the state", Fault{Kind: Lie}, "power status", false, "is on", 0, "", 1},
		{"lie leaves the boot device", Fault{Kind: Lie}, "chassis bootdev pxe", false, "pxe", 0, "boot network", 0},
		{"refuse an action", Fault{Kind: Refuse}, "power on", true, "Node busy", 0, "", 1},
		{"refuse to tell", Fault{Kind: Refuse}, "power status", true, "Node busy", 0, "", 1},
		{"drop", Fault{Kind: Drop, Fraction: 0.2, Seed: 4}, "-R 8 -N 1 power status", false, "is off", time.Second, "", 0},
		{"slow", Fault{Kind: Slow, Latency: 150 * time.Millisecond}, "power status", false, "is off", 600 * time.Millisecond, "", 0},
		{"sessions", Fault{Kind: Sessions}, "power status", true, "nsufficient resources", 0, "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m.reset()
			from, begin := len(log.String()), time.Now()
			fault := b.Inject(tc.fault)
			out, err := ipmitool(t, port, "17", strings.Fields(tc.args)...)
			took := time.Since(begin)
			fault.Remove()
			if (err != nil) != tc.fails || !strings.Contains(out, tc.want) {
				t.Errorf("ipmitool %s: %q (%v), want %q", tc.args, out, err, tc.want)
			}
			if took < tc.atLeast {
				t.Errorf("took %s, want at least %s", took, tc.atLeast)
			}
			if did := m.done(); did != tc.did {
				t.Errorf("the machine did %q, want %q", did, tc.did)
			}
			if got := faultyOnes(t, log.String()[from:]); got != tc.faulty {
				t.Errorf("%d commands in the record were answered by the fault, want %d", got, tc.faulty)
			}
			if hits := fault.Hits(); (hits > 0) != (tc.fault.Kind != "none") && !strings.HasPrefix(tc.name, "lie leaves") {
				t.Errorf("the fault counts %d hits", hits)
			}
			if out, err := ipmitool(t, port, "17", "power", "status"); err != nil {
				t.Errorf("after the fault: %q (%v)", out, err)
			}
		})
	}
}

func faultyOnes(t *testing.T, log string) int {
	t.Helper()
	n := 0
	for line := range strings.Lines(log) {
		var c Command
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatal(err)
		}
		if c.Fault {
			n++
		}
	}
	return n
}

// TestDropIsSeeded: the same seed loses the same packets.
func TestDropIsSeeded(t *testing.T) {
	arrived := func(seeds ...uint64) []byte {
		client, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		b := &BMC{}
		c := &faultyConn{Conn: udp.Wrap(conn, udp.WithReadTimeout(0)), faults: &b.faults}
		defer c.Close()
		for _, seed := range seeds {
			b.Inject(Fault{Kind: Drop, Fraction: 0.5, Seed: seed})
		}
		const last = 64
		for i := range byte(last) {
			if _, err := c.WriteTo([]byte{i}, client.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := conn.WriteTo([]byte{last}, client.LocalAddr()); err != nil { // past the fault
			t.Fatal(err)
		}
		var got []byte
		buf := make([]byte, 16)
		for {
			if _, err := client.Read(buf); err != nil {
				t.Fatal(err)
			}
			if buf[0] == last {
				return got
			}
			got = append(got, buf[0])
		}
	}
	one, again, other, both := arrived(1), arrived(1), arrived(2), arrived(1, 2)
	if len(one) == 0 || len(one) == 64 || !slices.Equal(one, again) {
		t.Errorf("the same seed, another fate:\n%v\n%v", one, again)
	}
	if slices.Equal(one, other) {
		t.Error("another seed, the same fate")
	}
	for _, p := range both {
		if !slices.Contains(one, p) || !slices.Contains(other, p) {
			t.Errorf("packet %d passed two faults of which one loses it", p)
		}
	}
}
