package tftp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"
)

// transfer is one file on its way to one client: which blocks are acknowledged and
// which are under way. It reads no clock and no socket.
type transfer struct {
	client netip.AddrPort
	to     *net.UDPAddr // the same, as the batch wants it
	name   string
	asked  string // the request as it came, to know its repetition
	data   []byte
	terms

	blocks int // the last of them is shorter than the others, perhaps empty
	acked  int // blocks the client has; -1 while it owes the ACK of our options
	sent   int // the last block that was sent
	resent bool
	tries  int       // of what waits for its acknowledgement
	due    time.Time // then it is sent again
	until  time.Time // then the transfer ends, whatever it does
	heads  []byte    // a window's headers: filled anew for each flight
}

func newTransfer(client netip.AddrPort, asked []byte, name string, data []byte, t terms, until time.Time) *transfer {
	tr := &transfer{
		client: client, to: net.UDPAddrFromAddrPort(client), name: name, asked: string(asked), data: data, terms: t,
		blocks: len(data)/t.block + 1, until: until, heads: make([]byte, 4*t.window),
	}
	if t.oack != nil {
		tr.acked = -1
	}
	return tr
}

// step is what follows from a packet or a timeout.
type step int

const (
	wait step = iota // nothing to send
	send             // send the flight
	done             // the client has everything
	gone             // the client broke off, or is silent
)

// ack takes an acknowledgement. The number names one of the blocks under way or is
// worth nothing: an answer to a repetition must not cause another one (RFC 1123,
// section 4.2.3.1).
func (t *transfer) ack(number uint16) step {
	if t.acked < 0 {
		if number != 0 {
			return wait
		}
		t.acked = 0
		return t.advance(true)
	}
	ahead := int(number - uint16(t.acked)) // block numbers roll over
	switch {
	case ahead == 0 && t.window > 1 && !t.resent && t.sent > t.acked:
		// The first block of a window is missing (RFC 7440, section 4). Once: a
		// client may say it for each block that it has no use for.
		t.resent = true
		return send
	case ahead == 0 || ahead > t.sent-t.acked:
		return wait
	}
	t.acked += ahead
	if t.acked == t.blocks {
		return done
	}
	return t.advance(t.acked == t.sent)
}

// advance readies the next window. Of one that was received in part, the rest is
// sent again, and that counts as its repetition.
func (t *transfer) advance(whole bool) step {
	t.tries, t.resent = 0, !whole
	return send
}

// expire is for a transfer that is past its due time.
func (t *transfer) expire() step {
	if t.tries++; t.tries > ackRetries {
		return gone
	}
	t.resent = true
	return send
}

// flight appends what is due: the options, or the window after the last
// acknowledged block. With segments a window is one message that the kernel cuts
// up (UDP_SEGMENT). The messages share memory with t until its next flight.
func (t *transfer) flight(out []ipv4.Message, segments bool) []ipv4.Message {
	if t.acked < 0 {
		return append(out, ipv4.Message{Buffers: [][]byte{t.oack}, Addr: t.to})
	}
	n := min(t.window, t.blocks-t.acked)
	t.sent = t.acked + n
	parts := make([][]byte, 0, 2*n)
	for i := range n {
		at := (t.acked + i) * t.block
		head := t.heads[4*i : 4*i+4]
		binary.BigEndian.PutUint16(head, opData)
		binary.BigEndian.PutUint16(head[2:], uint16(t.acked+i+1))
		parts = append(parts, head, t.data[at:min(at+t.block, len(t.data))])
	}
	if segments && n > 1 {
		return append(out, ipv4.Message{Buffers: parts, OOB: segmentSize(t.block + 4), Addr: t.to})
	}
	for i := range n {
		out = append(out, ipv4.Message{Buffers: parts[2*i : 2*i+2 : 2*i+2], Addr: t.to})
	}
	return out
}
