package vswitch

import (
	"testing"
	"time"
)

// Who speaks LLDP is answered on its port alone, and nobody else hears of it.
func TestLLDPIsAnsweredAndNotPassedOn(t *testing.T) {
	sw := testSwitch(t)
	sw.Announce("r1-switch", MAC{2, 0, 0, 0, 0, 1})
	a, b := plug(t, sw, 7), plug(t, sw, 8)
	if _, err := a.link.Write(announcement(a.mac, "bmc-ramdisk", "eth0")); err != nil {
		t.Fatal(err)
	}
	select {
	case f := <-a.got:
		if want := announcement(MAC{2, 0, 0, 0, 0, 1}, "r1-switch", "st"); string(f) != string(want) || len(f) < 60 {
			t.Errorf("answered %x", f)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("no answer")
	}
	a.send(t, b.mac, "later") // what was passed on would have come before
	if f := <-b.got; string(f[14:]) != "later" {
		t.Errorf("it was passed on: %x", f)
	}
}
