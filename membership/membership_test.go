package membership

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"bmc/internal/freeport"
)

func open(t *testing.T, kind, id, bind string, key []byte, seeds ...string) *Membership {
	t.Helper()
	l, err := Open(Config{Self: Member{Kind: kind, ID: id, Name: id, Address: "10.0.0.1:7443", Racks: []string{"r1"}, Version: "v1"},
		Bind: bind, Key: key, Seeds: func() []string { return seeds }, RejoinEvery: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func await(t *testing.T, l *Membership, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		changed := l.Changed()
		if cond() {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s: members %+v", what, l.Members())
		}
	}
}

func TestMembership(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	a, b := freeport.Addr(t), freeport.Addr(t)
	one := open(t, KindNode, "node-a", a, key)
	defer one.Close()
	two := open(t, KindAgent, "agt-b", b, key, a)
	await(t, one, "the agent comes", func() bool { return one.Alive("agt-b") })
	await(t, two, "the node comes", func() bool { return two.Alive("node-a") })
	if got := two.Nodes(); len(got) != 1 || got[0] != "10.0.0.1:7443" {
		t.Fatalf("nodes %v", got)
	}
	for _, m := range one.Members() {
		if m.ID == "agt-b" && (m.Kind != KindAgent || m.Gossip != b || m.Version != "v1" || len(m.Racks) != 1) {
			t.Fatalf("metadata %+v", m)
		}
	}
	if err := two.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, one, "the agent goes", func() bool { return !one.Alive("agt-b") })
	// It comes back under its name, at another address.
	again := open(t, KindAgent, "agt-b", freeport.Addr(t), key, a)
	defer again.Close()
	await(t, one, "the agent comes back", func() bool { return one.Alive("agt-b") })
}

// A member that everybody has forgotten comes back, because seeds are tried for
// ever: memberlist's own gossip to the dead ends.
func TestRejoin(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	a, b := freeport.Addr(t), freeport.Addr(t)
	one := open(t, KindNode, "node-a", a, key, b)
	defer one.Close()
	two := open(t, KindNode, "node-b", b, key)
	await(t, one, "the other comes", func() bool { return one.Alive("node-b") })
	if err := two.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, one, "it goes", func() bool { return !one.Alive("node-b") })
	again := open(t, KindNode, "node-b", b, key)
	defer again.Close()
	await(t, one, "it is found again", func() bool { return one.Alive("node-b") && again.Alive("node-a") })
	if !one.Alive("node-a") || len(one.Members()) != 1 {
		t.Fatalf("members %+v", one.Members())
	}
}

func TestForeignKey(t *testing.T) {
	a := freeport.Addr(t)
	one := open(t, KindNode, "node-a", a, bytes.Repeat([]byte{7}, 32))
	defer one.Close()
	two := open(t, KindAgent, "agt-b", freeport.Addr(t), bytes.Repeat([]byte{8}, 32))
	defer two.Close()
	if _, err := two.ml.Join([]string{a}); err == nil || one.Alive("agt-b") {
		t.Fatalf("joined with another key: %v", err)
	}
	if _, err := Open(Config{Self: Member{ID: "x"}, Bind: a}); err == nil {
		t.Fatal("gossip without a key")
	}
}

func TestEncodeFits(t *testing.T) {
	m := Member{Kind: KindAgent, ID: "agt-b", Name: strings.Repeat("n", 63), Version: strings.Repeat("v", 40)}
	for i := range 100 {
		m.Racks = append(m.Racks, fmt.Sprintf("rack-%d", i))
	}
	got, err := decode(encode(m, 512))
	if err != nil || got.ID != m.ID || got.Racks != nil || got.Version != m.Version {
		t.Fatalf("%+v, %v", got, err)
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add(encode(Member{Kind: KindNode, ID: "node-a", Name: "cp1"}, 512))
	f.Add([]byte(`{"k":"king","i":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		again, err := decode(encode(m, 1<<20))
		x, _ := json.Marshal(m)
		y, _ := json.Marshal(again)
		if err != nil || !bytes.Equal(x, y) {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}
