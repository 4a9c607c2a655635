package vswitch

import (
	"fmt"
	"log/slog"
	"testing"
	"time"
)

// BenchmarkForward: a frame's way through the switch, over sockets as QEMU uses
// them, without a rule and with one that looks at each frame.
func BenchmarkForward(b *testing.B) {
	for _, size := range []int{1514, MaxFrame} {
		for _, ruled := range []bool{false, true} {
			b.Run(fmt.Sprintf("bytes=%d/rule=%v", size, ruled), func(b *testing.B) { forward(b, size, ruled) })
		}
	}
}

func forward(b *testing.B, size int, ruled bool) {
	s := New(slog.New(slog.DiscardHandler))
	defer func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	}()
	link, from, err := SocketPair()
	if err != nil {
		b.Fatal(err)
	}
	defer from.Close()
	if _, err := s.Attach("a", link); err != nil {
		b.Fatal(err)
	}
	link, to, err := SocketPair()
	if err != nil {
		b.Fatal(err)
	}
	defer to.Close()
	p, err := s.Attach("b", link)
	if err != nil {
		b.Fatal(err)
	}
	if ruled {
		s.Apply(Rule{From: "a", To: "b", Port: 7946, Impairment: Impairment{Loss: 0.5}})
	}
	s.learn(MAC{2, 0, 0, 0, 0, 2}, p)
	frame := make([]byte, size)
	copy(frame, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45})
	if err := to.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(size))
	buf := make([]byte, MaxFrame)
	for b.Loop() {
		if _, err := from.Write(frame); err != nil {
			b.Fatal(err)
		}
		if _, err := to.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
