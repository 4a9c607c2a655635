package state

import (
	"strconv"

	"bmc/metal"
)

// Event appends an event; revision, index and time are filled in. The oldest
// of the same server go when there are too many.
func (x *Txn) Event(e metal.Event) {
	e.Revision, e.Index, e.Time = x.meta.Revision, x.nth, x.meta.Time
	x.nth++
	x.putEvent(&e)
	x.changed(Change{Kind: KindEvent, ServerID: e.ServerID})
	limit := MaxServerEvents
	if e.ServerID == "" {
		limit = MaxGlobalEvents
	}
	for x.count(join("events", e.ServerID)) > limit {
		oldest, _ := x.serverEvents.first(join(e.ServerID, ""))
		x.deleteEvent(oldest)
	}
}

func eventKey(e *metal.Event) string { return be(e.Revision) + be(uint64(e.Index)) }

func (x *Txn) putEvent(e *metal.Event) {
	key := eventKey(e)
	old := x.events.put(x.own, key, e)
	if old != nil {
		x.serverEvents.swap(x.own, join(old.ServerID, key), "", key)
		x.bump(join("events", old.ServerID), -1)
	}
	x.serverEvents.swap(x.own, "", join(e.ServerID, key), key)
	x.bump(join("events", e.ServerID), 1)
}

func (x *Txn) deleteEvent(e entry) {
	if old := x.events.del(x.own, e.id); old != nil {
		x.serverEvents.swap(x.own, e.key, "", e.id)
		x.bump(join("events", old.ServerID), -1)
	}
}

// Audit appends an entry; head is the chain's new hash.
func (x *Txn) Audit(a metal.AuditEntry, head []byte) {
	a.Revision, a.Time, a.Hash = x.meta.Revision, x.meta.Time, head
	x.meta.AuditHead = head
	x.meta.AuditCount++
	x.audit.put(x.own, be(a.Revision), &a)
	for x.audit.len() > MaxAudit {
		x.audit.del(x.own, be(x.audit.min().Revision))
	}
}

// Remember keeps a request ID. Those with the oldest IDs go when there are too
// many, and from then on everything up to them is beyond the horizon.
func (x *Txn) Remember(r Request) {
	r.Revision = x.meta.Revision
	x.requests.put(x.own, join(r.ID, r.Principal), &r)
	for x.requests.len() > MaxRequests {
		old := x.requests.min()
		x.requests.del(x.own, join(old.ID, old.Principal))
		x.meta.RequestHorizon = max(x.meta.RequestHorizon, RequestTime(old.ID))
	}
}

// RequestTime is the time in a UUIDv7, Unix milliseconds, or -1.
func RequestTime(id string) int64 {
	if len(id) != 36 || id[14] != '7' {
		return -1
	}
	for i := range len(id) {
		c := id[i]
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return -1
		}
	}
	ms, err := strconv.ParseInt(id[:8]+id[9:13], 16, 64)
	if err != nil {
		return -1
	}
	return ms
}
