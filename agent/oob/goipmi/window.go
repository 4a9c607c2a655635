package goipmi

// Bounds of a window. The specification has 16 both ways; a burst of lost
// answers, or a controller that skips numbers, must not end a session, and what is
// signed and ahead of everything cannot have come before.
const (
	behind = 16   // the highest: late ones, each once
	ahead  = 1024 // of the highest
)

// window tells the packets of a session that come for the first time by their
// session sequence numbers (IPMI 2.0 sections 6.12.11 to 6.12.13): a request's number
// has six bits, so that an answer that was recorded fits again 63 requests later.
// Only numbers that were signed are to be asked for. The zero window takes any
// number but 0 for its first: not every controller begins at 1. One that begins anew
// within a session is not heard any more, and gets another session.
type window struct {
	highest uint32
	seen    uint32 // bit n: highest-n
}

// accept says whether a number is new, and notes it. Number 0 is of packets without
// a session. Numbers wrap.
func (w *window) accept(n uint32) bool {
	if n == 0 {
		return false
	}
	if w.seen == 0 {
		w.highest, w.seen = n, 1
		return true
	}
	switch d := int32(n - w.highest); {
	case d > ahead || d < -behind:
		return false
	case d > 0:
		w.highest, w.seen = n, w.seen<<d|1 // 0 beyond its width
		return true
	default:
		bit := uint32(1) << -d
		fresh := w.seen&bit == 0
		w.seen |= bit
		return fresh
	}
}
