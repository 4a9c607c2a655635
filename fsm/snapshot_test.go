package fsm

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

func written(t testing.TB, f *FSM) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteSnapshot(&b, f.View()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSnapshotKeepsEverything(t *testing.T) {
	_, f := logOf(t, 11, 1200)
	b := written(t, f)
	info, err := InspectSnapshot(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	want := f.View().Hash()
	if info.Revision != f.CommandIndex() || info.ClusterID != "cl-1" || !bytes.Equal(info.StateHash, want[:]) || info.Rows["rack"] != 2 ||
		info.Rows["server"] == 0 || info.Rows["audit"] == 0 || info.Rows["meta"] != 1 || !info.Time.Equal(f.View().Meta().Time) {
		t.Fatalf("%+v", info)
	}
	g := through(t, f)
	if g.View().Hash() != want || g.CommandIndex() != f.CommandIndex() || g.View().CountRows() != f.View().CountRows() {
		t.Fatalf("restored: %s", difference(f.View(), g.View()))
	}
	if err := sound(g.View()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(written(t, g), b) {
		t.Fatal("a snapshot of the restored state is another")
	}
}

// Rows that a restart hid were rqlite's bug 2747: what the indexes find must be
// there after a restore, too.
func TestSnapshotKeepsIndexes(t *testing.T) {
	w := deployed(t)
	g := through(t, w.f)
	v := g.View()
	for _, name := range []string{"web-1", "r1-u00000", "srv-00000", "srv-000"} {
		if s, err := v.ResolveServer(prj, true, name); err != nil || s.ID != "srv-00000" {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	for o := range v.OperationsOf("srv-00000") {
		if _, err := v.ResolveOperation(o.ID, nil); err != nil {
			t.Error(err)
		}
	}
	if v.CountRentals(prj) != 1 || v.CountServers(metal.StateActive) != 1 {
		t.Error("the counts are lost")
	}
	if _, err := v.ResolveKey(prj, "ann"); err != nil {
		t.Error(err)
	}
	if _, ok := v.Changes(v.Revision()); !ok {
		t.Error("a restored state cannot be watched from now on")
	}
	if _, ok := v.Changes(v.Revision() - 1); ok {
		t.Error("a restored state claims to know what changed before")
	}
}

func TestSnapshotRefusesDamage(t *testing.T) {
	w := deployed(t)
	good := written(t, w.f)
	f := New(Options{})
	before := f.View()
	for i := 0; i < len(good); i++ {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if err := f.Restore(io.NopCloser(bytes.NewReader(bad))); err == nil {
			t.Fatalf("bit %d of byte %d of %d was flipped and the snapshot accepted", i%8, i, len(good))
		}
	}
	for _, n := range []int{0, 1, 7, 8, 40, len(good) / 2, len(good) - 33, len(good) - 32, len(good) - 1} {
		if _, err := InspectSnapshot(bytes.NewReader(good[:n])); err == nil {
			t.Fatalf("a snapshot cut at byte %d was accepted", n)
		}
	}
	if _, err := InspectSnapshot(bytes.NewReader(append(bytes.Clone(good), 0))); err == nil {
		t.Fatal("a snapshot with a byte more was accepted")
	}
	if f.View() != before {
		t.Fatal("a refused snapshot changed the state")
	}
	if _, err := InspectSnapshot(strings.NewReader("hello")); err == nil || !strings.Contains(err.Error(), "not a snapshot") {
		t.Fatal(err)
	}
	failing := io.MultiReader(bytes.NewReader(good[:len(good)/2]), errReader{})
	if _, err := InspectSnapshot(failing); !errors.Is(err, errDisk) {
		t.Fatalf("a read error came back as %v", err)
	}
}

var errDisk = errors.New("disk")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errDisk }

type sink struct {
	bytes.Buffer
	fail              bool
	closed, cancelled bool
}

func (s *sink) Write(p []byte) (int, error) {
	if s.fail {
		return 0, errDisk
	}
	return s.Buffer.Write(p)
}
func (s *sink) ID() string    { return "1" }
func (s *sink) Close() error  { s.closed = true; return nil }
func (s *sink) Cancel() error { s.cancelled = true; return nil }

func TestPersist(t *testing.T) {
	w := deployed(t)
	snap, err := w.f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	// Apply goes on before the snapshot is written; it must not be in it.
	want := w.f.CommandIndex()
	w.ok(cDestroy("op-d", "srv-00000"))
	good := new(sink)
	if err := snap.Persist(good); err != nil || !good.closed || good.cancelled {
		t.Fatal(err)
	}
	info, err := InspectSnapshot(&good.Buffer)
	if err != nil || info.Revision != want {
		t.Fatalf("%+v %v", info, err)
	}
	bad := &sink{fail: true}
	if err := snap.Persist(bad); !errors.Is(err, errDisk) || bad.closed || !bad.cancelled {
		t.Fatalf("%v, closed %v, cancelled %v", err, bad.closed, bad.cancelled)
	}
	snap.Release()
}

// No password, user data or token is in a snapshot but sealed or hashed.
func TestNoSecretInSnapshot(t *testing.T) {
	w := available(t, 1)
	c := cCreate("op-c", "web-1")
	c.GetCreateServer().UserData = []byte("sealed-user-data")
	w.ok(c)
	for row := range w.f.View().Rows() {
		if tok := row.GetToken(); tok != nil && len(tok.GetHash()) != 32 {
			t.Errorf("token %s is not a hash", tok.GetId())
		}
		if e := row.GetEvent(); e != nil && (strings.Contains(e.GetMessage(), "sealed") || strings.Contains(e.GetMessage(), "password")) {
			t.Errorf("event %q", e.GetMessage())
		}
	}
}

func FuzzSnapshot(f *testing.F) {
	w := deployed(f)
	good := written(f, w.f)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(magic))
	f.Add(written(f, New(Options{})))
	f.Fuzz(func(t *testing.T, b []byte) {
		g := New(Options{})
		if err := g.Restore(io.NopCloser(bytes.NewReader(b))); err != nil {
			return
		}
		// What was accepted is a state like any other.
		v := g.View()
		if v.Hash() != v.Recompute() {
			t.Fatal("the hash of an accepted snapshot is wrong")
		}
		written(t, g)
	})
}

// FuzzRows goes behind the checksum, which a fuzzer cannot guess: the rows
// themselves, as a hostile but well-formed backup would hold them.
func FuzzRows(f *testing.F) {
	w := deployed(f)
	var plain bytes.Buffer
	if err := writeRows(&plain, w.f.View()); err != nil {
		f.Fatal(err)
	}
	f.Add(plain.Bytes())
	plain.Reset()
	if err := writeRows(&plain, New(Options{}).View()); err != nil {
		f.Fatal(err)
	}
	f.Add(plain.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		v, _, err := readRows(newReader(b))
		if err != nil {
			return
		}
		if v.Hash() != v.Recompute() {
			t.Fatal("the hash of accepted rows is wrong")
		}
	})
}

// FuzzCommand feeds whatever decodes to a state with servers in it: refused or
// accepted, it must neither panic nor break an invariant of the tables.
func FuzzCommand(f *testing.F) {
	log, _ := logOf(f, 1, 150)
	for i, b := range log {
		if i%5 == 0 {
			f.Add(b)
		}
	}
	base := deployed(f)
	if err := sound(base.f.View()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Decode(b)
		if err != nil {
			return
		}
		v, r := run(base.f.View(), base.idx+1, b, c)
		if r == nil || r.Err != nil && (r.Err.Code == "" || r.Value != nil) {
			t.Fatalf("%+v", r)
		}
		if v.Hash() != v.Recompute() {
			t.Fatalf("%s: the incremental hash is wrong", Name(c))
		}
		again, _ := run(base.f.View(), base.idx+1, b, c)
		if again.Hash() != v.Hash() {
			t.Fatalf("%s: twice applied to one state it made two", Name(c))
		}
		g := New(Options{})
		if err := g.Restore(io.NopCloser(bytes.NewReader(writtenView(t, v)))); err != nil {
			t.Fatalf("%s made a state that cannot be restored: %v", Name(c), err)
		}
	})
}

func BenchmarkApply(b *testing.B) {
	w := big(b, 40_000)
	c := &logpb.Command{Command: &logpb.Command_Observe{Observe: &logpb.Observe{RackId: rack1, Observations: []*logpb.Observation{{ServerId: "srv-00007", Power: "on"}}}}}
	data := make([][]byte, 2)
	for i, p := range []string{"on", "off"} {
		c.Header = &logpb.Header{Time: w.now.UnixNano(), Principal: "agent"}
		c.GetObserve().Observations[0].Power = p
		var err error
		if data[i], err = Encode(c); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		w.idx++
		w.f.Apply(&raft.Log{Index: w.idx, Type: raft.LogCommand, Data: data[i%2]})
	}
}

// BenchmarkSameMachine is the question that each report of a machine nobody knows asks.
func BenchmarkSameMachine(b *testing.B) {
	w := big(b, 40_000)
	x := w.f.View().Begin()
	for _, s := range slices.Collect(x.Servers(state.ServerFilter{})) {
		known := *s
		known.Serial, known.UUID = "SN-"+s.ID, fmt.Sprintf("%08x-1111-2222-3333-444444444444", len(s.ID))
		x.PutServer(&known)
	}
	a := &applier{Txn: x}
	id := metal.Identity{Serial: "SN-srv-39999", UUID: "00000009-1111-2222-3333-444444444444", MACs: []string{"52:54:00:ff:ff:ff"}}
	if s := a.sameMachine(id); s == nil || s.ID != "srv-39999" {
		b.Fatalf("found %+v", s)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		a.sameMachine(id)
	}
}

// BenchmarkReplay is what a restart does with its log: keys that come and go, 64
// commands a batch.
func BenchmarkReplay(b *testing.B) {
	w := big(b, 1000)
	var batches [][]*raft.Log
	for n := range b.N/64 + 1 {
		var batch []*raft.Log
		for i := range 64 {
			w.idx++
			name := fmt.Sprintf("bench-%d", i)
			c := &logpb.Command{Header: &logpb.Header{Time: w.now.UnixNano(), Principal: "ann", RequestMac: make([]byte, 32),
				RequestId: uuid7(w.now.Add(time.Duration(w.idx) * time.Millisecond))}}
			if n%2 == 0 {
				line := "ssh-ed25519 " + base64.StdEncoding.EncodeToString(append([]byte("\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"), fmt.Appendf(nil, "%032d", i)...))
				c.Command = &logpb.Command_AddKey{AddKey: &logpb.AddKey{Key: &logpb.SSHKey{Id: name, Name: name, Project: prj, PublicKey: line}}}
			} else {
				c.Command = &logpb.Command_RemoveKey{RemoveKey: &logpb.RemoveKey{Project: prj, KeyId: name}}
			}
			data, err := Encode(c)
			if err != nil {
				b.Fatal(err)
			}
			batch = append(batch, &raft.Log{Index: w.idx, Type: raft.LogCommand, Data: data})
		}
		batches = append(batches, batch)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for _, batch := range batches {
		for _, r := range w.f.ApplyBatch(batch) {
			if r := r.(*Result); r.Err != nil {
				b.Fatal(r.Err)
			}
		}
	}
}

func BenchmarkSnapshot(b *testing.B) {
	w := big(b, 40_000)
	b.ResetTimer()
	for range b.N {
		var n counting
		if err := WriteSnapshot(&n, w.f.View()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(n), "bytes")
	}
}

func BenchmarkRestore(b *testing.B) {
	data := written(b, big(b, 40_000).f)
	b.ResetTimer()
	for range b.N {
		if _, err := InspectSnapshot(bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	}
}

type counting int

func (c *counting) Write(p []byte) (int, error) { *c += counting(len(p)); return len(p), nil }

// big has n servers being enrolled.
func big(b testing.TB, n int) *world {
	w := furnished(b, 0)
	for i := 0; i < n; i += 5000 {
		inv := &logpb.ApplyInventory{}
		for j := i; j < min(i+5000, n); j++ {
			inv.Servers = append(inv.Servers, serverInput(j))
		}
		w.ok(cInventory(inv))
	}
	return w
}
