package fsm

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bmc/fsm/logpb"
	"bmc/metal"
)

func cSilent(racks ...*logpb.Silence) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_MarkSilence{MarkSilence: &logpb.MarkSilence{Racks: racks}}}
}

func cCleared(rack string, epoch uint64) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_ClearSilence{ClearSilence: &logpb.ClearSilence{RackId: rack, Epoch: epoch}}}
}

func TestMarksOfSilence(t *testing.T) {
	w := available(t, 1)
	lease := func() metal.Lease {
		r, _ := w.f.View().Rack(rack1)
		return r.Lease
	}
	epoch := lease().Epoch
	of := func(epoch uint64, d time.Duration) *logpb.Silence {
		return &logpb.Silence{RackId: rack1, Epoch: epoch, Silent: int64(d)}
	}
	for _, tt := range []struct {
		name string
		cmd  *logpb.Command
		want time.Duration
	}{
		{"another epoch's", cSilent(of(epoch-1, time.Second)), 0},
		{"one, beside what is not there", cSilent(&logpb.Silence{RackId: "rack-none", Epoch: 1, Silent: 1}, of(epoch, 7*time.Second)), 7 * time.Second},
		{"less than is known", cSilent(of(epoch, 5*time.Second)), 7 * time.Second},
		{"more", cSilent(of(epoch, 12*time.Second)), 12 * time.Second},
		{"a renewal", cCleared(rack1, epoch), 0},
		{"a renewal without a mark", cCleared(rack1, epoch), 0},
		{"silent again", cSilent(of(epoch, 7*time.Second)), 7 * time.Second},
		{"another holder", cGrant(rack1, agt1, epoch), 0},
		{"a late mark", cSilent(of(epoch, 16*time.Second)), 0},
	} {
		w.ok(tt.cmd)
		if got := lease().Silent; got != tt.want {
			t.Fatalf("%s: silent for %s, want %s", tt.name, got, tt.want)
		}
	}
	w.refused(cCleared(rack1, epoch), metal.CodeStaleEpoch)
	w.refused(cCleared("rack-none", epoch), metal.CodeNotFound)
	if l := lease(); l.Epoch != epoch+1 || l.Agent != agt1 {
		t.Errorf("marks changed the lease: %+v", l)
	}
}

// cTerm says in which term a command was built.
func cTerm(term uint64, c *logpb.Command) *logpb.Command {
	c = proto.CloneOf(c)
	if c.Header == nil {
		c.Header = &logpb.Header{}
	}
	c.Header.Term = term
	return c
}

// A leader leads, is followed by another, and leads again. What it decided in its first
// term, and raft takes from its queue in the second, does not count: the leader between
// may have seen the holder of a lease that it took for silent.
func TestCommandsOfAnEarlierTerm(t *testing.T) {
	w := available(t, 1)
	rack := func() metal.Rack { r, _ := w.f.View().Rack(rack1); return *r }
	was := rack()
	silent := cSilent(&logpb.Silence{RackId: rack1, Epoch: was.Lease.Epoch, Silent: int64(16 * time.Second)})
	for _, c := range []*logpb.Command{silent, cGrant(rack1, agt1, was.Lease.Epoch), cCleared(rack1, was.Lease.Epoch)} {
		w.term = 7
		for _, term := range []uint64{5, 8} {
			w.refused(cTerm(term, c), metal.CodeNoLeader)
		}
	}
	if r := rack(); r.Lease != was.Lease {
		t.Errorf("the lease has changed: %+v", r.Lease)
	}
	w.ok(cTerm(7, silent))
	w.term = 9
	w.ok(cTerm(0, cCleared(rack1, was.Lease.Epoch))) // of who does not say a term
	w.ok(cTerm(9, silent))
	if r := rack(); r.Lease.Silent != 16*time.Second {
		t.Errorf("not marked in its own term: %+v", r.Lease)
	}
}

// A mark is part of a snapshot, and of no backup: what is put back may be older
// than a renewal.
func TestBackupHasNoMarks(t *testing.T) {
	w := available(t, 1)
	r, _ := w.f.View().Rack(rack1)
	w.ok(cSilent(&logpb.Silence{RackId: rack1, Epoch: r.Lease.Epoch, Silent: int64(time.Second)}))
	for _, tt := range []struct {
		name string
		want time.Duration
	}{{"snapshot", time.Second}, {"backup", 0}} {
		v := w.f.View()
		if tt.name == "backup" {
			v = Backup(v)
		}
		var b bytes.Buffer
		if err := WriteSnapshot(&b, v); err != nil {
			t.Fatal(err)
		}
		got, _, err := LoadSnapshot(&b)
		if err != nil {
			t.Fatal(err)
		}
		if r, _ := got.Rack(rack1); r.Lease.Silent != tt.want || r.Lease.Agent != agt1 || got.Revision() != w.f.View().Revision() {
			t.Errorf("%s: %+v", tt.name, r.Lease)
		}
	}
	if r, _ := w.f.View().Rack(rack1); r.Lease.Silent != time.Second {
		t.Error("a backup changed the state")
	}
}
