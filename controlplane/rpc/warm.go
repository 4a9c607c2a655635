package rpc

import (
	"context"
	"fmt"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// warmLevel is the feature level with which servers may wait in the ramdisk.
const warmLevel = 3

// SetRackWarm says how many of a rack's available servers wait in the ramdisk.
func (s *inventory) SetRackWarm(ctx context.Context, req *bmcv1.SetRackWarmRequest) (*bmcv1.Rack, error) {
	n, err := metal.ParseWarm("warm", req.GetWarm())
	if err != nil {
		return nil, err
	}
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	r, err := v.ResolveRack(req.GetRef())
	if err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_SetRackWarm{SetRackWarm: &logpb.SetRackWarm{RackId: r.ID, Warm: int64(n)}}}); err != nil {
		return nil, err
	}
	return s.GetRack(ctx, &bmcv1.GetRackRequest{Ref: r.ID})
}

// cost adds how many of a rack's servers wait in the ramdisk, and what they draw.
func (s *inventory) cost(v *state.View, out *bmcv1.Rack) *bmcv1.Rack {
	for srv := range v.Waiting(out.GetId(), "") {
		out.Waiting++
		if w := s.watts.of(srv.ID, s.Now()); w != nil && !w.GetUnknown() {
			out.Watts += w.GetWatts()
		} else {
			out.Unmetered++
		}
	}
	return out
}

// toWarm shows a server's warmth; nil where there is nothing to tell.
func toWarm(w *metal.Warm) *bmcv1.Warm {
	if w == nil || !w.Waits() && w.Tries == 0 {
		return nil
	}
	out := &bmcv1.Warm{BootId: w.BootID, Ramdisk: w.Ramdisk, Since: stamp(w.Since), Tries: uint32(w.Tries), Problem: w.Problem}
	if !w.Waits() && w.Tries < metal.MaxWarmTries {
		out.Next = stamp(w.Next)
	}
	return out
}

// waitsForTenant says how an available server waits for one.
func waitsForTenant(v *state.View, s *metal.Server) string {
	const somebody = " waits for somebody to rent it"
	r, ok := v.Rack(s.RackID)
	wanted := ok && r.Warm != 0
	switch w := s.Warm; {
	case w.Waits():
		return fmt.Sprintf("%s waits warm in ramdisk %s since %s for somebody to rent it", refName(s), w.Ramdisk, w.Since.UTC().Format(time.RFC3339))
	case !wanted || w == nil || w.Tries == 0:
		return refName(s) + somebody
	case w.Tries >= metal.MaxWarmTries:
		return fmt.Sprintf("%s%s; it is left cold after %d tries: %s (bmc rack warm %s %s tries again)", refName(s), somebody, w.Tries, w.Problem, r.Name, metal.WarmText(r.Warm))
	default:
		return fmt.Sprintf("%s%s; it is cold until %s, after %d of %d tries: %s", refName(s), somebody, w.Next.UTC().Format(time.RFC3339), w.Tries, metal.MaxWarmTries, w.Problem)
	}
}
