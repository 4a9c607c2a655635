package fsm

import (
	"iter"
	"slices"

	"bmc/fsm/logpb"
	"bmc/metal"
)

// An epoch's upper half is the generation: one number compares both, and what a
// restored backup grants is above all that was granted before.
const (
	generationShift = 32
	maxGeneration   = 1<<31 - 1
)

func (a *applier) grantLease(m *logpb.GrantLease, r *Result) *metal.Error {
	rack, ok := a.Rack(m.GetRackId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no rack %q", m.GetRackId())
	}
	a.target, r.ID = rack.Name, rack.ID
	if rack.Lease.Epoch != m.GetExpectedEpoch() {
		return metal.Errorf(metal.CodeStaleEpoch, "the lease of rack %s is at epoch %d, not %d", rack.Name, rack.Lease.Epoch, m.GetExpectedEpoch())
	}
	message := "nobody holds the rack's lease"
	if id := m.GetAgentId(); id != "" {
		ag, ok := a.Agent(id)
		if !ok {
			return metal.Errorf(metal.CodeNotFound, "there is no agent %q", id)
		}
		if !slices.Contains(ag.Racks, rack.ID) {
			return metal.Errorf(metal.CodeDenied, "agent %s may not serve rack %s", ag.Name, rack.Name)
		}
		message = "agent " + ag.Name + " holds the rack's lease"
	}
	r.Value = a.lease(rack, m.GetAgentId())
	a.note("rack.lease", rack.Name, "", message)
	return nil
}

// lease hands a rack over; the epoch always rises.
func (a *applier) lease(rack *metal.Rack, agent string) metal.Lease {
	changed := *rack
	generation := a.Meta().Generation
	changed.Lease = metal.Lease{Agent: agent, Generation: generation, Granted: a.now,
		Epoch: max(rack.Lease.Epoch+1, generation<<generationShift+1)}
	a.PutRack(&changed)
	return changed.Lease
}

func collect[T any](s iter.Seq[T]) []T { return slices.Collect(s) }

// freshID refuses IDs that are empty, too long for a key, or taken.
func (a *applier) freshID(noun, id string, taken func(string) bool) *metal.Error {
	if err := plain(noun+" id", id); err != nil {
		return err
	}
	if taken(id) {
		return metal.Errorf(metal.CodeConflict, "%s ID %s is taken", noun, id)
	}
	return nil
}

// plain refuses what would not make a sound key.
func plain(field, s string) *metal.Error {
	if s == "" || len(s) > 128 {
		return metal.Invalid(field, "has %d characters, must have 1 to 128", len(s))
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return metal.Invalid(field, "has characters that IDs do not have")
		}
	}
	return nil
}
