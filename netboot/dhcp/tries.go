package dhcp

import (
	"sync"
	"time"
)

const (
	// lateAfter is for how long a machine has asked when a server that leaves it to
	// others (Lease.Late) answers all the same. Firmware asks again after 4 s (PXE
	// 2.1, section 2.2.5.1), iPXE after 1 and 3 s, for a minute and 7 s; a server
	// that is there has answered the first time. The client's own count (secs) is not
	// believed: it is 0 with much firmware, and in the wrong byte order with some.
	lateAfter = 2 * time.Second
	// triesKept is longer than any client's pause between two of its tries, and
	// outlasts its loader's way here: firmware and loader are one boot.
	triesKept = time.Minute
	maxTries  = 4096 // machines that are kept; those of a few racks
)

// Tries notes since when machines ask in vain for their network boot. The zero
// value is ready. It is safe for concurrent use.
type Tries struct {
	mu  sync.Mutex
	by  map[string]try // by MAC
	now func() time.Time
}

type try struct{ first, last time.Time }

func (t *Tries) clock() time.Time {
	if t.now == nil {
		return time.Now()
	}
	return t.now()
}

// ask notes that a machine asks, and says whether it has for long enough.
func (t *Tries) ask(mac string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	n, ok := t.by[mac]
	if !ok || now.Sub(n.last) > triesKept {
		t.room(now)
		n.first = now
	}
	n.last = now
	t.by[mac] = n
	return now.Sub(n.first) >= lateAfter
}

// room forgets what is too old, and everything when that does not help: then
// machines are answered a little later. The lock is held.
func (t *Tries) room(now time.Time) {
	if len(t.by) < maxTries && t.by != nil {
		return
	}
	for mac, n := range t.by {
		if now.Sub(n.last) > triesKept {
			delete(t.by, mac)
		}
	}
	if len(t.by) >= maxTries || t.by == nil {
		t.by = make(map[string]try)
	}
}

// answered says that another server has answered a machine.
func (t *Tries) answered(mac string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.by, mac)
}

// Waited says whether a machine that is left to others has asked in vain for long
// enough to be answered.
func (t *Tries) Waited(mac string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.by[mac]
	now := t.clock()
	return ok && now.Sub(n.last) <= triesKept && now.Sub(n.first) >= lateAfter
}
