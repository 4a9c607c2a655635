package configure

import (
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"bmc/internal/manifest"
)

// network writes the static address in the words of the image's own network
// service. The NIC is named by its MAC: kernel names differ from system to
// system. Without an address the image's own configuration stays.
func (t *target) network() error {
	if !t.address.IsValid() {
		return nil
	}
	var err error
	switch t.m.Network {
	case manifest.NetworkNetworkd:
		err = t.write("etc/systemd/network/10-bmc.network", []byte(t.networkd()), 0o644)
	case manifest.NetworkIfupdown:
		err = t.write("etc/network/interfaces", []byte(t.ifupdown()), 0o644)
	case manifest.NetworkBusybox:
		err = t.write("etc/network.conf", []byte(t.busybox()), 0o644)
	default:
		return fmt.Errorf("the manifest's network service %q is unknown", t.m.Network)
	}
	if err != nil {
		return err
	}
	return t.resolvConf()
}

func (t *target) networkd() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[Match]\nMACAddress=%s\n\n[Network]\nAddress=%s\n", t.p.MAC, t.address)
	if t.gateway.IsValid() {
		fmt.Fprintf(&b, "Gateway=%s\n", t.gateway)
	}
	for _, d := range t.dns {
		fmt.Fprintf(&b, "DNS=%s\n", d)
	}
	return b.String()
}

// ifupdown matches by MAC (interfaces(5), pattern matching interfaces).
func (t *target) ifupdown() string {
	family := "inet"
	if t.address.Addr().Is6() {
		family = "inet6"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "auto lo\niface lo inet loopback\n\nauto mac/%s=bmc\niface bmc %s static\n\taddress %s\n", t.p.MAC, family, t.address)
	if t.gateway.IsValid() {
		fmt.Fprintf(&b, "\tgateway %s\n", t.gateway)
	}
	if len(t.dns) > 0 {
		fmt.Fprintf(&b, "\tdns-nameservers %s\n", join(t.dns))
	}
	return b.String()
}

// busybox is a file that a shell reads with ".": every value is made of
// address characters only, and quoted all the same.
func (t *target) busybox() string {
	gateway := ""
	if t.gateway.IsValid() {
		gateway = t.gateway.String()
	}
	return fmt.Sprintf("MAC='%s'\nADDRESS='%s'\nPREFIX='%d'\nGATEWAY='%s'\nDNS='%s'\nHOSTNAME='%s'\n",
		t.p.MAC, t.address.Addr(), t.address.Bits(), gateway, join(t.dns), t.p.Hostname)
}

// resolvConf is written for images whose resolver reads it itself. A symlink
// belongs to a service that makes the file (systemd-resolved, resolvconf).
func (t *target) resolvConf() error {
	if len(t.dns) == 0 {
		return nil
	}
	if info, err := t.root.Lstat("etc/resolv.conf"); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	var b strings.Builder
	for _, d := range t.dns {
		fmt.Fprintf(&b, "nameserver %s\n", d)
	}
	return t.write("etc/resolv.conf", []byte(b.String()), 0o644)
}

func join(addrs []netip.Addr) string {
	var list []string
	for _, a := range addrs {
		list = append(list, a.String())
	}
	return strings.Join(list, " ")
}
