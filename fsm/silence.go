package fsm

import (
	"time"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// silenceLevel is the feature level whose leaders mark leases that are not renewed.
const silenceLevel = 5

// markSilence notes for how long leases have not been renewed. It comes for many
// racks at once, so that what another command has overtaken is passed over.
func (a *applier) markSilence(m *logpb.MarkSilence, _ *Result) *metal.Error {
	for _, s := range m.GetRacks() {
		rack, ok := a.Rack(s.GetRackId())
		if silent := time.Duration(s.GetSilent()); ok && rack.Lease.Epoch == s.GetEpoch() && silent > rack.Lease.Silent {
			a.silence(rack, silent)
		}
	}
	return nil
}

// clearSilence takes a mark back. It is refused under another epoch than the
// state's, so that its success says that the renewal behind it may be acknowledged.
func (a *applier) clearSilence(m *logpb.ClearSilence, r *Result) *metal.Error {
	rack, ok := a.Rack(m.GetRackId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no rack %q", m.GetRackId())
	}
	a.target, r.ID = rack.Name, rack.ID
	if rack.Lease.Epoch != m.GetEpoch() {
		return metal.Errorf(metal.CodeStaleEpoch, "the lease of rack %s is at epoch %d, not %d", rack.Name, rack.Lease.Epoch, m.GetEpoch())
	}
	if rack.Lease.Silent != 0 {
		a.silence(rack, 0)
	}
	return nil
}

func (a *applier) silence(rack *metal.Rack, silent time.Duration) {
	changed := *rack
	changed.Lease.Silent = silent
	a.PutRack(&changed)
}

// Backup is a View as it may be kept and put back: without marks of silence, which
// speak of leases that have been renewed since.
func Backup(v *state.View) *state.View {
	x := v.Begin()
	a := &applier{Txn: x}
	for _, rack := range collect(x.Racks()) {
		if rack.Lease.Silent != 0 {
			a.silence(rack, 0)
		}
	}
	return x.Commit()
}
