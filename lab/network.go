package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"bmc/lab/netns"
	"bmc/lab/vswitch"
)

// Interfaces' names inside the namespaces.
const (
	mgmtInterface = "mgmt0"
	oobInterface  = "oob0"
	rackInterface = "rack0"
	upInterface   = "up0" // of a relay, in the first rack
)

const (
	mgmtName  = "mgmt"
	storeName = "s3"
)

// mgmtMTU makes the management network fast enough for images: each frame costs
// the switch two system calls, whatever its size.
const mgmtMTU = 9000

// oobName is the switch of a rack's controllers; the rack's own is called like
// the rack.
func oobName(rack string) string { return rack + "-oob" }

// lightName is the namespace that the rack's light machines share.
func lightName(rack string) string { return rack + "-light" }

func probeName(rack string) string { return rack + "-probe" }

// relayName is the router between a rack without agents and those that serve it.
func relayName(rack string) string { return rack + "-relay" }

// network is the wiring of a lab. Its parts are made in order and closed in the
// opposite one, after all children that use them.
type network struct {
	log      *slog.Logger
	mgmt     *netns.Namespace
	here     *netns.Namespace // the supervisor's own; for children without a network
	spaces   map[string]*netns.Namespace
	order    []*netns.Namespace
	switches map[string]*vswitch.Switch
}

func newNetwork(p *plan, log *slog.Logger) (_ *network, err error) {
	n := &network{log: log, spaces: map[string]*netns.Namespace{}, switches: map[string]*vswitch.Switch{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.here, err = netns.Current("host"); err != nil {
		return nil, err
	}
	n.switches[mgmtName] = vswitch.New(log)
	if n.mgmt, err = n.addManaged(mgmtName, mgmtAddr(hostMgmt)); err != nil {
		return nil, err
	}
	if _, err := n.addManaged(storeName, mgmtAddr(hostS3)); err != nil {
		return nil, err
	}
	for _, node := range p.nodes {
		if _, err := n.addManaged(node.name, node.addr); err != nil {
			return nil, err
		}
	}
	for _, r := range p.racks {
		if err := n.addRack(r); err != nil {
			return nil, fmt.Errorf("rack %s: %w", r.name, err)
		}
	}
	for _, r := range p.relayed() {
		if err := n.addRelay(p, r); err != nil {
			return nil, fmt.Errorf("relay of rack %s: %w", r.name, err)
		}
	}
	return n, nil
}

func (n *network) add(name string) (*netns.Namespace, error) {
	ns, err := netns.New(name)
	if err != nil {
		return nil, err
	}
	n.spaces[name] = ns
	n.order = append(n.order, ns)
	return ns, nil
}

// addManaged makes a namespace with an address on the management network.
func (n *network) addManaged(name string, addr netip.Addr) (*netns.Namespace, error) {
	ns, err := n.add(name)
	if err != nil {
		return nil, err
	}
	b := addr.As4()
	mac := net.HardwareAddr{0x02, 0x4c, 0x42, b[1], b[2], b[3]}
	return ns, plugIn(n.switches[mgmtName], ns, mgmtInterface, mac, mgmtMTU, netip.PrefixFrom(addr, mgmtBits))
}

func (n *network) addRack(r rackPlan) error {
	sw := vswitch.New(n.log)
	n.switches[r.name] = sw
	gw := r.gateway.As4()
	sw.Announce(r.name+"-switch", vswitch.MAC{0x02, 0x4c, 0x53, gw[1], gw[2], gw[3]})
	oobSwitch := vswitch.New(n.log)
	n.switches[oobName(r.name)] = oobSwitch
	oob, err := n.add(r.name)
	if err != nil {
		return err
	}
	var controllers []netip.Prefix
	for _, s := range r.servers {
		controllers = append(controllers, netip.PrefixFrom(s.oob, rackBits))
	}
	if err := plugIn(oobSwitch, oob, oobInterface, oobMAC(r.probe, 0xff), 0, controllers...); err != nil {
		return err
	}
	if slices.ContainsFunc(r.servers, func(s serverPlan) bool { return s.light }) {
		if _, err := n.add(lightName(r.name)); err != nil {
			return err
		}
	}
	for _, a := range r.agents {
		ns, err := n.addManaged(a.name, a.mgmt)
		if err != nil {
			return err
		}
		if err := plugIn(oobSwitch, ns, oobInterface, oobMAC(a.mac, a.mac[5]), 0, netip.PrefixFrom(a.oob, rackBits)); err != nil {
			return err
		}
		if err := plugIn(sw, ns, rackInterface, a.mac, 0, netip.PrefixFrom(a.rack, rackBits)); err != nil {
			return err
		}
	}
	probe, err := n.add(probeName(r.name))
	if err != nil {
		return err
	}
	return plugIn(sw, probe, rackInterface, r.probe, 0)
}

// addRelay joins a rack without agents to the first rack, whose agents get a way to
// its machines and a port on its controllers' network.
func (n *network) addRelay(p *plan, r rackPlan) error {
	ns, err := n.add(relayName(r.name))
	if err != nil {
		return err
	}
	first := p.racks[0]
	if err := plugIn(n.switches[r.name], ns, rackInterface, r.relay.down, 0, netip.PrefixFrom(r.gateway, rackBits)); err != nil {
		return err
	}
	if err := plugIn(n.switches[first.name], ns, upInterface, r.relay.upward, 0, netip.PrefixFrom(r.relay.up, rackBits)); err != nil {
		return err
	}
	if err := ns.Do(netns.Forward); err != nil {
		return err
	}
	for _, a := range first.agents {
		agent := n.spaces[a.name]
		// Its own interface there, as each of a rack's networks has one.
		name := fmt.Sprintf("oob%d", r.relay.number)
		if err := plugIn(n.switches[oobName(r.name)], agent, name, oobMAC(r.relay.down, a.mac[5]), 0, netip.PrefixFrom(a.oobIn(r), rackBits)); err != nil {
			return err
		}
		if err := agent.Do(func() error { return netns.AddRouteVia(rackInterface, r.subnet, r.relay.up) }); err != nil {
			return err
		}
	}
	return nil
}

// oobMAC is an address like another interface's, for the controllers' network.
func oobMAC(like net.HardwareAddr, last byte) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x4c, 0x43, like[3], like[4], last}
}

// plugIn gives a namespace an interface on a switch, with addresses. The port is
// called like the namespace. mtu 0 is the usual 1,500.
func plugIn(sw *vswitch.Switch, ns *netns.Namespace, name string, mac net.HardwareAddr, mtu int, addrs ...netip.Prefix) error {
	var link netns.Frames
	err := ns.Do(func() (err error) {
		link, err = netns.OpenFrames(name, mac, mtu)
		return err
	})
	if err != nil {
		return err
	}
	if _, err := sw.Attach(ns.Name(), link); err != nil {
		return err
	}
	return ns.Do(func() error {
		for _, a := range addrs {
			if err := netns.AddAddress(name, a); err != nil {
				return err
			}
		}
		return nil
	})
}

// close takes the wiring away. Children in the namespaces must be gone: the
// kernel kills them otherwise.
func (n *network) close() error {
	var errs []error
	for _, sw := range n.switches {
		errs = append(errs, sw.Close())
	}
	for i := len(n.order) - 1; i >= 0; i-- {
		errs = append(errs, n.order[i].Close())
	}
	if n.here != nil {
		errs = append(errs, n.here.Close())
	}
	return errors.Join(errs...)
}
