package agent

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"bmc/agent/oob"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/pause"
)

const (
	warmLook = 5 * time.Second
	// warmSilence is how long a ramdisk that waits is not heard before it counts
	// as gone: it calls twice a minute, and every two seconds while it looks for
	// the lease's holder.
	warmSilence = 75 * time.Second

	wattsLook  = 5 * time.Second
	wattsEvery = 2 * time.Minute  // between two readings of a server
	wattsRead  = 10 * time.Second // of one controller
	wattsTell  = 3 * time.Second  // of one node's answer
)

// waits implements boot.Config's.
func (a *Agent) waits(serverID string) (bootID string, here bool) {
	r, s, ok := a.server(serverID)
	if !ok {
		return "", false
	}
	_, here = a.leases[r.conf.Name].Held()
	return s.GetWarmBootId(), here
}

// over is what boot.Config.Over asks. Only the lease's holder is sure, and only
// while a node tells it of changes.
func (a *Agent) over(serverID string) bool {
	r, _, ok := a.server(serverID)
	if !ok {
		return false
	}
	_, here := a.leases[r.conf.Name].Held()
	return here && r.idle(serverID)
}

// warmWatch reports ramdisks that wait for a tenant and are not heard any more.
// It tells once a look until the control plane has taken it.
type warmWatch struct {
	agent *Agent
	rack  *rack
	lease *lease
	since map[string]time.Time // that a boot was to call here, by boot ID
	epoch uint64               // that since is of
	now   func() time.Time
}

func (w *warmWatch) run(ctx context.Context) {
	for pause.For(ctx, warmLook) == nil {
		w.agent.boots.Prune(func(id string) bool { _, _, ok := w.agent.server(id); return ok })
		epoch, held := w.lease.Held()
		if !held {
			w.since = nil
			continue
		}
		if req := w.look(epoch); len(req.GetObservations()) > 0 {
			w.tell(ctx, req)
		}
	}
}

// look finds who has been silent for too long. One that operates, or that has
// begun to wait here just now, has its time yet.
func (w *warmWatch) look(epoch uint64) *agentv1.ReportObservationsRequest {
	if w.since == nil || epoch != w.epoch {
		w.since, w.epoch = make(map[string]time.Time), epoch
	}
	now := w.now()
	seen := make(map[string]time.Time)
	req := &agentv1.ReportObservationsRequest{Rack: w.rack.conf.Name, Epoch: epoch}
	for _, s := range w.rack.all() {
		boot := s.GetWarmBootId()
		if boot == "" || w.agent.ops.Busy(s.GetId()) {
			continue
		}
		last, known := w.since[boot]
		if !known {
			last = now
		}
		seen[boot] = last
		if heard := w.agent.boots.Heard(s.GetId(), boot); heard.After(last) {
			last = heard
		}
		if now.Sub(last) > warmSilence {
			req.Observations = append(req.Observations, &agentv1.Observation{ServerId: s.GetId(), WarmLost: boot})
		}
	}
	w.since = seen
	return req
}

func (w *warmWatch) tell(ctx context.Context, req *agentv1.ReportObservationsRequest) {
	err := w.agent.nodes.call(ctx, observeLimit, func(ctx context.Context, c agentv1.ControlClient) error {
		_, err := c.ReportObservations(ctx, req)
		return err
	})
	if err != nil && ctx.Err() == nil {
		w.agent.log.Debug("silent ramdisks not told yet", "rack", req.GetRack(), "err", err)
	}
}

// watts reads what a rack's servers draw that wait for a tenant, slowly and one
// after the other, and tells every node: it is no business of the log.
func (a *Agent) watts(ctx context.Context, r *rack, l *lease) {
	next := make(map[string]time.Time) // by the boot in which a server waits
	for pause.For(ctx, wattsLook) == nil {
		req := &agentv1.ReportWattsRequest{Rack: r.conf.Name}
		due := make(map[string]time.Time)
		for _, s := range r.all() {
			boot := s.GetWarmBootId()
			if boot == "" || a.ops.Busy(s.GetId()) {
				continue
			}
			due[boot] = next[boot]
			if _, held := l.Held(); !held || ctx.Err() != nil || time.Now().Before(next[boot]) {
				continue
			}
			due[boot] = time.Now().Add(wattsEvery*3/4 + rand.N(wattsEvery/2))
			if reading := a.readWatts(ctx, l, s); reading != nil {
				req.Readings = append(req.Readings, reading)
			}
		}
		if next = due; len(req.GetReadings()) > 0 {
			a.tellAll(ctx, req)
		}
	}
}

// readWatts is nil where the controller did not answer, which says nothing. It
// has the controller's turn, and gives it up as soon as an operation comes.
func (a *Agent) readWatts(ctx context.Context, l *lease, s *agentv1.ServerSpec) *agentv1.Watts {
	ctx, cancel := context.WithTimeout(ctx, wattsRead)
	defer cancel()
	ctx, idle := a.ops.WhileIdle(ctx, s.GetId())
	defer idle()
	meter, ok := a.pool.Get(a.oobConfig(l, s)).(oob.Meter)
	if !ok {
		return &agentv1.Watts{ServerId: s.GetId(), Unknown: true}
	}
	watts, ok, err := meter.Watts(ctx)
	if err != nil {
		a.log.Debug("power reading failed", "server", s.GetId(), "err", err)
		return nil
	}
	return &agentv1.Watts{ServerId: s.GetId(), Watts: uint32(max(watts, 0)), Unknown: !ok}
}

func (a *Agent) tellAll(ctx context.Context, req *agentv1.ReportWattsRequest) {
	for _, n := range a.nodes.order() {
		tell, cancel := context.WithTimeout(ctx, wattsTell)
		if _, err := n.control.ReportWatts(tell, req); err != nil && ctx.Err() == nil {
			a.log.Debug("power readings not taken", "node", n.addr, "err", err)
		}
		cancel()
	}
}

// servedRamdisk is the version of the ramdisk that this agent serves, as its
// build wrote it beside the initrd and as it calls itself; "" where there is no
// such file. It may be replaced while the agent runs.
func (a *Agent) servedRamdisk() string {
	data, err := os.ReadFile(filepath.Join(filepath.Dir(a.cfg.Ramdisk.Initrd), "manifest.json"))
	if err != nil {
		return ""
	}
	var m struct {
		Version string `json:"version"`
		Commit  string `json:"commit"`
	}
	if json.Unmarshal(data, &m) != nil || m.Version == "" {
		return ""
	}
	return m.Version + " (" + m.Commit + ")"
}
