package vswitch

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"
)

func testSwitch(t *testing.T) *Switch {
	t.Helper()
	s := New(slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// station is a link with a goroutine that collects what arrives.
type station struct {
	mac  MAC
	link Link
	port *Port
	got  chan []byte
}

func plug(t *testing.T, s *Switch, last byte) *station {
	t.Helper()
	a, b := Pipe()
	p, err := s.Attach("st", a)
	if err != nil {
		t.Fatal(err)
	}
	st := &station{mac: MAC{2, 0, 0, 0, 0, last}, link: b, port: p, got: make(chan []byte, 4096)}
	go func() {
		buf := make([]byte, MaxFrame)
		for {
			n, err := b.Read(buf)
			if err != nil {
				close(st.got)
				return
			}
			st.got <- append([]byte(nil), buf[:n]...)
		}
	}()
	return st
}

func (st *station) send(t *testing.T, dst MAC, payload string) {
	t.Helper()
	f := append(append(append([]byte{}, dst[:]...), st.mac[:]...), 0x88, 0xb5)
	if _, err := st.link.Write(append(f, payload...)); err != nil {
		t.Fatal(err)
	}
}

func (st *station) want(t *testing.T, payload string) {
	t.Helper()
	select {
	case f := <-st.got:
		if !bytes.Equal(f[14:], []byte(payload)) {
			t.Fatalf("station %x got %q, want %q", st.mac[5], f[14:], payload)
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("station %x: no frame, want %q", st.mac[5], payload)
	}
}

var broadcast = MAC{255, 255, 255, 255, 255, 255}

func TestLearning(t *testing.T) {
	s := testSwitch(t)
	a, b, c := plug(t, s, 1), plug(t, s, 2), plug(t, s, 3)

	a.send(t, b.mac, "unknown receiver floods")
	b.want(t, "unknown receiver floods")
	c.want(t, "unknown receiver floods")

	b.send(t, a.mac, "known")
	a.want(t, "known")
	a.send(t, b.mac, "known too")
	b.want(t, "known too")
	a.send(t, broadcast, "all")
	b.want(t, "all")
	c.want(t, "all") // and nothing before it: c did not see the unicasts
}

func TestMovedStation(t *testing.T) {
	s := testSwitch(t)
	a, b, c := plug(t, s, 1), plug(t, s, 2), plug(t, s, 3)
	b.send(t, broadcast, "here")
	a.want(t, "here")
	c.want(t, "here")
	c.mac = b.mac
	c.send(t, broadcast, "moved")
	a.want(t, "moved")
	b.want(t, "moved")
	a.send(t, b.mac, "follow")
	c.want(t, "follow")
}

func TestUnplugForgets(t *testing.T) {
	s := testSwitch(t)
	a, b, c := plug(t, s, 1), plug(t, s, 2), plug(t, s, 3)
	b.send(t, broadcast, "here")
	a.want(t, "here")
	c.want(t, "here")
	if err := b.port.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.link.Write(make([]byte, 60)); err == nil {
		t.Fatal("the cable's other end still takes frames")
	}
	a.send(t, b.mac, "floods again")
	c.want(t, "floods again")
}

func TestAgeing(t *testing.T) {
	s := testSwitch(t)
	now := time.Now()
	s.now = func() time.Time { return now }
	a, b := plug(t, s, 1), plug(t, s, 2)
	_ = b
	s.learn(MAC{2, 9, 9, 9, 9, 9}, a.port)
	now = now.Add(maxAge)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.evict(now) || len(s.table) != 0 {
		t.Fatalf("table still has %d entries", len(s.table))
	}
}

func TestTableIsBounded(t *testing.T) {
	s := testSwitch(t)
	a := plug(t, s, 1)
	for i := range maxAddresses + 100 {
		s.learn(MAC{2, 1, 0, byte(i >> 16), byte(i >> 8), byte(i)}, a.port)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.table) != maxAddresses {
		t.Fatalf("table has %d entries, want %d", len(s.table), maxAddresses)
	}
}

// stuck is a link that takes no frame until it is closed.
type stuck struct{ closed chan struct{} }

func (l stuck) Read([]byte) (int, error)  { <-l.closed; return 0, io.EOF }
func (l stuck) Write([]byte) (int, error) { <-l.closed; return 0, io.EOF }
func (l stuck) Close() error              { close(l.closed); return nil }

func TestSlowPortDropsAndHoldsNobody(t *testing.T) {
	s := testSwitch(t)
	a, b := plug(t, s, 1), plug(t, s, 2)
	slow, err := s.Attach("slow", stuck{make(chan struct{})})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * queueLen {
		a.send(t, broadcast, "x")
		b.want(t, "x")
	}
	if d := slow.Stats().Dropped; d == 0 {
		t.Fatal("a stuck port dropped nothing")
	}
}

func TestRunts(t *testing.T) {
	s := testSwitch(t)
	a, b := plug(t, s, 1), plug(t, s, 2)
	if _, err := a.link.Write([]byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	a.send(t, broadcast, "after the runt")
	b.want(t, "after the runt")
}

func TestAttachAfterClose(t *testing.T) {
	s := New(slog.New(slog.DiscardHandler))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	a, b := Pipe()
	if _, err := s.Attach("late", a); err == nil {
		t.Fatal("attached to a closed switch")
	}
	if _, err := b.Read(make([]byte, 10)); !errors.Is(err, io.EOF) {
		t.Fatalf("the link was not closed: %v", err)
	}
}

func TestSocketPair(t *testing.T) {
	s := testSwitch(t)
	a := plug(t, s, 1)
	link, peer, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Attach("qemu", link)
	if err != nil {
		t.Fatal(err)
	}
	frame := append(append(append([]byte{}, broadcast[:]...), 2, 0, 0, 0, 0, 9, 0x88, 0xb5), "from a datagram"...)
	if _, err := peer.Write(frame); err != nil {
		t.Fatal(err)
	}
	a.want(t, "from a datagram")
	// The kernel does not tell one end of a datagram pair that the other is
	// gone, so the port's owner closes it: that must end the blocked Read.
	if err := peer.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
}
