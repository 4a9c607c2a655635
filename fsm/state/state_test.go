package state

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bmc/metal"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// filled has a rack, two projects and n servers, every third of them rented.
func filled(n int) *View {
	x := New().Begin()
	x.SetCommand(1, start)
	x.PutRack(&metal.Rack{ID: "rack-1", Name: "r1", Subnet: netip.MustParsePrefix("10.0.0.0/8")})
	x.PutProject(&metal.Project{ID: "prj-1", Name: "one"})
	x.PutProject(&metal.Project{ID: "prj-2", Name: "two"})
	v := x.Commit()
	for i := range n {
		x := v.Begin()
		x.SetCommand(v.Revision()+1, start.Add(time.Duration(i)*time.Second))
		s := machine(i)
		if i%3 == 0 {
			s.State = metal.StateActive
			s.Rental = &metal.Rental{Name: fmt.Sprintf("web-%d", i), Project: fmt.Sprintf("prj-%d", 1+i%2)}
		}
		x.PutServer(s)
		x.PutAddress(&metal.AddressAssignment{RackID: s.RackID, Address: s.Address, MAC: s.MACs[0], ServerID: s.ID})
		x.PutOperation(&metal.Operation{ID: fmt.Sprintf("op-%06d", i), ServerID: s.ID, State: metal.OperationSucceeded, Created: x.Meta().Time, Attempt: 1})
		x.Event(metal.Event{Kind: "server.created", ServerID: s.ID})
		v = x.Commit()
	}
	return v
}

func machine(i int) *metal.Server {
	a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	return &metal.Server{ID: fmt.Sprintf("srv-%06d", i), Name: fmt.Sprintf("r1-u%06d", i), RackID: "rack-1", Size: "small", State: metal.StateAvailable,
		MACs: []string{fmt.Sprintf("52:54:00:%02x:%02x:%02x", byte(i>>16), byte(i>>8), byte(i))}, Address: a,
		OOB: metal.OOB{Protocol: "ipmi", Address: fmt.Sprintf("10.9.%d.%d", i/250, i%250)}, Labels: map[string]string{"n": fmt.Sprint(i % 5)},
		Hardware: &metal.Hardware{Serial: fmt.Sprint(i), Disks: []metal.Disk{{Name: "vda", SizeBytes: 1 << 34}}}}
}

func TestViewsNeverChange(t *testing.T) {
	v := filled(50)
	hash, rows := v.Hash(), v.CountRows()
	s, _ := v.Server("srv-000007")
	x := v.Begin()
	x.SetCommand(1000, start)
	changed := *s
	changed.State = metal.StateRetired
	x.PutServer(&changed)
	x.DeleteServer("srv-000008")
	x.PutSize(&metal.Size{Name: "small"})
	if _, ok := x.Server("srv-000008"); ok {
		t.Error("a Txn does not see what it deleted")
	}
	next := x.Commit()
	if v.Hash() != hash || v.Recompute() != hash || v.CountRows() != rows {
		t.Error("the old view has changed")
	}
	if got, _ := v.Server("srv-000007"); got != s || got.State != metal.StateAvailable {
		t.Error("a row of the old view has changed")
	}
	if next.Hash() == hash || next.Hash() != next.Recompute() {
		t.Error("the new view's hash is wrong")
	}
	// Taking everything back gives the same rows, so the same sum, but for meta.
	v.Begin().DeleteServer("srv-000001") // dropped: no trace
	if v.Recompute() != hash {
		t.Error("a dropped Txn left a trace")
	}
}

// A dry run clones the trees of a View while the state machine clones them, and
// readers read. Meant for -race.
func TestConcurrentBegins(t *testing.T) {
	v := filled(300)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				x := v.Begin()
				x.SetCommand(v.Revision()+1, start)
				s := machine(1000 + g*100 + i)
				x.PutServer(s)
				x.Event(metal.Event{Kind: "x", ServerID: s.ID})
				if w := x.Commit(); w.CountServers("") != 301 || v.CountServers("") != 300 {
					t.Errorf("%d servers", w.CountServers(""))
				}
				for range v.Servers(ServerFilter{State: metal.StateActive}) {
					break
				}
			}
		})
	}
	wg.Wait()
}

func TestServers(t *testing.T) {
	v := filled(30)
	names := func(f ServerFilter) []string {
		var out []string
		for s := range v.Servers(f) {
			out = append(out, s.Name)
		}
		return out
	}
	all := names(ServerFilter{})
	if len(all) != 30 || !slices.IsSorted(all) {
		t.Fatalf("%v", all)
	}
	sel, err := metal.ParseSelector("n=3")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		f    ServerFilter
		want int
	}{
		{"rack", ServerFilter{RackID: "rack-1"}, 30}, {"no rack", ServerFilter{RackID: "rack-2"}, 0},
		{"state", ServerFilter{State: metal.StateActive}, 10}, {"rented", ServerFilter{Rented: true}, 10},
		{"project", ServerFilter{Project: "prj-1"}, 5}, {"labels", ServerFilter{Selector: sel}, 6},
		{"size", ServerFilter{Size: "large"}, 0}, {"after", ServerFilter{After: "r1-u000019"}, 10},
		{"project after", ServerFilter{Project: "prj-1", After: "r1-u000006"}, 3},
	} {
		if got := names(tt.f); len(got) != tt.want {
			t.Errorf("%s: %v, want %d", tt.name, got, tt.want)
		}
	}
	// Page by page, everything comes once.
	for _, f := range []ServerFilter{{}, {Project: "prj-2"}} {
		var paged []string
		for f := f; ; {
			n := 0
			for s := range v.Servers(f) {
				paged, f.After = append(paged, s.Name), s.Name
				if n++; n == 4 {
					break
				}
			}
			if n < 4 {
				break
			}
		}
		if !slices.Equal(paged, names(f)) {
			t.Errorf("pages: %v", paged)
		}
	}
}

func TestResolveServer(t *testing.T) {
	x := filled(20).Begin()
	x.SetCommand(500, start)
	for i, r := range []metal.Rental{{Name: "db", Project: "prj-1"}, {Name: "db", Project: "prj-2"}, {Name: "old", Project: "prj-1", Released: true},
		{Name: "r1-u000001", Project: "prj-2"}} {
		s := machine(1 + 3*i)
		s.Rental = &r
		x.PutServer(s)
	}
	v := x.Commit()
	for _, tt := range []struct {
		project string
		all     bool
		ref     string
		want    string
		code    metal.Code
		words   string
	}{
		{"prj-1", false, "db", "srv-000001", "", ""},
		{"prj-2", false, "db", "srv-000004", "", ""},
		{"prj-1", true, "db", "srv-000001", "", ""},
		{"", true, "db", "", metal.CodeAmbiguous, "srv-000001|srv-000004"},
		{"prj-1", false, "old", "srv-000007", "", ""},
		{"prj-1", false, "r1-u000001", "srv-000001", "", ""},
		{"prj-2", true, "r1-u000001", "srv-000010", "", ""}, // what one rents comes before what is in the inventory
		{"prj-1", false, "r1-u000002", "", metal.CodeNotFound, ""},
		{"prj-1", true, "r1-u000002", "srv-000002", "", ""},
		{"", true, "srv-000002", "srv-000002", "", ""},
		{"", true, "srv-00001", "", metal.CodeAmbiguous, "10 servers|and 2 more"},
		{"", true, "srv-000", "", metal.CodeAmbiguous, ""},
		{"prj-1", false, "srv-00000", "", metal.CodeAmbiguous, "srv-000001|srv-000006"},
		{"", true, "sr", "", metal.CodeNotFound, ""},
		{"prj-1", false, "wbe-6", "", metal.CodeNotFound, `did you mean "web-6"?`},
		{"prj-1", false, "nothing-like-it", "", metal.CodeNotFound, ""},
		{"", false, "db", "", metal.CodeNotFound, ""},
		{"prj-1", false, "", "", metal.CodeNotFound, ""},
	} {
		s, err := v.ResolveServer(tt.project, tt.all, tt.ref)
		if got := metal.CodeOf(err); got != tt.code {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		if err == nil && s.ID != tt.want {
			t.Errorf("%+v: got %s", tt, s.ID)
		}
		for _, w := range strings.Split(tt.words, "|") {
			if err != nil && !strings.Contains(err.Error(), w) {
				t.Errorf("%+v: %q lacks %q", tt, err, w)
			}
		}
	}
}

func TestResolveOthers(t *testing.T) {
	v := filled(3)
	if r, err := v.ResolveRack("rack-1"); err != nil || r.Name != "r1" {
		t.Error(r, err)
	}
	if _, err := v.ResolveProject("on"); metal.CodeOf(err) != metal.CodeNotFound || !strings.Contains(err.Error(), `"one"`) {
		t.Error(err)
	}
	if o, err := v.ResolveOperation("op-000001", nil); err != nil || o.ServerID != "srv-000001" {
		t.Error(o, err)
	}
	if _, err := v.ResolveOperation("op-0000", nil); metal.CodeOf(err) != metal.CodeAmbiguous {
		t.Error(err)
	}
	one := func(o *metal.Operation) bool { return o.ID == "op-000001" }
	if o, err := v.ResolveOperation("op-0000", one); err != nil || o.ID != "op-000001" {
		t.Error("what is not seen makes no prefix ambiguous:", err)
	}
	if _, err := v.ResolveOperation("op-000000", one); metal.CodeOf(err) != metal.CodeNotFound {
		t.Error(err)
	}
	if _, err := v.ResolveImage("prj-1", ""); metal.CodeOf(err) != metal.CodeNotFound {
		t.Error(err)
	}
}

// Of another project's keys no error says the name.
func TestForeignKeysAreNotNamed(t *testing.T) {
	x := New().Begin()
	x.SetCommand(1, start)
	for i, k := range []metal.SSHKey{{ID: "key-aaab", Name: "mine", Project: "prj-1"}, {ID: "key-aaac", Name: "theirs", Project: "prj-2"}} {
		k.Fingerprint = string(rune('a' + i))
		x.PutKey(&k)
	}
	v := x.Commit()
	for ref, code := range map[string]metal.Code{"their": metal.CodeNotFound, "key-aaac": metal.CodeNotFound, "key-aaa": metal.CodeAmbiguous} {
		if _, err := v.ResolveKey("prj-1", ref); metal.CodeOf(err) != code || strings.Contains(err.Error(), "theirs") {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := v.ResolveKey("prj-1", "mina"); err == nil || !strings.Contains(err.Error(), `"mine"`) {
		t.Errorf("one's own is suggested: %v", err)
	}
}

func TestImagesReplaceByName(t *testing.T) {
	x := New().Begin()
	for i, id := range []string{"cccccccc", "aaaaaaaa", "bbbbbbbb"} {
		x.SetCommand(uint64(i+1), start.Add(time.Duration(i)*time.Second))
		x.PutImage(&metal.Image{ID: id, Name: "debian", Project: "prj-1", Created: x.Meta().Time})
	}
	v := x.Commit()
	for ref, want := range map[string]string{"": "bbbbbbbb", "debian": "bbbbbbbb", "aaaaaa": "aaaaaaaa", "cccccccc": "cccccccc"} {
		if i, err := v.ResolveImage("prj-1", ref); err != nil || i.ID != want {
			t.Errorf("%q: %v, %v", ref, i, err)
		}
	}
	if _, err := v.ResolveImage("prj-2", "debian"); metal.CodeOf(err) != metal.CodeNotFound {
		t.Error("another project's image was found")
	}
}

func TestOperations(t *testing.T) {
	v := filled(25)
	var ids []string
	for o := range v.Operations("") {
		ids = append(ids, o.ID)
	}
	if len(ids) != 25 || ids[0] != "op-000024" || ids[24] != "op-000000" {
		t.Fatal(ids)
	}
	var rest []string
	for o := range v.Operations("op-000020") {
		rest = append(rest, o.ID)
	}
	if !slices.Equal(rest, ids[5:]) {
		t.Fatal(rest)
	}
	for range v.Operations("op-none") {
		t.Fatal("what follows nothing")
	}
	// Twenty are kept of a server; the open one always.
	x := v.Begin()
	x.SetCommand(900, start.Add(time.Hour))
	x.PutOperation(&metal.Operation{ID: "op-open", ServerID: "srv-000001", State: metal.OperationRunning, Created: start})
	for i := range 40 {
		x.PutOperation(&metal.Operation{ID: fmt.Sprintf("op-x%02d", i), ServerID: "srv-000001", State: metal.OperationFailed, Created: start.Add(time.Hour + time.Duration(i))})
	}
	v = x.Commit()
	kept := collect(v.OperationsOf("srv-000001"))
	if len(kept) != MaxServerOperations || kept[0].ID != "op-x39" || kept[len(kept)-1].ID != "op-open" {
		t.Fatalf("%d kept, %s to %s", len(kept), kept[0].ID, kept[len(kept)-1].ID)
	}
	if open := collect(v.OpenOperations("rack-1")); len(open) != 1 || open[0].ID != "op-open" {
		t.Fatal(open)
	}
	if o, ok := v.LastOperation("srv-000001"); !ok || o.ID != "op-x39" {
		t.Fatal(o)
	}
	if v.Hash() != v.Recompute() {
		t.Fatal("hash")
	}
}

func TestEventsAreBounded(t *testing.T) {
	x := filled(2).Begin()
	for i := range MaxServerEvents + 30 {
		x.SetCommand(uint64(100+i), start)
		x.Event(metal.Event{Kind: "a", ServerID: "srv-000001", Message: fmt.Sprint(i)})
		x.Event(metal.Event{Kind: "b"})
	}
	v := x.Commit()
	of := collect(v.EventsOf("srv-000001"))
	if len(of) != MaxServerEvents || of[0].Message != fmt.Sprint(MaxServerEvents+29) {
		t.Fatalf("%d, newest %q", len(of), of[0].Message)
	}
	if n := len(collect(v.EventsOf(""))); n != MaxServerEvents+30 {
		t.Fatalf("%d events of no server", n)
	}
	last := uint64(100 + MaxServerEvents + 29)
	if got := collect(v.Events(last-1, 1<<30)); len(got) != 2 || got[0].Revision != last {
		t.Fatalf("%+v", got)
	}
	if got := collect(v.Events(last, got0(v, last))); len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	if v.Hash() != v.Recompute() {
		t.Fatal("hash")
	}
}

// got0 is the index of a revision's first event.
func got0(v *View, rev uint64) int {
	for e := range v.Events(rev-1, 1<<30) {
		return e.Index
	}
	return -1
}

func TestAuditIsBounded(t *testing.T) {
	x := New().Begin()
	for i := range MaxAudit + 5 {
		x.SetCommand(uint64(i+1), start)
		x.Audit(metal.AuditEntry{Command: "c"}, []byte{byte(i)})
	}
	v := x.Commit()
	if n := len(collect(v.Audit(0))); n != MaxAudit || v.Meta().AuditCount != MaxAudit+5 {
		t.Fatalf("%d kept, %d counted", n, v.Meta().AuditCount)
	}
}

func TestChanges(t *testing.T) {
	v := filled(3)
	rev := v.Revision()
	x := v.Begin()
	x.SetCommand(rev+1, start)
	s, _ := x.Server("srv-000001")
	for range 3 { // three times in one command is one change
		c := *s
		x.PutServer(&c)
	}
	x.Event(metal.Event{ServerID: s.ID})
	x.DeleteServer("srv-000002")
	v = x.Commit()
	got, ok := v.Changes(rev)
	want := []Change{{Revision: rev + 1, Kind: KindServer, ID: "srv-000001", ServerID: "srv-000001"},
		{Revision: rev + 1, Kind: KindEvent, ServerID: "srv-000001"},
		{Revision: rev + 1, Kind: KindOperation, ID: "op-000002", ServerID: "srv-000002", Removed: true},
		{Revision: rev + 1, Kind: KindServer, ID: "srv-000002", ServerID: "srv-000002", Removed: true}}
	if !ok || !slices.Equal(got, want) {
		t.Fatalf("%v %+v", ok, got)
	}
	if got, ok := v.Changes(rev + 1); !ok || len(got) != 0 {
		t.Fatal("changes after the newest")
	}
	if _, ok := v.Changes(rev + 2); ok {
		t.Fatal("changes after what has not been")
	}
	// Who falls off the ring is told so, never served half.
	for i := range MaxChanges {
		x := v.Begin()
		x.SetCommand(rev+2+uint64(i), start)
		c := *s
		x.PutServer(&c)
		v = x.Commit()
	}
	if _, ok := v.Changes(rev); ok {
		t.Fatal("the ring still answers for what it has dropped")
	}
	if got, ok := v.Changes(rev + 1); !ok || len(got) != MaxChanges {
		t.Fatalf("%v, %d changes", ok, len(got))
	}
}

func TestRequestTime(t *testing.T) {
	for id, want := range map[string]int64{"0188bbd3-e5a4-7000-8000-000000000000": 0x0188bbd3e5a4, "": -1, "0188bbd3-e5a4-4000-8000-000000000000": -1,
		"0188BBD3-e5a4-7000-8000-000000000000": -1, "0188bbd3-e5a4-7000-8000-00000000000": -1, "0188bbd3xe5a4-7000-8000-000000000000": -1,
		"-188bbd3-e5a4-7000-8000-000000000000": -1} {
		if got := RequestTime(id); got != want {
			t.Errorf("%q: %d, want %d", id, got, want)
		}
	}
}

func TestSuggest(t *testing.T) {
	names := []string{"web-1", "web-2", "database", "r1-u01"}
	for ref, want := range map[string]string{"wbe-1": "web-1", "web1": "web-1", "databsae": "database", "web-3": "web-1", "xyz": "", "": ""} {
		if got := suggest(ref, names); got != want {
			t.Errorf("%q: %q, want %q", ref, got, want)
		}
	}
}

func BenchmarkClone(b *testing.B) {
	v := filled(40_000)
	b.ReportAllocs()
	for b.Loop() {
		v.Begin().Commit()
	}
}

func BenchmarkList500Of40000(b *testing.B) {
	v := filled(40_000)
	for b.Loop() {
		n := 0
		for range v.Servers(ServerFilter{After: "r1-u020000"}) {
			if n++; n == 500 {
				break
			}
		}
	}
}

func BenchmarkListByLabelOf40000(b *testing.B) {
	v := filled(40_000)
	sel, _ := metal.ParseSelector("n=none")
	for b.Loop() {
		for range v.Servers(ServerFilter{Selector: sel}) {
			b.Fatal("found")
		}
	}
}

func BenchmarkPutServer(b *testing.B) {
	v := filled(40_000)
	s := machine(20_000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		x := v.Begin()
		x.SetCommand(v.Revision()+1, start)
		c := *s
		x.PutServer(&c)
		v = x.Commit()
	}
}
