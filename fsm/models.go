package fsm

import (
	"fmt"

	"bmc/fsm/logpb"
	"bmc/metal"
)

// maxKexecFailures is how many systems of a model may come up from disk alone
// before kexec is switched off for it.
const maxKexecFailures = 2

// maybeSlow is what else such an event may mean: the agents wait for half of the
// ten minutes that step ready has there.
const maybeSlow = " (a first boot that merely takes more than five minutes counts as that, too)"

// kexecFailed counts a system that was not seen in half of its time after its kernel
// was started by kexec, and came up from disk: so the image is well, and the machine
// is not made for it. Or its first boot takes that long: nobody can tell from here,
// so the events say it. An image that does not come up from disk either says
// nothing of kexec.
func (a *applier) kexecFailed(o *metal.Operation, s *metal.Server) {
	if s.Hardware == nil || s.Hardware.Vendor+s.Hardware.Product == "" {
		a.event("server.kexec-failed", s, o, "", s.Name+" came up from disk, and not by kexec"+maybeSlow)
		return
	}
	m := a.modelOf(s.Hardware.Vendor, s.Hardware.Product)
	m.KexecFailures++
	a.event("server.kexec-failed", s, o, "", fmt.Sprintf("%s came up from disk, and not by kexec: %d of %d for %s", s.Name, m.KexecFailures, maxKexecFailures, m.Name())+maybeSlow)
	if m.KexecFailures >= maxKexecFailures && !m.KexecOff {
		m.KexecOff, m.Since = true, a.now
		m.Reason = fmt.Sprintf("%d systems came up from disk, and not by kexec; the last on %s", m.KexecFailures, s.Name)
		a.note("model.kexec-off", m.Name(), "", "kexec is off for "+m.Name()+": "+m.Reason+maybeSlow+". To switch it on again: bmc inventory kexec '"+m.Name()+"' on")
	}
	a.PutModel(m)
}

// modelOf is a copy of what is known, or a new row.
func (a *applier) modelOf(vendor, product string) *metal.Model {
	if m, ok := a.Model(vendor, product); ok {
		c := *m
		return &c
	}
	return &metal.Model{Vendor: vendor, Product: product}
}

// setModelKexec is an operator's word. Switched on, a model has a clean slate.
func (a *applier) setModelKexec(c *logpb.SetModelKexec, r *Result) *metal.Error {
	a.target = c.GetVendor() + "/" + c.GetProduct()
	for _, v := range []string{c.GetVendor(), c.GetProduct()} {
		if len(v) > 256 {
			return metal.Invalid("model", "is longer than 512 bytes")
		}
	}
	m := a.modelOf(c.GetVendor(), c.GetProduct())
	r.ID, r.Value = m.Name(), m
	if m.KexecOff != c.GetOn() && (!c.GetOn() || m.KexecFailures == 0) {
		return nil
	}
	word := "off"
	m.KexecOff, m.Since, m.Reason = !c.GetOn(), a.now, "switched off by "+a.h.GetPrincipal()
	if c.GetOn() {
		word, m.KexecFailures, m.Reason = "on", 0, ""
	}
	a.note("model.kexec-"+word, m.Name(), "", "kexec was switched "+word+" for "+m.Name())
	a.PutModel(m)
	return nil
}
