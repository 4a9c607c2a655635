package state

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"bmc/metal"
)

// lines is every row and every line of every index that a reader can see.
func lines(v *View) (out []string) {
	for r := range v.Rows() {
		out = append(out, r.String())
	}
	for _, ix := range []*index{&v.serverMAC, &v.serverSerial, &v.serverOOB, &v.rentalName, &v.capacity, &v.openOps, &v.serverOps, &v.createdOps,
		&v.serverEvents, &v.keyName, &v.keyPrint} {
		for e := range ix.prefixed("") {
			out = append(out, fmt.Sprintf("%q", e))
		}
	}
	for s := range v.Servers(ServerFilter{}) {
		out = append(out, s.Name)
	}
	v.counts.tree.Ascend(func(c counter) bool {
		out = append(out, fmt.Sprintf("%q %d", c.key, c.n))
		return true
	})
	return out
}

func disturb(x *Txn) {
	s, _ := x.Server("srv-000003")
	changed := *s
	changed.Name, changed.State, changed.MACs = "other", metal.StateRetired, []string{"52:54:00:ff:ff:ff"}
	x.PutServer(&changed)
	x.DeleteServer("srv-000004")
	x.PutKey(&metal.SSHKey{ID: "key-9", Name: "nine", Project: "prj-1", Fingerprint: "f9"})
	x.Event(metal.Event{Kind: "noise", ServerID: "srv-000005"})
	x.Audit(metal.AuditEntry{Command: "noise"}, []byte{1})
	x.Remember(Request{ID: "noise"})
}

// A command that is refused leaves nothing: neither what it was the first to
// write to in its batch, nor what others had written to before it.
func TestRollback(t *testing.T) {
	for _, earlier := range []bool{false, true} {
		x := filled(20).Begin()
		if earlier { // own every tree first
			x.SetCommand(1000, start)
			disturb(x)
			x.PutServer(machine(3))
			x.PutServer(machine(4))
			x.DeleteKey("key-9")
		}
		before := x.View
		want, hash := lines(&before), before.Hash()
		x.SetCommand(1001, start.Add(time.Hour))
		disturb(x)
		x.Rollback()
		v := x.Commit()
		if got := lines(v); !slices.Equal(got, want) {
			t.Errorf("earlier %v: %d lines before, %d after", earlier, len(want), len(got))
		}
		if v.Hash() != hash || v.Recompute() != hash {
			t.Errorf("earlier %v: the hash changed", earlier)
		}
	}
}

// A command may change what it ranges over, and one before it in the batch may
// have made the tree the transaction's own.
func TestRangeAndChange(t *testing.T) {
	x := filled(300).Begin()
	for round := range 2 {
		x.SetCommand(uint64(1000+round), start)
		seen := 0
		for s := range x.Servers(ServerFilter{}) {
			seen++
			changed := *s
			changed.Name = fmt.Sprintf("z%d-%s", round, s.Name) // moves to the end of the index
			x.PutServer(&changed)
		}
		if seen != 300 {
			t.Fatalf("round %d: saw %d of 300 servers", round, seen)
		}
	}
	if v := x.Commit(); v.Hash() != v.Recompute() {
		t.Error("the incremental hash is wrong")
	}
}
