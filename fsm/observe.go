package fsm

import (
	"slices"

	"bmc/fsm/logpb"
	"bmc/metal"
)

// conditions are those that may be observed; late is the state machine's own.
var conditions = []metal.Condition{metal.ConditionOOBUnreachable, metal.ConditionAgentLost,
	metal.ConditionHardwareDegraded, metal.ConditionBootEntry}

// observe records what an agent, under its lease, or the leader saw.
func (a *applier) observe(m *logpb.Observe, _ *Result) *metal.Error {
	rack, ok := a.Rack(m.GetRackId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no rack %q", m.GetRackId())
	}
	a.target = rack.Name
	if id := m.GetAgentId(); id != "" && (rack.Lease.Agent != id || rack.Lease.Epoch != m.GetEpoch()) {
		return metal.Errorf(metal.CodeStaleEpoch, "the lease of rack %s is not held by agent %q at epoch %d", rack.Name, id, m.GetEpoch())
	}
	for _, ob := range m.GetObservations() {
		s, ok := a.Server(ob.GetServerId())
		if !ok || s.RackID != rack.ID {
			continue // it may have been forgotten meanwhile
		}
		if err := a.see(s, ob); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) see(was *metal.Server, ob *logpb.Observation) *metal.Error {
	s := *was
	changed := false
	switch p := metal.Power(ob.GetPower()); p {
	case "":
	case metal.PowerOn, metal.PowerOff, metal.PowerUnknown:
		if p != s.Power.Observed {
			a.observed(&s, p)
			a.event("server.power", &s, nil, "", "power is "+string(p))
			changed = true
			if p == metal.PowerOff && s.Warm.Waits() {
				a.notWarm(&s, "its management controller read off")
			}
		}
	default:
		return metal.Invalid("power", "%q is not on, off or unknown", ob.GetPower())
	}
	for _, name := range append(slices.Clone(ob.GetRaised()), ob.GetCleared()...) {
		if !slices.Contains(conditions, metal.Condition(name)) {
			return metal.Invalid("conditions", "%q is not a condition that can be observed", name)
		}
	}
	for _, name := range ob.GetRaised() {
		c := metal.Condition(name)
		if _, is := s.Conditions[c]; !is {
			a.raise(&s, c, shorten(ob.GetMessage()))
			a.event("server.condition", &s, nil, "", name+": "+shorten(ob.GetMessage()))
			changed = true
		}
	}
	for _, name := range ob.GetCleared() {
		c := metal.Condition(name)
		if _, is := s.Conditions[c]; is {
			clearCondition(&s, c)
			a.event("server.condition", &s, nil, "", name+" has passed")
			changed = true
		}
	}
	if id := ob.GetWarmLost(); s.Warm.Waits() && s.Warm.BootID == id {
		a.notWarm(&s, "its ramdisk was not heard any more")
		changed = true
	}
	if changed {
		a.PutServer(&s)
	}
	return nil
}
