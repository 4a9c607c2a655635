package metal

import (
	"encoding/hex"
	"slices"
	"strings"
)

// Identity is what a machine is told from others by.
type Identity struct {
	Serial string   // SMBIOS type 1
	UUID   string   // likewise
	MACs   []string // lower case, colons; of one that is expected the boot NIC comes first
}

// Sameness is what a comparison of identities comes to.
type Sameness string

// The verdicts.
const (
	Same          Sameness = "same"
	NICReplaced   Sameness = "nic-replaced"   // serial and UUID are equal, the boot NIC is another
	BoardReplaced Sameness = "board-replaced" // the boot NIC is there, serial or UUID are others or are gone
	Different     Sameness = "different"
)

// Weights of what two identities have in common, and, negative, of what differs.
// A serial number is the vendor's for that one machine. A UUID is, too, but some
// boards come with one for all, and a firmware update may write it in another
// byte order. A port can be carried from one machine to another. No single thing
// makes a machine the same.
const (
	weightSerial = 4
	weightUUID   = 3
	enough       = 7 // without the boot NIC: nothing less than both
)

// Compare says whether a machine is the expected one. What is not expected, or
// what a vendor put into every machine, says nothing; but a machine that does not
// tell what is expected of it is not the same: a NIC alone can be carried.
func (want Identity) Compare(got Identity) Sameness {
	serial, uuid := weigh(ProperSerial(want.Serial), ProperSerial(got.Serial)), weighUUID(want.UUID, got.UUID)
	silent := ProperSerial(want.Serial) != "" && ProperSerial(got.Serial) == "" || ProperUUID(want.UUID) != "" && ProperUUID(got.UUID) == ""
	nic := len(want.MACs) > 0 && slices.ContainsFunc(got.MACs, func(m string) bool { return strings.EqualFold(m, want.MACs[0]) })
	switch {
	case nic && serial >= 0 && uuid >= 0 && !silent:
		return Same
	case nic:
		return BoardReplaced
	case serial*weightSerial+uuid*weightUUID >= enough:
		return NICReplaced
	}
	return Different
}

// weigh is 1 for equal, -1 for different, 0 when one of them is not known.
func weigh(a, b string) int {
	switch {
	case a == "" || b == "":
		return 0
	case strings.EqualFold(a, b):
		return 1
	}
	return -1
}

func weighUUID(a, b string) int {
	a, b = ProperUUID(a), ProperUUID(b)
	if n := weigh(a, b); n >= 0 || !strings.EqualFold(swapUUID(a), b) {
		return n
	}
	return 1
}

// swapUUID is the UUID with its first three fields in the other byte order:
// SMBIOS before 2.6 did not say which (DSP0134, 7.2.1).
func swapUUID(s string) string {
	raw, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(raw) != 16 {
		return ""
	}
	slices.Reverse(raw[0:4])
	slices.Reverse(raw[4:6])
	slices.Reverse(raw[6:8])
	h := hex.EncodeToString(raw)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// fillers are what vendors leave in place of a serial number or a name.
var fillers = []string{"not specified", "none", "to be filled by o.e.m.", "to be filled by oem", "default string", "default",
	"system serial number", "chassis serial number", "base board serial number", "serial number", "0123456789", "123456789",
	"1234567890", "n/a", "na", "null", "unknown", "not applicable", "not available", "invalid", "empty", "o.e.m.", "oem", "xxxxxxxxxx"}

// ProperSerial is a serial number, or "" for a filler: one of the known ones, or
// one character all along.
func ProperSerial(s string) string {
	s = strings.TrimSpace(s)
	if s == "" || slices.Contains(fillers, strings.ToLower(s)) || strings.Trim(s, s[:1]) == "" {
		return ""
	}
	return s
}

// sharedUUIDs are those that boards of a vendor have in common.
var sharedUUIDs = []string{
	"03000200-0400-0500-0006-000700080009", // AMI's default
	"00020003-0004-0005-0006-000700080009", // the same in the other byte order
	"12345678-1234-5678-90ab-cddeefaabbcc",
}

// ProperUUID is a UUID in lower case, or "" for none, a filler or one that many
// machines have.
func ProperUUID(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	digits := strings.ReplaceAll(s, "-", "")
	if digits == "" || strings.Trim(digits, digits[:1]) == "" || slices.Contains(sharedUUIDs, s) || slices.Contains(fillers, s) {
		return ""
	}
	return s
}

// Identity is what the server is expected to be.
func (s *Server) Identity() Identity { return Identity{Serial: s.Serial, UUID: s.UUID, MACs: s.MACs} }

// Identity is what the hardware says it is.
func (h *Hardware) Identity() Identity {
	id := Identity{Serial: h.Serial, UUID: h.UUID}
	for _, n := range h.NICs {
		id.MACs = append(id.MACs, strings.ToLower(n.MAC))
	}
	return id
}

// HasPort says whether a MAC is one of the server's: in the inventory, or found
// by its last inspection.
func (s *Server) HasPort(mac string) bool {
	same := func(m string) bool { return strings.EqualFold(m, mac) }
	return slices.ContainsFunc(s.MACs, same) || s.Hardware != nil && slices.ContainsFunc(s.Hardware.NICs, func(n NIC) bool { return same(n.MAC) })
}
