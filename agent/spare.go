package agent

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	agentv1 "bmc/api/agent/v1"
)

const (
	// askingFor is for how long a machine counts as asking after it last did: as long
	// as one that boots may be silent between its firmware and its script.
	askingFor = time.Minute
	maxAsking = 256 // machines of a rack that another agent is asked about at once
)

// asking are machines of a rack whose network boots are left to another agent, and
// which have asked here. The zero value is ready; it has its own lock, being written
// by the goroutine that answers DHCP.
type asking struct {
	mu sync.Mutex
	at map[string]time.Time // by MAC
}

// note takes a machine that asks; what would be too many is left to the others' tries.
func (a *asking) note(mac string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at == nil {
		a.at = make(map[string]time.Time)
	}
	if _, ok := a.at[mac]; ok || len(a.at) < maxAsking {
		a.at[mac] = now
	}
}

// now is who asks, in order.
func (a *asking) now(now time.Time) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for mac, at := range a.at {
		if now.Sub(at) > askingFor {
			delete(a.at, mac)
			continue
		}
		out = append(out, mac)
	}
	slices.Sort(out)
	return out
}

// standingFor is standing with what this agent answers machines that ask another one;
// the lock is held. Only the lease's holder says it: what it knows is current, and its
// word is good for standingFor.
func (r *rack) standingFor(who []*agentv1.Asking) *agentv1.RackStanding {
	s := r.standing()
	if !s.GetHeld() || !s.GetAnswers() {
		return s
	}
	ask := 0 // of this rack; the question is about all of the asker's
	for _, w := range who {
		known := r.byMAC[strings.ToLower(w.GetMac())]
		if w.GetRack() != r.conf.Name || known == nil {
			continue
		}
		if ask++; ask > maxAsking {
			break
		}
		m, ok := r.machine(known)
		if !ok || m.Boot.Silent { // it boots from neither
			continue
		}
		s.Machines = append(s.Machines, &agentv1.MachineStanding{Mac: m.MAC, Address: m.Addr.Addr().String(),
			Disk: !m.Boot.Ramdisk && !m.Boot.Elsewhere.IsValid()})
	}
	return s
}

// spare says whether a better agent has said what it answers a machine, so that this
// one may say it, too, where the better one's answer does not arrive; and whether that
// is the local disk. The lock is held, and the agent was heard within standingFor. What
// this agent knows itself does not count, except for the machine's address: where that
// is another, it knows something old.
func (r *rack) spare(better *agentv1.Endpoint, s *agentv1.ServerSpec, mac string) (yes, disk bool) {
	h := r.heard[better.GetAgentId()]
	for _, m := range h.GetMachines() {
		if !h.GetHeld() || m.GetMac() != mac {
			continue
		}
		own, err := netip.ParseAddr(s.GetAddress())
		its, itsErr := netip.ParseAddr(m.GetAddress())
		return err == nil && itsErr == nil && own == its, m.GetDisk()
	}
	return false, false
}
