package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"bmc/lab/netns"
	"bmc/lab/vswitch"
)

// Interfaces' names inside the namespaces.
const (
	mgmtBridge    = "mgmt"
	mgmtInterface = "mgmt0"
	oobBridge     = "oob"
	oobInterface  = "oob0"
	rackInterface = "rack0"
)

const (
	mgmtName  = "mgmt"
	storeName = "s3"
)

func probeName(rack string) string { return rack + "-probe" }

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
	if n.mgmt, err = n.add(mgmtName); err != nil {
		return nil, err
	}
	if err := n.mgmt.Do(func() error {
		return errors.Join(netns.AddBridge(mgmtBridge), netns.AddAddress(mgmtBridge, netip.PrefixFrom(mgmtAddr(hostMgmt), mgmtBits)))
	}); err != nil {
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
	return ns, connect(n.mgmt, mgmtBridge, ns, mgmtInterface, netip.PrefixFrom(addr, mgmtBits))
}

// connect lays a cable from a bridge to a namespace and gives its end an address.
func connect(from *netns.Namespace, bridge string, to *netns.Namespace, name string, addr netip.Prefix) error {
	if err := from.Do(func() error { return netns.AddVeth(to.Name(), bridge, to, name) }); err != nil {
		return err
	}
	return to.Do(func() error { return netns.AddAddress(name, addr) })
}

func (n *network) addRack(r rackPlan) error {
	sw := vswitch.New(n.log)
	n.switches[r.name] = sw
	oob, err := n.add(r.name)
	if err != nil {
		return err
	}
	if err := oob.Do(func() error {
		err := netns.AddBridge(oobBridge)
		for _, s := range r.servers {
			err = errors.Join(err, netns.AddAddress(oobBridge, netip.PrefixFrom(s.oob, rackBits)))
		}
		return err
	}); err != nil {
		return err
	}
	for _, a := range r.agents {
		ns, err := n.addManaged(a.name, a.mgmt)
		if err != nil {
			return err
		}
		if err := connect(oob, oobBridge, ns, oobInterface, netip.PrefixFrom(a.oob, rackBits)); err != nil {
			return err
		}
		if err := plugIn(sw, ns, a.mac, netip.PrefixFrom(a.rack, rackBits)); err != nil {
			return err
		}
	}
	probe, err := n.add(probeName(r.name))
	if err != nil {
		return err
	}
	return plugIn(sw, probe, r.probe, netip.Prefix{})
}

// plugIn gives a namespace an interface on the rack's switch.
func plugIn(sw *vswitch.Switch, ns *netns.Namespace, mac net.HardwareAddr, addr netip.Prefix) error {
	var link netns.Frames
	err := ns.Do(func() (err error) {
		link, err = netns.OpenFrames(rackInterface, mac)
		return err
	})
	if err != nil {
		return err
	}
	if _, err := sw.Attach(ns.Name(), link); err != nil {
		return err
	}
	if !addr.IsValid() {
		return nil
	}
	return ns.Do(func() error { return netns.AddAddress(rackInterface, addr) })
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
