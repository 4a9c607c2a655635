package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
	"bmc/netboot"
)

// errStandby is why a standby asks for no address: the lease's holder does.
var errStandby = errors.New("the rack's lease is not held here")

// lendAddress has the control plane lend a MAC an address, while the rack's lease
// is held here: without a quorum there is no discovery.
func (a *Agent) lendAddress(ctx context.Context, rack, mac string) (addr netip.Addr, ttl time.Duration, err error) {
	epoch, held := a.leases[rack].Held()
	if !held {
		return netip.Addr{}, 0, errStandby
	}
	err = a.nodes.call(ctx, issueLimit, func(ctx context.Context, c agentv1.ControlClient) error {
		resp, err := c.LendAddress(ctx, &agentv1.LendAddressRequest{Rack: rack, Epoch: epoch, Mac: mac})
		if err != nil {
			return err
		}
		ttl = resp.GetTtl().AsDuration()
		addr, err = netip.ParseAddr(resp.GetAddress())
		return err
	})
	return addr, ttl, err
}

// reportDiscovered brings the control plane what a machine said it is.
func (a *Agent) reportDiscovered(ctx context.Context, rack, mac string, h *agentv1.Hardware) (resp *agentv1.ReportDiscoveredResponse, err error) {
	epoch, held := a.leases[rack].Held()
	if !held {
		return nil, &metal.Error{Code: metal.CodeNoLeader, Message: "another agent has the rack at the moment", Err: errStandby}
	}
	err = a.nodes.call(ctx, issueLimit, func(ctx context.Context, c agentv1.ControlClient) (err error) {
		resp, err = c.ReportDiscovered(ctx, &agentv1.ReportDiscoveredRequest{Rack: rack, Epoch: epoch, Mac: mac, Hardware: h})
		return err
	})
	return resp, err
}

// endpointOf is where a rack's ramdisks reach us.
func (a *Agent) endpointOf(rack string) string {
	for _, r := range a.racks {
		if r.conf.Name == rack {
			return net.JoinHostPort(r.conf.addr().String(), strconv.Itoa(a.cfg.TLSPort))
		}
	}
	return ""
}

// events hears what a rack's machines do.
func (a *Agent) events(r *rack) netboot.Events {
	note := a.sightings[r.conf.Name].note
	return func(e netboot.Event) {
		note(e)
		if e.Kind == netboot.EventDecline && e.ServerID != "" {
			a.ops.Tell(e.ServerID, "the machine says that its address "+e.Addr.String()+" is in use by another on the rack's network, and does not take it")
		}
		// Only what boots from the network is answered: no laptop is.
		if e.Kind == netboot.EventUnknown && e.Detail == netboot.DetailBoots || e.Kind == netboot.EventDHCP && e.ServerID == "" {
			if r.discovers() {
				r.strangers.Note(r.conf.Name, e.MAC)
			}
		}
		if e.Kind == netboot.EventUnserved && e.Detail == netboot.DetailElsewhere {
			r.asking.note(e.MAC, time.Now())
		}
	}
}

// discovers says whether machines that nobody knows may say what they are.
func (r *rack) discovers() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.spec.GetDiscovery() && r.before == nil && r.strangers != nil
}

// stranger is a machine that nobody knows, as network boot sees it; the lock is
// held. It gets the ramdisk or nothing, and never a NAK.
func (r *rack) stranger(mac string) (netboot.Machine, bool) {
	if !r.spec.GetDiscovery() || r.before != nil || r.strangers == nil {
		return netboot.Machine{}, false
	}
	addr, left, ok := r.strangers.Lent(r.conf.Name, mac)
	subnet, err := netip.ParsePrefix(r.spec.GetSubnet())
	if !ok || err != nil || !subnet.Contains(addr) {
		return netboot.Machine{}, false
	}
	m := netboot.Machine{MAC: mac, Addr: netip.PrefixFrom(addr, subnet.Bits()), LeaseTime: max(left, time.Minute), Boot: netboot.BootSpec{Ramdisk: true}}
	if gw, err := netip.ParseAddr(r.spec.GetGateway()); err == nil {
		m.Gateway = gw
	}
	return m, true
}

// strangerAt is the one that an address is lent to; the lock is held.
func (r *rack) strangerAt(addr netip.Addr) (netboot.Machine, bool) {
	if !r.spec.GetDiscovery() || r.strangers == nil {
		return netboot.Machine{}, false
	}
	mac, ok := r.strangers.ByAddr(r.conf.Name, addr)
	if !ok {
		return netboot.Machine{}, false
	}
	return r.stranger(mac)
}
