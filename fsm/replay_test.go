package fsm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
)

type seeded struct{ r *rand.Rand }

func (s seeded) n(_ string, below int) int { return s.r.IntN(below) }

type drawn struct{ t *rapid.T }

func (d drawn) n(label string, below int) int { return rapid.IntRange(0, below-1).Draw(d.t, label) }

// logOf makes a log of commands, each chosen for the state before it.
func logOf(t testing.TB, seed uint64, n int) ([][]byte, *FSM) {
	t.Helper()
	k := &walker{c: seeded{rand.New(rand.NewPCG(seed, 7))}, now: epoch0}
	f := New(Options{})
	var log [][]byte
	feed := func(c *logpb.Command) {
		if c.Header == nil {
			c.Header = &logpb.Header{Time: epoch0.UnixNano(), Principal: "root"}
		}
		b, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, b)
		f.Apply(&raft.Log{Index: uint64(len(log)), Type: raft.LogCommand, Data: b})
	}
	for _, c := range k.prelude() {
		feed(c)
	}
	for range n {
		feed(k.step(f.View()))
	}
	return log, f
}

// The same log gives the same state: one by one or in batches, now or at any
// other time of the wall's clock, with other map seeds (every range over a map
// in Go draws its own), in one go or through a snapshot at any point.
func TestReplay(t *testing.T) {
	for seed := range uint64(6) {
		log, first := logOf(t, seed, 1500)
		if err := sound(first.View()); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		r := rand.New(rand.NewPCG(seed, 8))
		second := New(Options{})
		cut := r.IntN(len(log))
		for i := 0; i < len(log); {
			if i >= cut && second != nil && cut >= 0 {
				second, cut = through(t, second), -1
			}
			n := min(1+r.IntN(20), len(log)-i)
			var batch []*raft.Log
			for j := range n {
				batch = append(batch, &raft.Log{Index: uint64(i + j + 1), Type: raft.LogCommand, Data: log[i+j], AppendedAt: time.Unix(r.Int64N(1e9), 0)})
			}
			second.ApplyBatch(batch)
			i += n
		}
		if a, b := first.View().Hash(), second.View().Hash(); a != b {
			t.Fatalf("seed %d: hashes differ: %x %x\n%s", seed, a, b, difference(first.View(), second.View()))
		}
		if second.View().Hash() != second.View().Recompute() {
			t.Fatalf("seed %d: the incremental hash is wrong after batches", seed)
		}
		if err := sound(second.View()); err != nil {
			t.Fatalf("seed %d, in batches: %v", seed, err)
		}
		if first.CommandIndex() != second.CommandIndex() {
			t.Fatalf("seed %d: command index %d and %d", seed, first.CommandIndex(), second.CommandIndex())
		}
	}
}

// through writes a snapshot and restores it into a new state machine.
func through(t testing.TB, f *FSM) *FSM {
	t.Helper()
	var b bytes.Buffer
	if err := WriteSnapshot(&b, f.View()); err != nil {
		t.Fatal(err)
	}
	g := New(Options{})
	if err := g.Restore(io.NopCloser(&b)); err != nil {
		t.Fatal(err)
	}
	return g
}

func difference(a, b *state.View) string {
	ra, rb := collect(a.Rows()), collect(b.Rows())
	for i := range min(len(ra), len(rb)) {
		if !proto.Equal(ra[i], rb[i]) {
			return ra[i].String() + "\n" + rb[i].String()
		}
	}
	return "one has more rows"
}

// Random sequences, shrunk by rapid when an invariant breaks. Each View must
// still be what it was when everything is over.
func TestRandomCommands(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := &walker{c: drawn{t}, now: epoch0}
		v := state.New()
		type moment struct {
			v *state.View
			h state.Hash
		}
		var past []moment
		index := uint64(0)
		apply := func(c *logpb.Command) {
			index++
			if c.Header == nil {
				c.Header = &logpb.Header{Time: epoch0.UnixNano(), Principal: "root"}
			}
			raw, err := Encode(c)
			if err != nil {
				t.Fatal(err)
			}
			before := v
			var r *Result
			v, r = run(v, index, raw, c)
			if r.Replayed && before.CountRows()+1 != v.CountRows() && c.GetReportStep() == nil {
				t.Fatalf("a replay of %s changed more than the audit", Name(c))
			}
			past = append(past, moment{before, before.Hash()})
		}
		for _, c := range k.prelude() {
			apply(c)
		}
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			apply(k.step(v))
			if err := sound(v); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range past {
			if m.v.Recompute() != m.h || m.v.Hash() != m.h {
				t.Fatal("a view has changed after the fact")
			}
		}
	})
}

func TestOneTenant(t *testing.T) {
	for seed := range uint64(4) {
		log, _ := logOf(t, seed+100, 800)
		f := New(Options{})
		tenant, off := map[string]string{}, map[string]bool{}
		for i, b := range log {
			f.Apply(&raft.Log{Index: uint64(i + 1), Type: raft.LogCommand, Data: b})
			c, _ := Decode(b)
			for s := range f.View().Servers(state.ServerFilter{}) {
				if m := c.GetReportStep(); m != nil && s.Operation == m.GetOperationId() && m.GetStep() == "power-off" && m.GetPhase() == phaseDone {
					off[s.ID] = true
				}
				is := ""
				if s.Rental != nil {
					is = s.Rental.Project + "/" + s.Rental.Name + s.Rental.Since.String()
				}
				if was := tenant[s.ID]; was != is {
					if was != "" && is != "" {
						t.Fatalf("%s went from %s to %s at once", s.ID, was, is)
					}
					if was != "" && !off[s.ID] {
						t.Fatalf("%s lost its tenant before it was read as off", s.ID)
					}
					tenant[s.ID], off[s.ID] = is, false
				}
			}
		}
	}
}

func TestBatchPublishesOnce(t *testing.T) {
	log, want := logOf(t, 3, 50)
	f := New(Options{})
	changed := f.Changed()
	var batch []*raft.Log
	for i, b := range log {
		batch = append(batch, &raft.Log{Index: uint64(i + 1), Type: raft.LogCommand, Data: b})
	}
	batch = append(batch, &raft.Log{Index: 9999, Type: raft.LogConfiguration})
	results := f.ApplyBatch(batch)
	if len(results) != len(batch) || results[len(results)-1] != nil {
		t.Fatalf("%d results for %d entries", len(results), len(batch))
	}
	select {
	case <-changed:
	default:
		t.Fatal("nobody was woken")
	}
	if f.CommandIndex() != uint64(len(log)) || f.View().Hash() != want.View().Hash() {
		t.Fatalf("command index %d", f.CommandIndex())
	}
}

func TestUndecodableStopsTheNode(t *testing.T) {
	unknown := []byte{0x0a, 0x00, 0xa2, 0x3f, 0x00} // a header, and field 1012
	nested, err := Encode(&logpb.Command{Header: &logpb.Header{}, Command: &logpb.Command_ForgetServer{ForgetServer: &logpb.ForgetServer{Server: ref("x")}}})
	if err != nil {
		t.Fatal(err)
	}
	c := new(logpb.Command)
	if err := proto.Unmarshal(nested, c); err != nil {
		t.Fatal(err)
	}
	c.GetForgetServer().Server.ProtoReflect().SetUnknown([]byte{0xf8, 0x3f, 0x01})
	if nested, err = proto.Marshal(c); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"damaged": {0xff}, "empty": {}, "unknown command": unknown, "unknown field inside": nested} {
		t.Run(name, func(t *testing.T) {
			var stopped error
			f := New(Options{Fatal: func(err error) { stopped = err }})
			f.Apply(&raft.Log{Index: 5, Type: raft.LogCommand, Data: data})
			if stopped == nil || f.CommandIndex() != 0 {
				t.Fatalf("stopped with %v at index %d", stopped, f.CommandIndex())
			}
			t.Log(stopped)
		})
	}
}

func TestEveryCommandHasACase(t *testing.T) {
	v, _ := run(state.New(), 1, nil, cInit())
	fields := new(logpb.Command).ProtoReflect().Descriptor().Oneofs().ByName("command").Fields()
	for i := range fields.Len() {
		c := new(logpb.Command)
		c.ProtoReflect().Set(fields.Get(i), c.ProtoReflect().NewField(fields.Get(i)))
		if Name(c) != string(fields.Get(i).Name()) {
			t.Errorf("name of %s is %s", fields.Get(i).Name(), Name(c))
		}
		Plan(v, c) // an empty command must not panic
	}
}

func TestWaits(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 2)
	go func() { got <- w.f.WaitCommandIndex(ctx, 2) }()
	go func() {
		v, err := w.f.Wait(ctx, 1)
		if err == nil && v.Revision() != 2 {
			err = errors.New("an old view")
		}
		got <- err
	}()
	w.ok(cInit())
	w.ok(cToken("tok-1", "join-node"))
	for range 2 {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
	go func() { _, err := w.f.Wait(ctx, 2); got <- err }()
	go func() { got <- w.f.WaitCommandIndex(ctx, 3) }()
	cancel()
	for range 2 {
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	// A restore wakes those who wait, though the revision is no higher.
	var b bytes.Buffer
	if err := WriteSnapshot(&b, w.f.View()); err != nil {
		t.Fatal(err)
	}
	woken := make(chan error, 1)
	changed := w.f.Changed()
	started := make(chan struct{})
	go func() { close(started); _, err := w.f.Wait(context.Background(), 2); woken <- err }()
	<-started
	// Wait may not have looked yet: restore until it has been woken.
	for done := false; !done; {
		if err := w.f.Restore(io.NopCloser(bytes.NewReader(b.Bytes()))); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-woken:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
	}
	<-changed
	if _, ok := w.f.View().Changes(1); ok {
		t.Fatal("the ring reaches back beyond a restore")
	}
}
