package dispatch

import (
	"crypto/rand"
	"time"

	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

const (
	// warmAtOnce bounds how many servers of a rack are on their way into the
	// ramdisk at a time; one starts every few seconds (again).
	warmAtOnce = 8
	// renewShare is the part of a rack's waiting servers that moves to another
	// version of the ramdisk at a time; at least one does.
	renewShare = 10
	// warmLevel is the feature level with which servers may wait.
	warmLevel = 3
)

// warmth is how a rack's available servers stand.
type warmth struct {
	waiting []*metal.Server // in the ramdisk, for somebody to rent them
	cold    []*metal.Server // could be rented, and do not wait
	burning []*metal.Server // of those, who are on all the same: what was lost in them, or would not go off
	left    []*metal.Server // on for nobody: cordoned or retired since, or given up
	coming  int             // on their way into the ramdisk
}

// warm brings available servers of a rack into the ramdisk while fewer wait there
// than shall, switches off what is too many, and moves those that wait in another
// version of the ramdisk than the rack's agents serve. One server at a look, and
// none while its former try is too near: whatever a person asks for meanwhile
// finds the rack at rest, and ends what is begun here.
func (p *plan) warm(v *state.View, r *metal.Rack) {
	if v.Meta().FeatureLevel < warmLevel || r.Frozen || r.Stopped() || r.Warm == 0 && v.CountWarmth(r.ID) == 0 || !p.term.held(r, p.now) {
		return
	}
	w := look(v, r)
	wanted := r.Warm
	if wanted < 0 {
		wanted = len(w.waiting) + len(w.cold) + w.coming
	}
	ramdisk, since := p.term.serves(r)
	outdated := func(s *metal.Server) bool {
		return ramdisk != "" && s.Warm.Ramdisk != ramdisk && s.Warm.Since.Before(since)
	}
	have := len(w.waiting) + w.coming
	switch {
	case have > wanted && len(w.waiting) > 0:
		p.start(surplus(w.waiting, outdated), true)
	case p.first(w.left, true):
	case have < wanted:
		if w.coming < warmAtOnce {
			p.first(w.cold, false)
		}
	case p.first(w.burning, true):
	case w.coming < max(1, wanted/renewShare):
		for _, s := range w.waiting {
			if outdated(s) {
				p.start(s, false)
				break
			}
		}
	}
}

// look sorts a rack's servers.
func look(v *state.View, r *metal.Rack) *warmth {
	w := &warmth{}
	for s := range v.InState(r.ID, metal.StateAvailable, "") {
		o, busy := v.Operation(s.Operation)
		switch {
		case busy && o.Kind == metal.KindWarm:
			w.coming++
		case busy || s.Holds[metal.HoldParked]:
		case s.Holds[metal.HoldCordoned]:
			if burns(s) {
				w.left = append(w.left, s)
			}
		case !fsm.Rentable(v, s):
		case s.Warm.Waits():
			w.waiting = append(w.waiting, s)
		case burns(s) && (r.Warm == 0 || s.Warm.Tries >= metal.MaxWarmTries):
			w.left = append(w.left, s)
		case s.Warm == nil || s.Warm.Tries < metal.MaxWarmTries:
			if w.cold = append(w.cold, s); burns(s) {
				w.burning = append(w.burning, s)
			}
		}
	}
	for s := range v.InState(r.ID, metal.StateRetired, "") {
		if s.Operation == "" && !s.Holds[metal.HoldParked] && burns(s) {
			w.left = append(w.left, s)
		}
	}
	return w
}

// burns says whether a server is on because the system once switched it on.
func burns(s *metal.Server) bool {
	return s.Warm != nil && (s.Warm.Waits() || s.Power.Observed == metal.PowerOn)
}

// surplus is who is switched off first: one that would have to move anyway, else
// the last that would be rented.
func surplus(waiting []*metal.Server, outdated func(*metal.Server) bool) *metal.Server {
	for _, s := range waiting {
		if outdated(s) {
			return s
		}
	}
	return waiting[len(waiting)-1]
}

// first starts the first server whose time has come; false: none's has.
func (p *plan) first(servers []*metal.Server, cold bool) bool {
	for _, s := range servers {
		if cold && s.Warm.DueCold(p.now) || !cold && s.Warm.Due(p.now) {
			p.start(s, cold)
			return true
		}
		if s.Warm.Next.After(p.now) {
			p.before(s.Warm.Next)
		}
	}
	return false
}

// start proposes the operation, at most one of a rack in a few seconds.
func (p *plan) start(s *metal.Server, cold bool) {
	var random [10]byte
	_, _ = rand.Read(random[:]) // never fails
	p.add("warm/"+s.RackID, &logpb.Command{Command: &logpb.Command_WarmServer{WarmServer: &logpb.WarmServer{
		ServerId: s.ID, OperationId: metal.FormatID("op", random), Cold: cold}}})
}

// serves is the version of the ramdisk that a rack's agents serve, and since when
// they have said so to this leader; "" while they differ or it is not known.
func (t *term) serves(r *metal.Rack) (ramdisk string, since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range t.asked[r.ID] {
		switch {
		case time.Since(a.at) > recent:
		case a.endpoint.Ramdisk == "" || ramdisk != "" && ramdisk != a.endpoint.Ramdisk:
			return "", time.Time{}
		case ramdisk == "" || a.served.After(since):
			ramdisk, since = a.endpoint.Ramdisk, a.served
		}
	}
	return ramdisk, since
}
