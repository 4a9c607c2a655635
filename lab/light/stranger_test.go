package light

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A stranger's questions reach the wire and are recorded, and so is each answer,
// which it never takes.
func TestStranger(t *testing.T) {
	rack, sw := testRack(t)
	out := newEvents()
	s, err := NewStranger(StrangerConfig{Name: "r9-stranger", Rack: rack, MAC: [6]byte{2, 0, 0, 9, 0xfe, 1}, Claims: netip.MustParseAddr("10.9.0.10"),
		Every: 5 * time.Millisecond, Seed: 1, Record: NewRecord(out)})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, s)
	out.await(t, event(Asked), 6) // nobody is there
	for _, q := range []string{"discover as firmware", "discover as a loader", "request of 10.9.0.10"} {
		if !strings.Contains(out.String(), q) {
			t.Errorf("no %s:\n%s", q, out)
		}
	}
	if n := out.count(event(Answered)); n != 0 {
		t.Fatalf("%d answers of nobody", n)
	}
	if _, err := sw.Attach("dhcp", &dhcpServer{out: make(chan []byte, 64), done: make(chan struct{})}); err != nil {
		t.Fatal(err)
	}
	answer := `"mac":"02:00:00:09:fe:01","address":"10.9.0.101","from":"10.9.0.1"`
	out.await(t, `"detail":"offer",`+answer, 2)
	out.await(t, `"detail":"ack",`+answer, 1)
	if s.nic.address().IsValid() {
		t.Error("it took an address")
	}
}
