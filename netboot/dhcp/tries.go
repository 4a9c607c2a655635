package dhcp

import (
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	// lateAfter is for how long a machine has asked when a server that leaves it to
	// others (Lease.Late) answers all the same. Firmware asks again after 4 s (PXE
	// 2.1, section 2.2.5.1), iPXE after 1 and 3 s, for a minute and 7 s; a server
	// that is there has answered the first time. The client's own count (secs) is not
	// believed: it is 0 with much firmware, and in the wrong byte order with some.
	lateAfter = 2 * time.Second
	// spareAfter is likewise for a server whose better is there (Lease.Spare): by
	// firmware's third try, at 12 s, the better one's answers do not arrive.
	spareAfter = 10 * time.Second
	// triesKept outlasts a machine's way from one try to its loader's: firmware and
	// loader are one boot.
	triesKept = time.Minute
	// sameGap is the longest pause between two tries of one boot, 32 s and some of
	// PXE's jitter, where both have the same transaction ID. Some clients take a new one
	// for each try (RFC 2131, section 4.1): then only a second try comes soon enough not
	// to be another boot, whose first one was answered where we do not see it. So such
	// firmware, whose third try comes after 8 s, never gets the spare's answer.
	sameGap  = 36 * time.Second
	otherGap = 5 * time.Second
	maxTries = 4096 // machines that are kept; those of a few racks
)

// Tries notes since when machines ask in vain for their network boot. The zero
// value is ready. It is safe for concurrent use.
type Tries struct {
	mu  sync.Mutex
	by  map[string]try // by MAC
	now func() time.Time
}

type try struct {
	first, last time.Time
	id          dhcpv4.TransactionID // of the last
	ours        time.Time            // when it took an answer of ours
}

func (t *Tries) clock() time.Time {
	if t.now == nil {
		return time.Now()
	}
	return t.now()
}

// goes says whether a try that comes now, with a transaction ID, is of the same boot.
func (n try) goes(now time.Time, id dhcpv4.TransactionID) bool {
	gap := now.Sub(n.last)
	switch {
	case !n.ours.IsZero() && now.Sub(n.ours) <= triesKept: // it follows us
		return true
	case n.id == id:
		return gap <= sameGap
	}
	return gap <= otherGap
}

// Ask notes that a machine asks, and returns for how long it has in this boot.
func (t *Tries) Ask(mac string, id dhcpv4.TransactionID) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	n, ok := t.by[mac]
	if !ok || !n.goes(now, id) {
		t.room(now)
		n = try{first: now}
	}
	n.last, n.id = now, id
	t.by[mac] = n
	return n.waited(now)
}

// waited is for how long a machine has asked; one that follows us has long enough.
func (n try) waited(now time.Time) time.Duration {
	if !n.ours.IsZero() && now.Sub(n.ours) <= triesKept {
		return triesKept
	}
	return now.Sub(n.first)
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

// follows says that a machine has taken this server's answer.
func (t *Tries) follows(mac string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.by[mac]; ok {
		n.ours = t.clock()
		t.by[mac] = n
	}
}

// Waited says whether a machine that is left to others has asked in vain for long
// enough to be answered: where it is left because nobody else may be there, and
// (spare) where a better server is.
func (t *Tries) Waited(mac string, spare bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.by[mac]
	now := t.clock()
	return ok && now.Sub(n.last) <= triesKept && n.waited(now) >= patience(spare)
}

func patience(spare bool) time.Duration {
	if spare {
		return spareAfter
	}
	return lateAfter
}
