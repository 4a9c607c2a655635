package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// ends runs an agent until it ends by itself.
func (b *bench) ends() error {
	b.t.Helper()
	a, err := New(b.cfg, slog.New(slog.NewTextHandler(b.logs, nil)))
	if err != nil {
		b.t.Fatal(err)
	}
	a.seams.netboot, a.seams.fetcher = b.fakeNetboot, b.image
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	err = a.Run(ctx)
	if ctx.Err() != nil {
		b.t.Error("it goes on")
	}
	return err
}

// An agent that an operator has removed stops when the nodes say so, and does so
// again when it is started again; one node of three is not believed alone.
func TestRemovedAgentStops(t *testing.T) {
	b := newBench(t, 3)
	refuse := func(nodes ...int) {
		b.cluster.edit(func() {
			for _, i := range nodes {
				b.cluster.nodes[i].stranger = true
			}
		})
	}
	stop := b.run()
	b.eventually("all nodes are followed", func() bool { return b.follows() == 3 })
	refuse(0)
	b.eventually("one node refuses", func() bool { return b.follows() == 2 })
	b.eventually("it has said so", func() bool { return b.refusals() == 1 })
	select {
	case <-b.agent.admission.removed:
		t.Fatal("one node was believed")
	default:
	}
	stop()
	refuse(1, 2)
	for range 2 { // the second as a start after the first
		if err := b.ends(); !errors.Is(err, errRemoved) || metal.CodeOf(err) != metal.CodeWrongState {
			t.Errorf("it ends with %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(b.cfg.DataDir, "racks/r1.json")); err != nil {
		t.Error(err) // a person may look
	}
}

// A removed agent whose disk hangs is silent at once, and ends without its disk.
func TestRemovedAgentWithAHungDisk(t *testing.T) {
	b := newBench(t, 3)
	a, done := b.begin(t.Context())
	a.seams.stop = 5 * time.Second
	b.eventually("all nodes are followed", func() bool { return b.follows() == 3 })
	// What is read of a pipe that nobody writes to comes as soon as from a disk that
	// hangs. The goroutine that waits there stays until the test's process ends.
	journal := filepath.Join(b.cfg.DataDir, "journal", testOp+string(metal.KindPower)+".1.journal")
	if err := syscall.Mkfifo(journal, 0o600); err != nil {
		t.Fatal(err)
	}
	b.assign(metal.KindPower)
	b.eventually("the operation waits for its journal", func() bool { return a.ops.Busy(testServer) })
	answers := func() bool {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(b.cfg.HTTPPort)))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	if !answers() {
		t.Fatal("machines are not answered")
	}
	b.cluster.edit(func() {
		for _, n := range b.cluster.nodes {
			n.stranger = true
		}
	})
	<-a.admission.removed
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if !b.heard(ctx, time.Second, func() bool { return !answers() }) {
		t.Error("machines are answered by an agent that was removed")
	}
	if err := <-done; !errors.Is(err, errRemoved) || !errors.Is(err, errDiskHangs) {
		t.Errorf("it ends with %v", err)
	}
}

// A cluster that was restored from a backup of before an agent joined says that it
// is no member. It goes on, from its disk too: its machines depend on it, and what it
// knows is what the racks are compared with.
func TestAgentYoungerThanTheBackup(t *testing.T) {
	b := newBench(t, 3)
	stop := b.run()
	b.eventually("all nodes are followed", func() bool { return b.follows() == 3 })
	b.cluster.edit(func() {
		b.cluster.rack = proto.CloneOf(b.cluster.rack) // the old one is on its way
		b.cluster.rack.Generation = 1
		for _, n := range b.cluster.nodes {
			n.stranger = true
		}
	})
	for i := range 2 {
		b.eventually("an operator is told", func() bool { return strings.Count(b.logs.String(), youngerThan) == i+1 })
		b.eventually("no stream lives", func() bool { return b.follows() == 0 })
		m, ok := b.agent.racks[0].Lookup(testMAC)
		if !ok || m.Authoritative || !m.Boot.Late || m.Boot.Silent {
			t.Errorf("run %d: its machine gets %+v, %v", i, m, ok)
		}
		if b.refusals() != 0 {
			t.Errorf("run %d: a refusal counts", i)
		}
		stop()
		if i == 0 {
			stop = b.run()
		}
	}
}

func TestRefusedByGeneration(t *testing.T) {
	said := func(g uint64) *uint64 { return &g }
	for _, tt := range []struct {
		name      string
		spec      *agentv1.RackSpec
		said      *uint64
		want      int // refusals that count
		wantDoubt bool
	}{
		{"the one that is known", &agentv1.RackSpec{Generation: 3}, said(3), 1, false},
		{"the first of all", &agentv1.RackSpec{}, said(0), 1, false},
		{"a backup's", &agentv1.RackSpec{Generation: 3}, said(4), 0, true},
		{"of the past", &agentv1.RackSpec{Generation: 3}, said(2), 0, false},
		{"none, of older software", &agentv1.RackSpec{Generation: 3}, nil, 1, false},
		{"a backup's, to one that knows nothing", nil, said(4), 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &Agent{racks: []*rack{{spec: tt.spec}}, nodes: &nodes{}, admission: newAdmission(), log: slog.New(slog.DiscardHandler)}
			a.refused(&node{addr: "cp1"}, &metal.Error{Code: metal.CodeNotMember, Generation: tt.said})
			if got, doubt := len(a.admission.refused), !a.admission.newer.IsZero(); got != tt.want || doubt != tt.wantDoubt {
				t.Errorf("%d refusals, in doubt: %t", got, doubt)
			}
		})
	}
}

// While a node speaks of a backup, the others' word is not enough, and the log has it
// once a minute.
func TestAdmissionInDoubt(t *testing.T) {
	now := time.Unix(0, 0)
	m := newAdmission()
	m.now = func() time.Time { return now }
	told := 0
	for range 24 {
		now = now.Add(5 * time.Second)
		if m.restored() {
			told++
		}
		m.refuse("cp1", 3)
		m.refuse("cp2", 3)
	}
	select {
	case <-m.removed:
		t.Error("it is removed")
	default:
	}
	if told != 2 {
		t.Errorf("told %d times in two minutes", told)
	}
	now = now.Add(2 * refusalFor)
	m.refuse("cp1", 3)
	m.refuse("cp2", 3)
	select {
	case <-m.removed:
	default:
		t.Error("it goes on for ever")
	}
}

func (b *bench) follows() int {
	m := b.agent.admission
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.follows)
}

func (b *bench) refusals() int {
	m := b.agent.admission
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.refused)
}

func TestAdmission(t *testing.T) {
	type word struct {
		after time.Duration
		node  string
		yes   bool
	}
	var one []word
	for range 8 {
		one = append(one, word{5 * time.Second, "cp1", false})
	}
	for _, tt := range []struct {
		name  string
		words []word
		want  bool
	}{
		{"one of three", []word{{0, "cp1", false}}, false},
		{"one of three, twice", []word{{0, "cp1", false}, {time.Second, "cp1", false}}, false},
		{"two of three", []word{{0, "cp1", false}, {time.Second, "cp2", false}}, true},
		{"two of three, while the third has taken us", []word{{0, "cp3", true}, {0, "cp1", false}, {time.Second, "cp2", false}}, false},
		{"two of three, at different times", []word{{0, "cp1", false}, {time.Minute, "cp2", false}}, false},
		{"the only one that answers, for long", one, true},
		{"the only one that answers, with pauses", []word{{0, "cp1", false}, {time.Minute, "cp1", false}, {time.Minute, "cp1", false}}, false},
		{"the only one that answers, after another had taken us", append(append([]word{}, one[:5]...), word{0, "cp2", true}, word{time.Second, "cp1", false}), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(0, 0)
			m := newAdmission()
			m.now = func() time.Time { return now }
			for _, w := range tt.words {
				now = now.Add(w.after)
				if w.yes {
					m.follow(w.node)
				} else {
					m.refuse(w.node, 3)
				}
			}
			got := false
			select {
			case <-m.removed:
				got = true
			default:
			}
			if got != tt.want {
				t.Errorf("removed: %t, want %t", got, tt.want)
			}
		})
	}
}
