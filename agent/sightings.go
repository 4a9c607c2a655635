package agent

import (
	"slices"
	"strings"
	"sync"
	"time"

	"bmc/netboot"
)

// maxSightings bounds what unknown machines can make the agent remember.
const maxSightings = 4096

// sightings is when each MAC last came to a rack's network to boot. It tells a
// machine that another controller's power-on has started from ours.
type sightings struct {
	mu   sync.Mutex
	seen map[string]time.Time
	now  func() time.Time
}

func newSightings() *sightings { return &sightings{seen: make(map[string]time.Time), now: time.Now} }

// note hears what netboot saw. Renewals of a running system do not count.
func (s *sightings) note(e netboot.Event) {
	switch e.Kind {
	case netboot.EventDHCP, netboot.EventUnknown, netboot.EventLoader, netboot.EventScript, netboot.EventSeed, netboot.EventUnserved:
	default:
		return
	}
	if e.MAC == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.seen[e.MAC]; !known && len(s.seen) >= maxSightings {
		s.forget()
	}
	s.seen[e.MAC] = s.now()
}

// forget drops the older half; the lock is held.
func (s *sightings) forget() {
	times := make([]time.Time, 0, len(s.seen))
	for _, t := range s.seen {
		times = append(times, t)
	}
	slices.SortFunc(times, time.Time.Compare)
	median := times[len(times)/2]
	for mac, t := range s.seen {
		if t.Before(median) {
			delete(s.seen, mac)
		}
	}
	if len(s.seen) >= maxSightings { // all at once
		clear(s.seen)
	}
}

// strangers is who came since t beside the given MACs and those that expected
// says something was asked of.
func (s *sightings) strangers(t time.Time, own []string, expected func(mac string) bool) map[string]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]time.Time)
	for mac, at := range s.seen {
		if at.After(t) && !slices.ContainsFunc(own, func(o string) bool { return strings.EqualFold(o, mac) }) && !expected(mac) {
			out[mac] = at
		}
	}
	return out
}

// saw says whether one of the MACs came since t.
func (s *sightings) saw(t time.Time, own []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(own, func(mac string) bool { return s.seen[strings.ToLower(mac)].After(t) })
}
