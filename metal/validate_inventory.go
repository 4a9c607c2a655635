package metal

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Limits of the inventory.
const (
	DefaultLeaseTime = time.Hour
	MaxLeaseTime     = 30 * 24 * time.Hour
	MinLeaseTime     = time.Minute
)

// Validate checks a rack on its own: an IPv4 subnet from /8 to /30, everything
// else inside it, a range in order that holds neither network nor broadcast.
func (r *Rack) Validate(field string) error {
	if err := ValidateName(field+".name", r.Name); err != nil {
		return err
	}
	if !r.Subnet.IsValid() || !r.Subnet.Addr().Is4() || r.Subnet.Bits() < 8 || r.Subnet.Bits() > 30 {
		return Invalid(field+".subnet", "%q is not an IPv4 subnet between /8 and /30", r.Subnet)
	}
	if r.Subnet.Masked() != r.Subnet {
		return Invalid(field+".subnet", "%s has host bits set: write %s", r.Subnet, r.Subnet.Masked())
	}
	if r.Gateway.IsValid() && !r.Usable(r.Gateway) {
		return Invalid(field+".gateway", "%s is not a host address of %s", r.Gateway, r.Subnet)
	}
	for _, a := range []struct {
		name string
		addr netip.Addr
	}{{"range_from", r.RangeFrom}, {"range_to", r.RangeTo}} {
		if !a.addr.IsValid() {
			return Invalid(field+"."+a.name, "is empty: say which addresses of %s may be assigned", r.Subnet)
		}
		if !r.Usable(a.addr) {
			return Invalid(field+"."+a.name, "%s is not a host address of %s", a.addr, r.Subnet)
		}
	}
	if r.RangeTo.Less(r.RangeFrom) {
		return Invalid(field+".range_to", "%s comes before range_from %s", r.RangeTo, r.RangeFrom)
	}
	for _, d := range r.DNS {
		if !d.IsValid() || !d.Is4() || d.IsUnspecified() || d.IsMulticast() {
			return Invalid(field+".dns", "%s is not an IPv4 address", d)
		}
	}
	if len(r.DNS) > 8 {
		return Invalid(field+".dns", "has %d servers, at most 8 are offered", len(r.DNS))
	}
	if err := validateDomain(field+".domain", r.Domain); err != nil {
		return err
	}
	if r.LeaseTime < MinLeaseTime || r.LeaseTime > MaxLeaseTime {
		return Invalid(field+".lease_time", "%s is not between %s and %s", r.LeaseTime, MinLeaseTime, MaxLeaseTime)
	}
	if r.Warm < WarmAll || r.Warm > MaxWarm {
		return Invalid(field+".warm", "%d is not a number up to %d", r.Warm, MaxWarm)
	}
	return nil
}

// Usable says whether an address is a host's in the rack's subnet: inside, and
// neither the network's nor the broadcast address.
func (r *Rack) Usable(a netip.Addr) bool {
	if !a.Is4() || !r.Subnet.Contains(a) || a == r.Subnet.Masked().Addr() {
		return false
	}
	b := a.As4()
	host := uint32(1)<<(32-r.Subnet.Bits()) - 1
	return binary.BigEndian.Uint32(b[:])&host != host
}

// InRange says whether an address may be assigned to a server: in the range,
// and not the gateway's.
func (r *Rack) InRange(a netip.Addr) bool {
	return r.Usable(a) && a != r.Gateway && !a.Less(r.RangeFrom) && !r.RangeTo.Less(a)
}

func validateDomain(field, domain string) error {
	if domain == "" {
		return nil
	}
	if len(domain) > 200 {
		return Invalid(field, "is longer than 200 characters")
	}
	for _, label := range strings.Split(domain, ".") {
		if ValidateName(field, label) != nil {
			return Invalid(field, "%q is not a DNS domain", clip(domain))
		}
	}
	return nil
}

// Validate checks a size on its own.
func (s *Size) Validate(field string) error {
	if err := ValidateName(field+".name", s.Name); err != nil {
		return err
	}
	if s.MinCPUThreads < 0 || s.MinCPUThreads > 1<<16 {
		return Invalid(field+".min_cpu_threads", "%d is not between 0 and 65536", s.MinCPUThreads)
	}
	if err := s.Rule.Validate(field + ".rule"); err != nil {
		return err
	}
	return validateText(field+".root_disk_hint", s.RootDiskHint, 128)
}

// Validate checks the way to a management controller. The password is sealed
// by now: its length is the concern of whoever seals it.
func (o *OOB) Validate(field string) error {
	switch o.Protocol {
	case "ipmi", "ipmitool", "redfish":
	default:
		return Invalid(field+".protocol", "%q is not ipmi, ipmitool or redfish", clip(o.Protocol))
	}
	if err := ValidateHostPort(field+".address", o.Address, false); err != nil {
		return err
	}
	if err := validateText(field+".username", o.Username, 64); err != nil {
		return err
	}
	if o.Protocol != "redfish" && len(o.Username) > 16 {
		return Invalid(field+".username", "has %d bytes, IPMI has 16", len(o.Username))
	}
	if o.CipherSuite < 0 || o.CipherSuite > 17 {
		return Invalid(field+".cipher_suite", "%d is not an IPMI cipher suite: use 17, 3, or 0 to try both", o.CipherSuite)
	}
	return nil
}

// Validate checks what an inventory file says of a server, on its own.
func (s *Server) Validate(field string) error {
	if err := ValidateName(field+".name", s.Name); err != nil {
		return err
	}
	if len(s.MACs) == 0 || len(s.MACs) > MaxMACs {
		return Invalid(field+".macs", "has %d addresses: give 1 to %d, the boot NIC first", len(s.MACs), MaxMACs)
	}
	for i, m := range s.MACs {
		n, err := NormalizeMAC(field+".macs", m)
		if err != nil {
			return err
		}
		if n != m {
			return Invalid(field+".macs", "%q is not written as %s", clip(m), n)
		}
		for _, other := range s.MACs[:i] {
			if other == m {
				return Invalid(field+".macs", "%s is there twice", m)
			}
		}
	}
	if err := s.OOB.Validate(field + ".oob"); err != nil {
		return err
	}
	if len(s.Labels) > MaxLabels {
		return Invalid(field+".labels", "has %d, at most %d are kept", len(s.Labels), MaxLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		if err := ValidateLabel(k, s.Labels[k]); err != nil {
			return err
		}
	}
	for _, t := range []struct{ name, text string }{{"serial", s.Serial}, {"uuid", s.UUID}} {
		if err := validateText(field+"."+t.name, t.text, 128); err != nil {
			return err
		}
	}
	return validateConsole(field+".console_tty", s.ConsoleTTY)
}

// validateConsole keeps a kernel line safe: ttyS0,115200n8 and its like.
func validateConsole(field, s string) error {
	if s == "" {
		return nil
	}
	if len(s) > 32 || !strings.HasPrefix(s, "tty") && !strings.HasPrefix(s, "hvc") {
		return Invalid(field, "%q is not a console such as ttyS0,115200", clip(s))
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == ',') {
			return Invalid(field, "%q is not a console such as ttyS0,115200", clip(s))
		}
	}
	return nil
}

// validateText takes printable ASCII of bounded length: it ends up in tables,
// kernel lines and requests.
func validateText(field, s string, limit int) error {
	if len(s) > limit {
		return Invalid(field, "is longer than %d bytes", limit)
	}
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return Invalid(field, "has a character that is not printable ASCII")
		}
	}
	return nil
}

// ValidateRole refuses what is not one of the roles.
func ValidateRole(field string, r Role) error {
	switch r {
	case RoleViewer, RoleMember, RoleOperator, RoleAdmin:
		return nil
	}
	return Invalid(field, "%q is not viewer, member, operator or admin", clip(string(r)))
}
