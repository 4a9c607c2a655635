package metal

import (
	"net/netip"
	"strconv"
	"strings"
)

// Limits of what users type.
const (
	MaxName       = 63 // RFC 1123 label
	MaxLabelKey   = 63
	MaxLabelValue = 63
	MaxLabels     = 32
	MaxMACs       = 16
	MaxUserData   = 64 << 10 // bytes, before sealing
)

// ValidateName refuses what is not a DNS label (RFC 1123): lower-case letters,
// digits and hyphens, neither first nor last a hyphen, at most 63.
func ValidateName(field, name string) error {
	switch {
	case name == "":
		return Invalid(field, "is empty")
	case len(name) > MaxName:
		return Invalid(field, "%q is longer than %d characters", clip(name), MaxName)
	case name[0] == '-' || name[len(name)-1] == '-':
		return Invalid(field, "%q begins or ends with a hyphen", name)
	}
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return Invalid(field, "%q has a character that names may not have: use a-z, 0-9 and -", clip(name))
		}
	}
	return nil
}

// ValidateLabel refuses labels that selectors could not name.
func ValidateLabel(key, value string) error {
	ok := func(s string, extra string) bool {
		for _, c := range []byte(s) {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(extra, c) >= 0) {
				return false
			}
		}
		return true
	}
	if key == "" || len(key) > MaxLabelKey || !ok(key, "-_./") {
		return Invalid("labels", "key %q: use 1 to %d of letters, digits, - _ . /", clip(key), MaxLabelKey)
	}
	if len(value) > MaxLabelValue || !ok(value, "-_.") {
		return Invalid("labels", "value %q of %s: use at most %d of letters, digits, - _ .", clip(value), key, MaxLabelValue)
	}
	return nil
}

// NormalizeMAC returns a unicast Ethernet address in lower case with colons.
// Hyphens, dots (as Cisco writes them) and bare digits are understood.
func NormalizeMAC(field, s string) (string, error) {
	hex := strings.ToLower(strings.NewReplacer(":", "", "-", "", ".", "").Replace(s))
	if len(hex) != 12 {
		return "", Invalid(field, "%q is not a MAC address: write it as 52:54:00:ab:cd:ef", clip(s))
	}
	var out []byte
	for i := 0; i < 12; i += 2 {
		if _, err := strconv.ParseUint(hex[i:i+2], 16, 8); err != nil {
			return "", Invalid(field, "%q is not a MAC address: write it as 52:54:00:ab:cd:ef", clip(s))
		}
		if i > 0 {
			out = append(out, ':')
		}
		out = append(out, hex[i:i+2]...)
	}
	first, _ := strconv.ParseUint(hex[:2], 16, 8)
	if first&1 == 1 {
		return "", Invalid(field, "%s is a multicast address, no NIC has it", out)
	}
	if string(out) == "00:00:00:00:00:00" {
		return "", Invalid(field, "is all zero")
	}
	return string(out), nil
}

// ParseAddr reads one IPv4 address.
func ParseAddr(field, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return netip.Addr{}, Invalid(field, "%q is not an IPv4 address", clip(s))
	}
	return a, nil
}

// ValidateHostPort refuses what is not host or host:port; the host is an
// address or a DNS name.
func ValidateHostPort(field, s string, portRequired bool) error {
	host, port, ok := s, "", false
	if strings.HasPrefix(s, "[") {
		h, rest, closed := strings.Cut(s[1:], "]")
		if !closed {
			return Invalid(field, "%q lacks a closing bracket", clip(s))
		}
		host = h
		if port, ok = strings.CutPrefix(rest, ":"); !ok && rest != "" {
			return Invalid(field, "%q is not host:port", clip(s))
		}
	} else if i := strings.LastIndexByte(s, ':'); i >= 0 && strings.Count(s, ":") == 1 {
		host, port, ok = s[:i], s[i+1:], true
	}
	if portRequired && !ok {
		return Invalid(field, "%q has no port: write host:port", clip(s))
	}
	if ok {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return Invalid(field, "%q has no valid port", clip(s))
		}
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if host == "" || len(host) > 253 {
		return Invalid(field, "%q has no valid host", clip(s))
	}
	for _, label := range strings.Split(strings.ToLower(strings.TrimSuffix(host, ".")), ".") {
		if ValidateName(field, label) != nil {
			return Invalid(field, "%q is neither an address nor a DNS name", clip(s))
		}
	}
	return nil
}

// clip keeps what a stranger typed from filling a terminal.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
