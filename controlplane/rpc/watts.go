package rpc

import (
	"context"
	"maps"
	"sync"
	"time"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

const (
	wattsFor    = 10 * time.Minute // that a reading counts; agents read more often
	maxReadings = 1000             // of one report
	maxWatts    = 100_000          // of one server: above, a controller errs
)

// wattsHub is this node's memory of what servers draw. It never enters the log;
// agents tell every node.
type wattsHub struct {
	mu     sync.Mutex
	latest map[string]reading // by server ID
	pruned time.Time
}

type reading struct {
	watts   uint32
	unknown bool
	at      time.Time
}

func newWattsHub() *wattsHub { return &wattsHub{latest: map[string]reading{}} }

func (h *wattsHub) note(server string, r reading) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.latest[server] = r
}

// prune forgets, once in a while, servers that are known no more.
func (h *wattsHub) prune(now time.Time, known func(server string) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Sub(h.pruned) < wattsFor {
		return
	}
	h.pruned = now
	maps.DeleteFunc(h.latest, func(id string, _ reading) bool { return !known(id) })
}

// of is the newest reading of a server; nil when there is none that counts.
func (h *wattsHub) of(server string, now time.Time) *bmcv1.Watts {
	h.mu.Lock()
	defer h.mu.Unlock()
	r, ok := h.latest[server]
	if !ok {
		return nil
	}
	if now.Sub(r.at) > wattsFor {
		delete(h.latest, server)
		return nil
	}
	return &bmcv1.Watts{Watts: r.watts, Unknown: r.unknown, At: stamp(r.at)}
}

// ReportWatts keeps what an agent read of its racks' servers.
func (s *control) ReportWatts(ctx context.Context, req *agentv1.ReportWattsRequest) (*agentv1.ReportWattsResponse, error) {
	v := s.Proposer.StaleView()
	rack, err := s.rack(ctx, v, req.GetRack())
	if err != nil {
		return nil, err
	}
	if len(req.GetReadings()) > maxReadings {
		return nil, metal.Invalid("readings", "are more than %d", maxReadings)
	}
	s.watts.prune(s.Now(), func(id string) bool { _, ok := v.Server(id); return ok })
	for _, r := range req.GetReadings() {
		if srv, ok := v.Server(r.GetServerId()); ok && srv.RackID == rack.ID && r.GetWatts() <= maxWatts {
			s.watts.note(srv.ID, reading{watts: r.GetWatts(), unknown: r.GetUnknown(), at: s.Now()})
		}
	}
	return &agentv1.ReportWattsResponse{}, nil
}
