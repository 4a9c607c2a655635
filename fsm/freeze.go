package fsm

import (
	"strings"
	"time"

	"bmc/fsm/logpb"
	"bmc/metal"
)

// FreezeLevel is the feature level at which operators freeze racks.
const FreezeLevel = 6

// MaxReason bounds the reason that a person gives for the record, in bytes.
const MaxReason = 500

// freezeRacks has nothing new start in racks, or takes that back: all of them or none.
// What a restored backup has frozen is another matter, and stays. Result.ID is the
// first one's.
func (a *applier) freezeRacks(m *logpb.FreezeRacks, r *Result) *metal.Error {
	if len(m.GetRackIds()) == 0 {
		return metal.Invalid("refs", "name no rack")
	}
	if len(m.GetReason()) > MaxReason {
		return metal.Invalid("reason", "has %d bytes, at most %d are kept", len(m.GetReason()), MaxReason)
	}
	r.ID = m.GetRackIds()[0]
	var names []string
	for _, id := range m.GetRackIds() {
		rack, ok := a.Rack(id)
		if !ok {
			return metal.Errorf(metal.CodeNotFound, "there is no rack %q", id).WithHint("bmc rack list")
		}
		names = append(names, rack.Name)
		a.stop(rack, m.GetThaw(), m.GetReason())
	}
	a.target = shorten(strings.Join(names, ","))
	return nil
}

// stop does one rack. Who freezes it again keeps the time of the first, and gives a
// new reason.
func (a *applier) stop(rack *metal.Rack, thaw bool, why string) {
	changed, by := *rack, a.h.GetPrincipal()
	switch {
	case thaw && !rack.Stopped():
		return
	case thaw:
		changed.Stop = metal.Stop{}
		a.note("rack.thawed", rack.Name, "", "rack "+rack.Name+" was thawed by "+by)
	default:
		since := rack.Stop.Since
		if !rack.Stopped() {
			since = a.now
		}
		if changed.Stop = (metal.Stop{By: by, Why: why, Since: since}); changed.Stop == rack.Stop {
			return
		}
		a.note("rack.frozen", rack.Name, "", stopped(&changed).Message)
	}
	a.PutRack(&changed)
}

func stopped(rack *metal.Rack) *metal.Error {
	why := ""
	if rack.Stop.Why != "" {
		why = ": " + rack.Stop.Why
	}
	return metal.Errorf(metal.CodeRackFrozen, "rack %s was frozen by %s at %s%s", rack.Name, rack.Stop.By, rack.Stop.Since.UTC().Format(time.RFC3339), why).
		WithHint("bmc cluster thaw %s", rack.Name)
}
