package tftp

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
)

func testTransfer(size int, t terms) *transfer {
	return newTransfer(netip.MustParseAddrPort("127.0.0.1:9"), nil, "f", bytes.Repeat([]byte("x"), size), t, time.Time{})
}

// numbers of the blocks of a flight.
func numbers(m []ipv4.Message) []int {
	var n []int
	for _, m := range m {
		n = append(n, int(m.Buffers[0][2])<<8|int(m.Buffers[0][3]))
	}
	return n
}

func TestAck(t *testing.T) {
	type event struct {
		ack  int // -1: a timeout
		want step
		from int // the first block sent, for send; 0: options
		to   int
	}
	for _, tt := range []struct {
		name   string
		t      *transfer
		first  [2]int
		events []event
	}{
		{"lock-step", testTransfer(1100, terms{block: 512, window: 1}), [2]int{1, 1}, []event{
			{0, wait, 0, 0}, {2, wait, 0, 0}, {-1, send, 1, 1}, {1, send, 2, 2}, {1, wait, 0, 0}, {2, send, 3, 3}, {1, wait, 0, 0}, {3, done, 0, 0},
		}},
		{"window", testTransfer(512*10, terms{block: 512, window: 4}), [2]int{1, 4}, []event{
			{4, send, 5, 8}, {6, send, 7, 10}, {6, wait, 0, 0}, {10, send, 11, 11}, {11, done, 0, 0},
		}},
		{"a window's first block is lost", testTransfer(512*10, terms{block: 512, window: 4}), [2]int{1, 4}, []event{
			{4, send, 5, 8}, {4, send, 5, 8}, {4, wait, 0, 0}, {4, wait, 0, 0}, {-1, send, 5, 8}, {4, wait, 0, 0}, {8, send, 9, 11}, {9, send, 10, 11}, {11, done, 0, 0},
		}},
		{"stale and wild numbers", testTransfer(512*10, terms{block: 512, window: 4}), [2]int{1, 4}, []event{
			{4, send, 5, 8}, {3, wait, 0, 0}, {9, wait, 0, 0}, {65535, wait, 0, 0}, {8, send, 9, 11},
		}},
		{"silence", testTransfer(10, terms{block: 512, window: 1}), [2]int{1, 1}, []event{
			{-1, send, 1, 1}, {-1, send, 1, 1}, {-1, send, 1, 1}, {-1, send, 1, 1}, {-1, send, 1, 1}, {-1, gone, 0, 0},
		}},
		{"progress starts the tries again", testTransfer(1100, terms{block: 512, window: 1}), [2]int{1, 1}, []event{
			{-1, send, 1, 1}, {-1, send, 1, 1}, {-1, send, 1, 1}, {-1, send, 1, 1}, {-1, send, 1, 1}, {1, send, 2, 2}, {-1, send, 2, 2},
		}},
		{"options", testTransfer(512, terms{block: 512, window: 2, oack: []byte{0, opOACK, 0, 0}}), [2]int{0, 0}, []event{
			{1, wait, 0, 0}, {-1, send, 0, 0}, {0, send, 1, 2}, {2, done, 0, 0},
		}},
		{"an empty file", testTransfer(0, terms{block: 512, window: 1}), [2]int{1, 1}, []event{{1, done, 0, 0}}},
	} {
		check := func(i, from, to int) {
			t.Helper()
			n := numbers(tt.t.flight(nil, false))
			if n[0] != from || n[len(n)-1] != to || len(n) != to-from+1 {
				t.Errorf("%s, event %d: sent %v, want %d to %d", tt.name, i, n, from, to)
			}
		}
		check(-1, tt.first[0], tt.first[1])
		for i, e := range tt.events {
			var got step
			if e.ack < 0 {
				got = tt.t.expire()
			} else {
				got = tt.t.ack(uint16(e.ack))
			}
			if got != e.want {
				t.Errorf("%s, event %d: step %d, want %d", tt.name, i, got, e.want)
			}
			if got == send {
				check(i, e.from, e.to)
			}
		}
	}
}

// Block numbers have 16 bits; a file may have more blocks.
func TestRollover(t *testing.T) {
	for _, window := range []int{1, 7, 64} {
		tr := testTransfer(8*(65536*2+100), terms{block: 8, window: window})
		n := numbers(tr.flight(nil, false))
		flights := 1
		for {
			last := n[len(n)-1]
			switch tr.ack(uint16(last)) {
			case send:
				next := numbers(tr.flight(nil, false))
				if next[0] != (last+1)%65536 {
					t.Fatalf("windows of %d: after block %d came %d", window, last, next[0])
				}
				n = next
				flights++
				continue
			case done:
			default:
				t.Fatalf("windows of %d: stuck after block %d of %d", window, tr.acked, tr.blocks)
			}
			break
		}
		if want := (tr.blocks + window - 1) / window; flights != want {
			t.Errorf("windows of %d: %d flights, want %d", window, flights, want)
		}
	}
}
