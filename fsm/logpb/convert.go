package logpb

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"bmc/metal"
)

// Nanos encodes a time; the zero time is 0.
func Nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// Time decodes Nanos, in UTC.
func Time(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// FromLabels sorts labels by key.
func FromLabels(m map[string]string) []*Label {
	out := make([]*Label, 0, len(m))
	for k, v := range m {
		out = append(out, &Label{Key: k, Value: v})
	}
	slices.SortFunc(out, func(a, b *Label) int { return compare(a.Key, b.Key) })
	return out
}

// Labels decodes FromLabels; nil when there are none.
func Labels(ls []*Label) map[string]string {
	if len(ls) == 0 {
		return nil
	}
	m := make(map[string]string, len(ls))
	for _, l := range ls {
		m[l.GetKey()] = l.GetValue()
	}
	return m
}

func addr(field, s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%s: %w", field, err)
	}
	return a, nil
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// FromRack converts a rack.
func FromRack(r *metal.Rack) *Rack {
	out := &Rack{Id: r.ID, Name: r.Name, Subnet: r.Subnet.String(), Gateway: text(r.Gateway), Domain: r.Domain,
		RangeFrom: text(r.RangeFrom), RangeTo: text(r.RangeTo), LeaseTime: int64(r.LeaseTime),
		Lease: FromLease(r.Lease), Revision: r.Revision, Frozen: r.Frozen, Warm: int64(r.Warm), Discovery: r.Discovery,
		FrozenAt: r.FrozenAt, FrozenSince: Nanos(r.FrozenSince),
		StoppedBy: r.Stop.By, StoppedWhy: r.Stop.Why, StoppedSince: Nanos(r.Stop.Since)}
	for _, d := range r.DNS {
		out.Dns = append(out.Dns, text(d))
	}
	return out
}

// FromLease converts a lease.
func FromLease(l metal.Lease) *Lease {
	return &Lease{Agent: l.Agent, Generation: l.Generation, Epoch: l.Epoch, Granted: Nanos(l.Granted), Silent: int64(l.Silent)}
}

// Metal converts a lease.
func (l *Lease) Metal() metal.Lease {
	return metal.Lease{Agent: l.GetAgent(), Generation: l.GetGeneration(), Epoch: l.GetEpoch(), Granted: Time(l.GetGranted()), Silent: time.Duration(l.GetSilent())}
}

// Metal converts a rack; the error says which address does not parse.
func (x *Rack) Metal() (*metal.Rack, error) {
	in := &RackInput{Subnet: x.GetSubnet(), Gateway: x.GetGateway(), Dns: x.GetDns(), RangeFrom: x.GetRangeFrom(), RangeTo: x.GetRangeTo()}
	r, err := in.Metal()
	if err != nil {
		return nil, fmt.Errorf("rack %s: %w", x.GetId(), err)
	}
	r.ID, r.Name, r.Domain = x.GetId(), x.GetName(), x.GetDomain()
	r.LeaseTime, r.Lease, r.Revision = time.Duration(x.GetLeaseTime()), x.GetLease().Metal(), x.GetRevision()
	r.Frozen, r.Warm, r.Discovery = x.GetFrozen(), int(x.GetWarm()), x.GetDiscovery()
	r.FrozenAt, r.FrozenSince = x.GetFrozenAt(), Time(x.GetFrozenSince())
	r.Stop = metal.Stop{By: x.GetStoppedBy(), Why: x.GetStoppedWhy(), Since: Time(x.GetStoppedSince())}
	return r, nil
}

// Metal converts what an inventory file says of a rack.
func (x *RackInput) Metal() (*metal.Rack, error) {
	r := &metal.Rack{ID: x.GetId(), Name: x.GetName(), Domain: x.GetDomain(), LeaseTime: time.Duration(x.GetLeaseTime()), Warm: int(x.GetWarm()),
		Discovery: x.GetDiscovery()}
	var err error
	if r.Subnet, err = netip.ParsePrefix(x.GetSubnet()); err != nil {
		return nil, fmt.Errorf("subnet: %w", err)
	}
	if r.Gateway, err = addr("gateway", x.GetGateway()); err != nil {
		return nil, err
	}
	if r.RangeFrom, err = addr("range_from", x.GetRangeFrom()); err != nil {
		return nil, err
	}
	if r.RangeTo, err = addr("range_to", x.GetRangeTo()); err != nil {
		return nil, err
	}
	for _, d := range x.GetDns() {
		a, err := addr("dns", d)
		if err != nil {
			return nil, err
		}
		r.DNS = append(r.DNS, a)
	}
	return r, nil
}

// FromSize converts a size.
func FromSize(s *metal.Size) *Size {
	return &Size{Name: s.Name, MinCpuThreads: int64(s.MinCPUThreads), MinMemoryBytes: s.MinMemoryBytes,
		MinDiskBytes: s.MinDiskBytes, RootDiskHint: s.RootDiskHint, Revision: s.Revision, Rule: fromRule(&s.Rule)}
}

// fromRule is nil for the zero rule, as rows of before had it.
func fromRule(r *metal.SizeRule) *SizeRule {
	if r.Priority == 0 && r.Model == "" && len(r.Disks)+len(r.Labels) == 0 {
		return nil
	}
	out := &SizeRule{Priority: int64(r.Priority), Model: r.Model, Labels: FromLabels(r.Labels)}
	for _, d := range r.Disks {
		out.Disks = append(out.Disks, &DiskRule{Kind: d.Kind, MinBytes: d.MinBytes, Count: int64(d.Count)})
	}
	return out
}

func (x *SizeRule) metal() metal.SizeRule {
	r := metal.SizeRule{Priority: int(x.GetPriority()), Model: x.GetModel(), Labels: Labels(x.GetLabels())}
	for _, d := range x.GetDisks() {
		r.Disks = append(r.Disks, metal.DiskRule{Kind: d.GetKind(), MinBytes: d.GetMinBytes(), Count: int(d.GetCount())})
	}
	return r
}

// Metal converts a size.
func (x *Size) Metal() *metal.Size {
	return &metal.Size{Name: x.GetName(), MinCPUThreads: int(x.GetMinCpuThreads()), MinMemoryBytes: x.GetMinMemoryBytes(),
		MinDiskBytes: x.GetMinDiskBytes(), RootDiskHint: x.GetRootDiskHint(), Revision: x.GetRevision(), Rule: x.GetRule().metal()}
}

// FromAddress converts an address assignment.
func FromAddress(a *metal.AddressAssignment) *AddressAssignment {
	return &AddressAssignment{RackId: a.RackID, Address: text(a.Address), Mac: a.MAC, ServerId: a.ServerID, Revision: a.Revision,
		Expires: Nanos(a.Expires)}
}

// Metal converts an address assignment.
func (x *AddressAssignment) Metal() (*metal.AddressAssignment, error) {
	a, err := addr("address", x.GetAddress())
	if err != nil {
		return nil, err
	}
	return &metal.AddressAssignment{RackID: x.GetRackId(), Address: a, MAC: x.GetMac(), ServerID: x.GetServerId(), Revision: x.GetRevision(),
		Expires: Time(x.GetExpires())}, nil
}

// FromImage converts an image.
func FromImage(i *metal.Image) *Image {
	return &Image{Id: i.ID, Name: i.Name, Project: i.Project, Os: i.OS, Arch: i.Arch, SizeBytes: i.SizeBytes,
		StoredBytes: i.StoredBytes, Chunks: int64(i.Chunks), Firmware: i.Firmware, User: i.User, Manifest: i.Manifest,
		Signature: i.Signature, SigningKeyId: i.SigningKeyID, Created: Nanos(i.Created), Revision: i.Revision}
}

// Metal converts an image.
func (x *Image) Metal() *metal.Image {
	return &metal.Image{ID: x.GetId(), Name: x.GetName(), Project: x.GetProject(), OS: x.GetOs(), Arch: x.GetArch(),
		SizeBytes: x.GetSizeBytes(), StoredBytes: x.GetStoredBytes(), Chunks: int(x.GetChunks()), Firmware: x.GetFirmware(),
		User: x.GetUser(), Manifest: x.GetManifest(), Signature: x.GetSignature(), SigningKeyID: x.GetSigningKeyId(),
		Created: Time(x.GetCreated()), Revision: x.GetRevision()}
}

// FromProject converts a project.
func FromProject(p *metal.Project) *Project {
	return &Project{Id: p.ID, Name: p.Name, SigningKeys: p.SigningKeys, MaxServers: int64(p.MaxServers),
		Created: Nanos(p.Created), Revision: p.Revision}
}

// Metal converts a project.
func (x *Project) Metal() *metal.Project {
	return &metal.Project{ID: x.GetId(), Name: x.GetName(), SigningKeys: x.GetSigningKeys(), MaxServers: int(x.GetMaxServers()),
		Created: Time(x.GetCreated()), Revision: x.GetRevision()}
}

// FromSSHKey converts a key.
func FromSSHKey(k *metal.SSHKey) *SSHKey {
	return &SSHKey{Id: k.ID, Name: k.Name, Project: k.Project, PublicKey: k.PublicKey, Fingerprint: k.Fingerprint,
		Created: Nanos(k.Created), Revision: k.Revision}
}

// Metal converts a key.
func (x *SSHKey) Metal() *metal.SSHKey {
	return &metal.SSHKey{ID: x.GetId(), Name: x.GetName(), Project: x.GetProject(), PublicKey: x.GetPublicKey(),
		Fingerprint: x.GetFingerprint(), Created: Time(x.GetCreated()), Revision: x.GetRevision()}
}

// FromToken converts a token.
func FromToken(t *metal.Token) *Token {
	return &Token{Id: t.ID, Hash: t.Hash, Kind: t.Kind, Name: t.Name, Role: string(t.Role), Project: t.Project,
		Racks: t.Racks, Created: Nanos(t.Created), Expires: Nanos(t.Expires), Used: t.Used, Revision: t.Revision}
}

// Metal converts a token.
func (x *Token) Metal() *metal.Token {
	return &metal.Token{ID: x.GetId(), Hash: x.GetHash(), Kind: x.GetKind(), Name: x.GetName(), Role: metal.Role(x.GetRole()),
		Project: x.GetProject(), Racks: x.GetRacks(), Created: Time(x.GetCreated()), Expires: Time(x.GetExpires()),
		Used: x.GetUsed(), Revision: x.GetRevision()}
}

// FromAgent converts an agent.
func FromAgent(a *metal.Agent) *Agent {
	return &Agent{Id: a.ID, Name: a.Name, Racks: a.Racks, Software: a.Software, Joined: Nanos(a.Joined), Revision: a.Revision}
}

// Metal converts an agent.
func (x *Agent) Metal() *metal.Agent {
	return &metal.Agent{ID: x.GetId(), Name: x.GetName(), Racks: x.GetRacks(), Software: x.GetSoftware(),
		Joined: Time(x.GetJoined()), Revision: x.GetRevision()}
}

// FromNode converts a node.
func FromNode(n *metal.Node) *Node {
	return &Node{Id: n.ID, Name: n.Name, Address: n.Address, KeyHash: n.KeyHash, Software: n.Software,
		Joined: Nanos(n.Joined), Revision: n.Revision, FeatureLevel: n.FeatureLevel}
}

// Metal converts a node.
func (x *Node) Metal() *metal.Node {
	return &metal.Node{ID: x.GetId(), Name: x.GetName(), Address: x.GetAddress(), KeyHash: x.GetKeyHash(),
		Software: x.GetSoftware(), Joined: Time(x.GetJoined()), Revision: x.GetRevision(), FeatureLevel: x.GetFeatureLevel()}
}

// FromEvent converts an event.
func FromEvent(e *metal.Event) *Event {
	return &Event{Revision: e.Revision, Index: int64(e.Index), Time: Nanos(e.Time), Kind: e.Kind, ServerId: e.ServerID,
		OperationId: e.OperationID, Target: e.Target, Project: e.Project, Principal: e.Principal,
		Reason: string(e.Reason), Message: e.Message}
}

// Metal converts an event.
func (x *Event) Metal() *metal.Event {
	return &metal.Event{Revision: x.GetRevision(), Index: int(x.GetIndex()), Time: Time(x.GetTime()), Kind: x.GetKind(),
		ServerID: x.GetServerId(), OperationID: x.GetOperationId(), Target: x.GetTarget(), Project: x.GetProject(),
		Principal: x.GetPrincipal(), Reason: metal.Code(x.GetReason()), Message: x.GetMessage()}
}

// FromAudit converts an audit entry.
func FromAudit(a *metal.AuditEntry) *AuditEntry {
	return &AuditEntry{Revision: a.Revision, Time: Nanos(a.Time), Principal: a.Principal, RequestId: a.RequestID,
		Command: a.Command, Target: a.Target, Outcome: string(a.Outcome), Hash: a.Hash,
		ObjectId: a.ObjectID, OperationId: a.OperationID, AgentId: a.AgentID, Epoch: a.Epoch, Step: a.Step}
}

// Metal converts an audit entry.
func (x *AuditEntry) Metal() *metal.AuditEntry {
	return &metal.AuditEntry{Revision: x.GetRevision(), Time: Time(x.GetTime()), Principal: x.GetPrincipal(),
		RequestID: x.GetRequestId(), Command: x.GetCommand(), Target: x.GetTarget(),
		Outcome: metal.Code(x.GetOutcome()), Hash: x.GetHash(),
		ObjectID: x.GetObjectId(), OperationID: x.GetOperationId(), AgentID: x.GetAgentId(), Epoch: x.GetEpoch(), Step: x.GetStep()}
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// FromModel converts a model.
func FromModel(m *metal.Model) *Model {
	return &Model{Vendor: m.Vendor, Product: m.Product, KexecFailures: int64(m.KexecFailures), KexecOff: m.KexecOff,
		Reason: m.Reason, Since: Nanos(m.Since), Revision: m.Revision}
}

// Metal converts a model.
func (x *Model) Metal() *metal.Model {
	return &metal.Model{Vendor: x.GetVendor(), Product: x.GetProduct(), KexecFailures: int(x.GetKexecFailures()), KexecOff: x.GetKexecOff(),
		Reason: x.GetReason(), Since: Time(x.GetSince()), Revision: x.GetRevision()}
}
