package rpc

import (
	"cmp"
	"context"
	"slices"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// ListModels counts the servers of each model, and lists those of which something
// is known though no server is left.
func (s *inventory) ListModels(ctx context.Context, req *bmcv1.ListModelsRequest) (*bmcv1.ListModelsResponse, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	return &bmcv1.ListModelsResponse{Models: models(v)}, nil
}

func models(v *state.View) []*bmcv1.Model {
	byName := map[string]*bmcv1.Model{}
	for m := range v.Models() {
		byName[m.Name()] = &bmcv1.Model{Vendor: m.Vendor, Product: m.Product, KexecOff: m.KexecOff, KexecFailures: uint32(m.KexecFailures), //nolint:gosec // never negative
			Reason: m.Reason, Since: stamp(m.Since)}
	}
	var out []*bmcv1.Model
	for srv := range v.Servers(state.ServerFilter{}) {
		if srv.Hardware == nil {
			continue
		}
		m := metal.Model{Vendor: srv.Hardware.Vendor, Product: srv.Hardware.Product}
		if byName[m.Name()] == nil {
			byName[m.Name()] = &bmcv1.Model{Vendor: m.Vendor, Product: m.Product}
		}
		byName[m.Name()].Servers++
	}
	for _, m := range byName {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *bmcv1.Model) int {
		return cmp.Or(cmp.Compare(a.GetVendor(), b.GetVendor()), cmp.Compare(a.GetProduct(), b.GetProduct()))
	})
	return out
}

// SetModelKexec switches kexec for a model that is there.
func (s *inventory) SetModelKexec(ctx context.Context, req *bmcv1.SetModelKexecRequest) (*bmcv1.Model, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	named := func(v *state.View) *bmcv1.Model {
		for _, m := range models(v) {
			if (&metal.Model{Vendor: m.GetVendor(), Product: m.GetProduct()}).Name() == req.GetModel() {
				return m
			}
		}
		return nil
	}
	m := named(v)
	if m == nil {
		return nil, metal.Errorf(metal.CodeNotFound, "no machine is of the model %q", req.GetModel()).WithHint("bmc inventory models")
	}
	if _, err := s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_SetModelKexec{SetModelKexec: &logpb.SetModelKexec{
		Vendor: m.GetVendor(), Product: m.GetProduct(), On: req.GetOn()}}}); err != nil {
		return nil, err
	}
	if now := named(s.Proposer.StaleView()); now != nil { // Apply has run here
		return now, nil
	}
	return m, nil
}

// kexecOff says why an image must not be started by kexec on a server; "" when it
// may be.
func kexecOff(v *state.View, srv *metal.Server) string {
	if srv.Holds[metal.HoldNoKexec] {
		return "an operator has switched kexec off for " + srv.Name
	}
	if srv.Hardware == nil {
		return ""
	}
	if srv.Hardware.SecureBoot {
		return "Secure Boot is on"
	}
	if m, ok := v.Model(srv.Hardware.Vendor, srv.Hardware.Product); ok && m.KexecOff {
		return "kexec is off for " + m.Name() + ": " + m.Reason
	}
	return ""
}
