package boot

import (
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// differs says how a machine is not the one that it must be; no code when it is.
// Until an operation has proved which machine the controller powers, everything
// that the inventory expects must be there. Afterwards another serial number or
// UUID beside the known boot NIC is a mainboard that was replaced: an operator
// says so, not this.
func (s *Session) differs(id *agentv1.Hardware) (metal.Code, string) {
	want := metal.Identity{Serial: s.Serial, UUID: s.UUID, MACs: []string{s.MAC}}
	got := metal.Identity{Serial: id.GetSerial(), UUID: id.GetUuid()}
	for _, n := range id.GetNics() {
		got.MACs = append(got.MACs, strings.ToLower(n.GetMac()))
	}
	another := "another machine than " + s.Name + " booted: "
	same := want.Compare(got)
	switch {
	case same == metal.NICReplaced || same == metal.Different:
		return metal.CodeBMCMismatch, another + "it has no network port " + s.MAC
	case same == metal.BoardReplaced && !s.Unproven:
		return metal.CodeIdentityChanged, "the machine of " + s.Name + " is not quite the one that was inspected: " + unlike(s.Serial, s.UUID, id)
	case same == metal.BoardReplaced:
		return metal.CodeBMCMismatch, another + unlike(s.Serial, s.UUID, id)
	}
	return "", ""
}

func unlike(serial, uuid string, id *agentv1.Hardware) string {
	if serial != "" && !strings.EqualFold(serial, id.GetSerial()) {
		return "its serial number is not " + serial
	}
	return "its UUID is not " + uuid
}

// refuteAs ends the session for good, and keeps what the machine said it is.
func (s *Session) refuteAs(code metal.Code, message string, id *agentv1.Hardware) error {
	found := &agentv1.Hardware{Serial: id.GetSerial(), Uuid: id.GetUuid(), Vendor: id.GetVendor(), Product: id.GetProduct(), Nics: id.GetNics()}
	raw, err := proto.Marshal(found)
	if err != nil {
		raw = nil // text that is no text: the refusal stands without it
	}
	if err := s.commit(Event{Kind: Refuted, Reason: code, Message: message, Result: raw}); err != nil {
		return err
	}
	return s.failure
}

// Found is what the machine said it is that was not the one expected, or nil.
func (s *Session) Found() *agentv1.Hardware {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.found
}
