package vswitch

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// fates sends frames 0..n-1 from a to b under a rule and returns those that
// arrived, in order.
func fates(t *testing.T, r Rule, n int) []byte {
	t.Helper()
	var got []byte
	synctest.Test(t, func(t *testing.T) {
		s := New(slog.New(slog.DiscardHandler))
		mine, portA := Pipe()
		far, portB := Pipe()
		for name, l := range map[string]Link{"a": portA, "b": portB} {
			if _, err := s.Attach(name, l); err != nil {
				t.Fatal(err)
			}
		}
		rule := s.Apply(r)
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, MaxFrame)
			for {
				k, err := far.Read(buf)
				if err != nil {
					return
				}
				got = append(got, buf[k-1])
			}
		}()
		for i := range n {
			f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0}, byte(i))
			if _, err := mine.Write(f); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		rule.Remove()
		if len(s.active()) != 0 {
			t.Error("the rule is still there")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return got
}

func TestImpairments(t *testing.T) {
	whole := fates(t, Rule{From: "nobody", Impairment: Impairment{Loss: 1}}, 50)
	for _, tt := range []struct {
		name string
		rule Rule
		ok   func(got []byte) bool
	}{
		{"one way", Rule{From: "a", To: "b", Impairment: Impairment{Loss: 1}}, func(g []byte) bool { return len(g) == 0 }},
		{"the other way", Rule{From: "b", To: "a", Impairment: Impairment{Loss: 1}}, func(g []byte) bool { return slices.Equal(g, whole) }},
		{"loss", Rule{From: "a", Seed: 7, Impairment: Impairment{Loss: 0.3}}, func(g []byte) bool { return len(g) > 20 && len(g) < 50 && slices.IsSorted(g) }},
		{"duplicates", Rule{To: "b", Seed: 7, Impairment: Impairment{Duplicate: 0.3}}, func(g []byte) bool { return len(g) > 50 && slices.IsSorted(g) }},
		{"reordering", Rule{To: "b", Seed: 7, Impairment: Impairment{Reorder: 0.3}}, func(g []byte) bool { return len(g) == 50 && !slices.IsSorted(g) }},
		{"delay", Rule{To: "b", Impairment: Impairment{Delay: 100 * time.Millisecond}}, func(g []byte) bool { return slices.Equal(g, whole) }},
		{"blocking", Rule{From: "a", Impairment: Impairment{BlockFor: 20 * time.Millisecond}}, func(g []byte) bool { return len(g) == 30 && g[0] == 20 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := fates(t, tt.rule, 50)
			if !tt.ok(got) {
				t.Fatalf("arrived: %v", got)
			}
			if again := fates(t, tt.rule, 50); !slices.Equal(got, again) {
				t.Fatalf("the same seed, another fate:\n%v\n%v", got, again)
			}
		})
	}
}

// TestDelayKeepsOrder: frames of one burst are not shuffled by a delay that is the
// same for all, and leave together with later ones.
func TestDelayKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(slog.New(slog.DiscardHandler))
		mine, portA := Pipe()
		far, portB := Pipe()
		for name, l := range map[string]Link{"a": portA, "b": portB} {
			if _, err := s.Attach(name, l); err != nil {
				t.Fatal(err)
			}
		}
		s.Apply(Rule{From: "a", To: "b", Impairment: Impairment{Delay: 50 * time.Millisecond}})
		begin := time.Now()
		for i := range 200 {
			if i == 100 {
				time.Sleep(20 * time.Millisecond)
			}
			if _, err := mine.Write([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5, byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, MaxFrame)
		for i := range 200 {
			n, err := far.Read(buf)
			if err != nil || buf[n-1] != byte(i) {
				t.Fatalf("frame %d arrived as the %d-th (%v)", buf[n-1], i, err)
			}
			want := 50 * time.Millisecond
			if i >= 100 {
				want += 20 * time.Millisecond
			}
			if took := time.Since(begin); took != want {
				t.Fatalf("frame %d arrived after %s, want %s", i, took, want)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestHeldFramesAreBounded, and are lost with their port.
func TestHeldFramesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(slog.New(slog.DiscardHandler))
		_, link := Pipe()
		p, err := s.Attach("b", link)
		if err != nil {
			t.Fatal(err)
		}
		for range maxHeld + 10 {
			p.enqueueAfter(time.Hour, newFrame())
		}
		if len(p.held.wait) != maxHeld || p.Stats().Dropped != 10 {
			t.Errorf("%d frames held, %d dropped", len(p.held.wait), p.Stats().Dropped)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if len(p.held.wait) != 0 {
			t.Error("a port that is gone holds frames")
		}
	})
}

// udp4 is an Ethernet frame with an IPv4 packet, its header with options words.
func udp4(proto byte, src, dst uint16, options int, tag ...byte) []byte {
	f := append(make([]byte, 12), tag...)
	f = append(f, 8, 0)
	ip := make([]byte, 20+4*options+8)
	ip[0], ip[9] = byte(0x45+options), proto
	u := ip[20+4*options:]
	u[0], u[1], u[2], u[3] = byte(src>>8), byte(src), byte(dst>>8), byte(dst)
	return append(f, ip...)
}

func TestHasPort(t *testing.T) {
	fragment := udp4(17, 1, 7946, 0)
	fragment[14+7] = 1
	for name, tc := range map[string]struct {
		frame []byte
		want  bool
	}{
		"to":             {udp4(17, 40000, 7946, 0), true},
		"from":           {udp4(6, 7946, 40000, 0), true},
		"options":        {udp4(17, 1, 7946, 2), true},
		"tagged":         {udp4(17, 1, 7946, 0, 0x81, 0, 0, 5), true},
		"another port":   {udp4(17, 1, 7443, 0), false},
		"ICMP":           {udp4(1, 7946, 7946, 0), false},
		"later fragment": {fragment, false},
		"ARP":            {append(make([]byte, 12), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1), false},
		"cut short":      {udp4(17, 1, 7946, 0)[:36], false},
		"runt":           {make([]byte, 14), false},
		"only tags":      {append(make([]byte, 12), 0x81, 0, 0, 5), false},
	} {
		if got := hasPort(tc.frame, 7946); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestPortFilter: a firewall drops one port's packets and no others.
func TestPortFilter(t *testing.T) {
	s := testSwitch(t)
	a, b := plug(t, s, 1), plug(t, s, 2)
	rule := s.Apply(Rule{From: "st", Port: 7946, Impairment: Impairment{Loss: 1}})
	for _, dst := range []uint16{7946, 7443} {
		f := udp4(17, 9, dst, 0)
		copy(f, broadcast[:])
		copy(f[6:], a.mac[:])
		if _, err := a.link.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	b.want(t, string(udp4(17, 9, 7443, 0)[14:]))
	if rule.Hits() != 1 {
		t.Errorf("%d hits", rule.Hits())
	}
}

// TestFloodIsSeeded: which receivers lose a broadcast follows from the seed, too.
func TestFloodIsSeeded(t *testing.T) {
	run := func() (got [8]int) {
		synctest.Test(t, func(t *testing.T) {
			s := New(slog.New(slog.DiscardHandler))
			mine, port := Pipe()
			if _, err := s.Attach("a", port); err != nil {
				t.Fatal(err)
			}
			var far [len(got)]Link
			for i := range far {
				far[i], port = Pipe()
				if _, err := s.Attach("b", port); err != nil {
					t.Fatal(err)
				}
			}
			s.Apply(Rule{From: "a", Seed: 3, Impairment: Impairment{Loss: 0.5}})
			for range 20 {
				if _, err := mine.Write(append(append([]byte{}, broadcast[:]...), 2, 0, 0, 0, 0, 1, 0x88, 0xb5)); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			for i, l := range far {
				got[i] = len(l.(*pipeEnd).in)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return got
	}
	first := run()
	for range 5 {
		if again := run(); again != first {
			t.Fatalf("the same seed, another fate: %v, %v", first, again)
		}
	}
}
