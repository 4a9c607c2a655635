package state

import (
	"iter"
	"net/netip"
	"slices"
	"strings"

	"bmc/metal"
)

func addressKey(rack string, a netip.Addr) string {
	b := a.As16()
	return join(rack, string(b[:]))
}

func createdKey(o *metal.Operation) string { return be(uint64(o.Created.UnixNano())) }

func (x *Txn) indexServer(old, s *metal.Server) {
	id := ""
	for _, v := range []*metal.Server{s, old} {
		if v != nil {
			id = v.ID
		}
	}
	move := func(ix *index, key func(*metal.Server) string) {
		ix.swap(x.own, nameOf(old, key), nameOf(s, key), id)
	}
	move(&x.serverSerial, func(s *metal.Server) string { return serialKey(s.Serial) })
	move(&x.serverOOB, func(s *metal.Server) string { return join(s.RackID, s.OOB.Address) })
	move(&x.capacity, capacityKey)
	move(&x.warm, func(s *metal.Server) string {
		if s.State != metal.StateAvailable || !s.Warm.Waits() {
			return ""
		}
		return join(s.RackID, s.Size, s.Name)
	})
	move(&x.rentalName, func(s *metal.Server) string {
		if s.Rental == nil {
			return ""
		}
		return join(s.Rental.Project, s.Rental.Name)
	})
	x.indexMACs(old, s, id)
	for _, c := range []struct {
		s  *metal.Server
		by int
	}{{old, -1}, {s, 1}} {
		if c.s == nil {
			continue
		}
		x.bump(join("state", string(c.s.State)), c.by)
		x.bump(join("capacity", c.s.RackID, c.s.Size, string(c.s.State)), c.by)
		if c.s.Warm != nil {
			x.bump(join("warmth", c.s.RackID), c.by)
		}
		if r := c.s.Rental; r != nil && !r.Released {
			x.bump(join("rentals", r.Project), c.by)
		}
	}
}

// serialKey is equal for serial numbers that metal.Identity takes for one, and ""
// for those that say nothing.
func serialKey(serial string) string {
	return strings.ToLower(strings.ToUpper(metal.ProperSerial(serial)))
}

// ServersLike are those that a machine may be, by ID: they have its serial number
// or one of its network ports. No other compares as anything but different.
func (t *tables) ServersLike(id metal.Identity) []*metal.Server {
	var ids []string
	add := func(ix *index, key string) {
		for e := range ix.prefixed(key) {
			if key == "" || e.key != key { // longer ones follow
				break
			}
			ids = append(ids, e.id)
		}
	}
	add(&t.serverSerial, serialKey(id.Serial))
	for _, mac := range id.MACs {
		add(&t.serverMAC, strings.ToLower(mac))
	}
	slices.Sort(ids)
	var out []*metal.Server
	for _, id := range slices.Compact(ids) {
		if s := t.server(id); s != nil {
			out = append(out, s)
		}
	}
	return out
}

func capacityKey(s *metal.Server) string { return join(s.RackID, string(s.State), s.Size, s.Name) }

func (x *Txn) indexMACs(old, s *metal.Server, id string) {
	if old != nil && s != nil && equal(old.MACs, s.MACs) {
		return
	}
	if old != nil {
		for _, m := range old.MACs {
			x.serverMAC.swap(x.own, m, "", id)
		}
	}
	if s != nil {
		for _, m := range s.MACs {
			x.serverMAC.swap(x.own, "", m, id)
		}
	}
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func (x *Txn) indexOperation(old, o *metal.Operation) {
	open := func(o *metal.Operation) string {
		if o == nil || o.State.Ended() {
			return ""
		}
		return createdKey(o)
	}
	all := func(o *metal.Operation) string { return nameOf(o, createdKey) }
	server := func(o *metal.Operation) string {
		return nameOf(o, func(o *metal.Operation) string { return join(o.ServerID, createdKey(o)) })
	}
	id := ""
	for _, v := range []*metal.Operation{o, old} {
		if v != nil {
			id = v.ID
		}
	}
	x.openOps.swap(x.own, open(old), open(o), id)
	x.createdOps.swap(x.own, all(old), all(o), id)
	x.serverOps.swap(x.own, server(old), server(o), id)
	if old != nil {
		x.bump(join("ops", old.ServerID), -1)
	}
	if o != nil {
		x.bump(join("ops", o.ServerID), 1)
	}
}

func (x *Txn) indexImage(old, i *metal.Image) {
	key := func(i *metal.Image) string { return join(i.Project, i.Name, be(uint64(i.Created.UnixNano()))) }
	id := ""
	if i != nil {
		id = i.ID
	} else if old != nil {
		id = old.ID
	}
	x.imageName.swap(x.own, nameOf(old, key), nameOf(i, key), id)
}

func (x *Txn) indexKey(old, k *metal.SSHKey, id string) {
	name := func(k *metal.SSHKey) string { return join(k.Project, k.Name) }
	fingerprint := func(k *metal.SSHKey) string { return join(k.Project, k.Fingerprint) }
	x.keyName.swap(x.own, nameOf(old, name), nameOf(k, name), id)
	x.keyPrint.swap(x.own, nameOf(old, fingerprint), nameOf(k, fingerprint), id)
	if old != nil {
		x.bump(join("keys", old.Project), -1)
	}
	if k != nil {
		x.bump(join("keys", k.Project), 1)
	}
}

// DeleteAddress frees an address.
func (x *Txn) DeleteAddress(rack string, a netip.Addr) {
	key := addressKey(rack, a)
	x.loans.swap(x.own, nameOf(x.addresses.del(x.own, key), loanKey), "", key)
}

// loanKey is "" for an address that is a server's.
func loanKey(a *metal.AddressAssignment) string {
	if !a.Lent() {
		return ""
	}
	return join(a.RackID, a.MAC)
}

func collect[T any](s iter.Seq[T]) []T {
	var out []T
	for v := range s {
		out = append(out, v)
	}
	return out
}
