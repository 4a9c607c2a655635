package membership

import (
	"bytes"
	"fmt"
	"net"
	"testing"
	"time"
)

var key = bytes.Repeat([]byte{7}, 32)

// freePort reserves nothing: the port is free a moment before it is used.
func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func open(t *testing.T, id string, key []byte, bind string, seeds ...string) *Membership {
	m, err := Open(Config{Bind: bind, Key: key, Self: Member{Kind: KindNode, ID: id, Name: id, Address: "10.0.0.1:7443"},
		Seeds: func() []string { return seeds }, ProbeInterval: 100 * time.Millisecond, RejoinEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// until waits for a condition on m's members.
func until(t *testing.T, m *Membership, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := m.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("waited for %s; members are %v", what, m.Members())
		}
	}
}

func TestJoinAndLeave(t *testing.T) {
	first := freePort(t)
	a := open(t, "node-a", key, first)
	var others []*Membership
	for i := range 3 {
		others = append(others, open(t, fmt.Sprintf("node-%d", i), key, freePort(t), first))
	}
	until(t, a, "three others", func() bool { return len(a.Members()) == 3 })
	until(t, others[0], "three others", func() bool { return len(others[0].Members()) == 3 })
	if got := a.Members()[0]; got.Address != "10.0.0.1:7443" || got.Kind != KindNode {
		t.Errorf("member is %+v", got)
	}
	if err := others[2].Close(); err != nil {
		t.Fatal(err)
	}
	until(t, a, "the leave", func() bool { return !a.Alive("node-2") })
	if !a.Alive("node-0") || !a.Alive("node-a") {
		t.Error("the living are not alive")
	}
}

// A member that everybody has forgotten comes back, because seeds are tried for
// ever (memberlist's own gossip to the dead ends).
func TestRejoin(t *testing.T) {
	first, second := freePort(t), freePort(t)
	a := open(t, "node-a", key, first, second)
	b := open(t, "node-b", key, second)
	until(t, a, "the other", func() bool { return a.Alive("node-b") })
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, a, "the leave", func() bool { return !a.Alive("node-b") })
	open(t, "node-b", key, second)
	until(t, a, "the return", func() bool { return a.Alive("node-b") })
}

func TestWrongKey(t *testing.T) {
	first := freePort(t)
	a := open(t, "node-a", key, first)
	b := open(t, "node-b", bytes.Repeat([]byte{8}, 32), freePort(t), first)
	good := open(t, "node-c", key, freePort(t), first)
	until(t, a, "the member with the key", func() bool { return a.Alive("node-c") })
	if a.Alive("node-b") || len(b.Members()) != 0 || good.Alive("node-b") {
		t.Error("a member with another key was let in")
	}
}

func TestTooMuchToSay(t *testing.T) {
	_, err := Open(Config{Bind: freePort(t), Key: key, Self: Member{ID: "x", Racks: make([]string, 400)}})
	if err == nil {
		t.Error("a description that gossip cannot carry was accepted")
	}
}
