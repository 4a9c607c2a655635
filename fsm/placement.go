package fsm

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/internal/mutant"
	"bmc/metal"
)

// placement is what a CreateServer command would take.
type placement struct {
	Server *metal.Server
	Image  *metal.Image
	Keys   []string // authorized_keys lines
}

// maxUserData is the sealed limit: nonce, tag and key ID come on top.
const maxUserData = metal.MaxUserData + 256

// plan picks a server, or says why there is none. It changes nothing.
func plan(v *state.View, m *logpb.CreateServer) (*placement, *metal.Error) {
	if err := metal.ValidateName("name", m.GetName()); err != nil {
		return nil, failure(err)
	}
	if len(m.GetUserData()) > maxUserData {
		return nil, metal.Invalid("user_data", "is longer than %s", metal.Bytes(metal.MaxUserData))
	}
	p, ok := v.Project(m.GetProject())
	if !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "there is no project %q", m.GetProject())
	}
	if s, taken := v.ServerByRental(p.ID, m.GetName()); taken {
		return nil, metal.Errorf(metal.CodeNameTaken, "there is a server %s already, it is %s", m.GetName(), s.State).WithHint("bmc get %s", m.GetName())
	}
	if n := v.CountRentals(p.ID); p.MaxServers > 0 && n >= p.MaxServers {
		return nil, metal.Errorf(metal.CodeNoCapacity, "project %s has %d servers, its quota is %d", p.Name, n, p.MaxServers).WithHint("bmc list")
	}
	img, err := v.ResolveImage(p.ID, m.GetImage())
	if err != nil {
		return nil, failure(err)
	}
	keys, refused := resolveKeys(v, p.ID, m)
	if refused != nil {
		return nil, refused
	}
	s, refused := pick(v, m, img)
	if refused != nil {
		return nil, refused
	}
	return &placement{Server: s, Image: img, Keys: keys}, nil
}

// resolveKeys turns names, IDs and lines into lines. A server that nobody could
// log in to is refused, unless user data may bring its own ways.
func resolveKeys(v *state.View, project string, m *logpb.CreateServer) ([]string, *metal.Error) {
	var lines []string
	for _, ref := range m.GetSshKeys() {
		if strings.ContainsRune(ref, ' ') {
			line, _, err := metal.ParseSSHKey("ssh_keys", ref)
			if err != nil {
				return nil, failure(err)
			}
			lines = append(lines, line)
			continue
		}
		k, err := v.ResolveKey(project, ref)
		if err != nil {
			return nil, failure(err)
		}
		lines = append(lines, k.PublicKey)
	}
	if len(m.GetSshKeys()) == 0 {
		for k := range v.Keys(project) {
			lines = append(lines, k.PublicKey)
		}
	}
	if len(lines) == 0 && len(m.GetUserData()) == 0 {
		return nil, metal.Invalid("ssh_keys", "are empty and the project has none: nobody could log in").
			WithHint("bmc key add NAME ~/.ssh/id_ed25519.pub")
	}
	slices.Sort(lines)
	return slices.Compact(lines), nil
}

// pick takes a server that waits in the ramdisk, if one fits; else one that is
// off; else one that is on its way into the ramdisk or out of it, which gives
// way. Of the racks in question it takes the one with most servers available in
// the size, and there the first server by size and name.
func pick(v *state.View, m *logpb.CreateServer, img *metal.Image) (*metal.Server, *metal.Error) {
	if mutant.On("rent-rented") {
		for s := range v.Servers(state.ServerFilter{State: metal.StateActive}) {
			taken := *s
			taken.State, taken.Rental, taken.Operation = metal.StateAvailable, nil, ""
			return &taken, nil
		}
	}
	var only *metal.Rack
	if m.GetRack() != "" {
		rack, err := v.ResolveRack(m.GetRack())
		if err != nil {
			return nil, failure(err)
		}
		only = rack
	}
	if _, ok := v.Size(m.GetSize()); m.GetSize() != "" && !ok {
		return nil, metal.Errorf(metal.CodeNotFound, "there is no size %q", m.GetSize()).WithHint("bmc size list")
	}
	var why *metal.Error     // the first server that was free and did not fit
	var giving *metal.Server // the first that would give way
	racks := racksByFree(v, m.GetSize())
	if s := pickWaiting(v, racks, only, m.GetSize(), img); s != nil {
		return s, nil
	}
	for _, rack := range racks {
		if only != nil && rack != only.ID {
			continue
		}
		if r, ok := v.Rack(rack); ok && Frozen(r) != nil {
			why = cmp.Or(why, Frozen(r))
			continue
		}
		for s := range v.Available(rack, m.GetSize()) {
			if !Rentable(v, s) {
				continue
			}
			unfit := fits(s, img)
			switch {
			case unfit != nil:
				why = cmp.Or(why, unfit)
			case s.Operation == "":
				return s, nil
			default:
				giving = cmp.Or(giving, s)
			}
		}
	}
	if giving != nil {
		return giving, nil
	}
	if why != nil {
		return nil, why
	}
	return nil, noCapacity(v, m, img)
}

// pickWaiting takes the first server that waits in the ramdisk, or none.
func pickWaiting(v *state.View, racks []string, only *metal.Rack, size string, img *metal.Image) *metal.Server {
	for _, rack := range racks {
		if r, ok := v.Rack(rack); !ok || Frozen(r) != nil || only != nil && rack != only.ID {
			continue
		}
		for s := range v.Waiting(rack, size) {
			if Rentable(v, s) && fits(s, img) == nil {
				return s
			}
		}
	}
	return nil
}

func racksByFree(v *state.View, size string) []string {
	free := map[string]int{}
	var racks []string // in order of name, so that ties have one outcome
	for _, c := range v.Capacity() {
		if size != "" && c.Size != size {
			continue
		}
		if _, seen := free[c.RackID]; !seen {
			racks = append(racks, c.RackID)
		}
		free[c.RackID] += c.Available
	}
	slices.SortStableFunc(racks, func(a, b string) int { return free[b] - free[a] })
	return racks
}

// Rentable says whether an available server may be handed out.
func Rentable(v *state.View, s *metal.Server) bool {
	if o, busy := v.Operation(s.Operation); busy && !o.Kind.Yields() {
		return false
	}
	if s.State != metal.StateAvailable || s.Rental != nil || s.Holds[metal.HoldCordoned] || s.Holds[metal.HoldParked] {
		return false
	}
	for _, c := range []metal.Condition{metal.ConditionOOBUnreachable, metal.ConditionAgentLost, metal.ConditionHardwareDegraded} {
		if _, is := s.Conditions[c]; is {
			return false
		}
	}
	return true
}

// fits says why an image cannot be put on a server, or nil. What the inspection
// does not tell is left to the agent to refuse before the first write.
func fits(s *metal.Server, img *metal.Image) *metal.Error {
	h := s.Hardware
	if h == nil {
		return nil
	}
	if img.Arch != "" && h.Arch != "" && !sameArch(img.Arch, h.Arch) {
		return metal.Errorf(metal.CodeFirmwareUnfit, "image %s is for %s, server %s has %s", img.Name, img.Arch, s.Name, h.Arch).WithHint("bmc image list")
	}
	if len(img.Firmware) > 0 && h.Firmware != "" && !slices.Contains(img.Firmware, h.Firmware) {
		return metal.Errorf(metal.CodeFirmwareUnfit, "image %s boots by %s, server %s has %s", img.Name, strings.Join(img.Firmware, ", "), s.Name, h.Firmware).
			WithHint("bmc image list")
	}
	if disk := h.LargestDisk(); img.SizeBytes > disk {
		return metal.Errorf(metal.CodeImageTooLarge, "image %s needs a disk of %s, the largest of server %s has %s",
			img.Name, metal.Bytes(img.SizeBytes), s.Name, metal.Bytes(disk)).WithHint("bmc size list")
	}
	return nil
}

// sameArch knows that two worlds have two words for each architecture.
func sameArch(a, b string) bool {
	canon := func(s string) string {
		switch s {
		case "amd64", "x86-64":
			return "x86_64"
		case "arm64":
			return "aarch64"
		}
		return s
	}
	return canon(a) == canon(b)
}

// noCapacity says what is free where, and a command that works now.
func noCapacity(v *state.View, m *logpb.CreateServer, img *metal.Image) *metal.Error {
	wanted := "no server"
	if m.GetSize() != "" {
		wanted += " of size " + m.GetSize()
	}
	if m.GetRack() != "" {
		wanted += " in rack " + m.GetRack()
	}
	var free []string
	hint := ""
	for _, c := range v.Capacity() {
		n := 0
		for s := range v.Available(c.RackID, c.Size) {
			if c.Size == s.Size && Rentable(v, s) && fits(s, img) == nil {
				n++
			}
		}
		if n == 0 {
			continue
		}
		size := c.Size
		if size == "" {
			size = "(no size)"
		}
		free = append(free, fmt.Sprintf("%d %s in %s", n, size, c.Rack))
		if hint == "" {
			hint = fmt.Sprintf("bmc create --name %s --image %s --rack %s", m.GetName(), img.Name, c.Rack)
			if c.Size != "" {
				hint += " --size " + c.Size
			}
		}
	}
	if len(free) == 0 {
		return metal.Errorf(metal.CodeNoCapacity, "%s is free, and none of any other kind", wanted).WithHint("bmc inventory list")
	}
	if len(free) > 8 {
		free = append(free[:8:8], "more elsewhere")
	}
	return metal.Errorf(metal.CodeNoCapacity, "%s is free; there are %s", wanted, strings.Join(free, ", ")).WithHint("%s", hint)
}

// bestSize returns the name of the size that the rules give a server: of those
// that it meets the one of the highest priority, then the largest; "" for none.
func bestSize(v *state.View, h *metal.Hardware, labels map[string]string) string {
	name, _ := MatchSize(v, h, labels)
	return name
}

// Lack says why a server is not of a size.
type Lack struct {
	Size string
	Why  string // a sentence
}

// MatchSize says which size the rules give a server, and why not those that are
// asked before it; all of them when none matches.
func MatchSize(v *state.View, h *metal.Hardware, labels map[string]string) (string, []Lack) {
	sizes := slices.SortedFunc(v.Sizes(), func(a, b *metal.Size) int {
		if a.Before(b) {
			return -1
		}
		return 1
	})
	var lacks []Lack
	for _, z := range sizes {
		why := z.Misses(h, labels)
		if why == "" {
			return z.Name, lacks
		}
		lacks = append(lacks, Lack{z.Name, why})
	}
	return "", lacks
}
