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
