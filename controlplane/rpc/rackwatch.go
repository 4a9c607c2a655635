package rpc

import (
	"fmt"
	"slices"
	"strings"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	upsertBatch = 200 // servers in one message
	// rackMarkEvery is between messages that say how far an agent is where nothing of
	// its rack has changed.
	rackMarkEvery = 2 * time.Second
)

// WatchRack streams one rack from this node's replica: always a snapshot first,
// which costs little and leaves nothing to go wrong, then changes.
func (s *control) WatchRack(req *agentv1.WatchRackRequest, stream grpc.ServerStreamingServer[agentv1.RackUpdate]) error {
	ctx := stream.Context()
	v := s.Proposer.StaleView()
	r, err := s.rack(ctx, v, req.GetRack())
	if err != nil {
		if v, err = s.linearizable(ctx); err != nil {
			return err
		}
		if r, err = s.rack(ctx, v, req.GetRack()); err != nil {
			return err
		}
	}
	w := &rackWatch{API: s.API, rack: r.ID, agent: caller(ctx).agent, send: stream.Send}
	if err := w.snapshot(v); err != nil {
		return err
	}
	views, stop := s.follow(ctx, v.Revision())
	defer stop()
	marks := time.NewTicker(rackMarkEvery)
	defer marks.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-marks.C:
			if err := w.bookmark(v); err != nil {
				return err
			}
		case nv, ok := <-views:
			if !ok {
				return ctx.Err()
			}
			if _, err := s.rack(ctx, nv, r.ID); err != nil {
				return err // forgotten, or no longer this agent's
			}
			changes, inRing := nv.Changes(v.Revision())
			if inRing {
				err = w.delta(nv, changes)
			} else if err = w.bookmark(v); err == nil { // what follows may be a restored backup's
				err = w.snapshot(nv)
			}
			if err != nil {
				return err
			}
			v = nv
		}
	}
}

// rackWatch remembers what one agent was sent of one rack.
type rackWatch struct {
	*API
	rack, agent string // IDs
	send        func(*agentv1.RackUpdate) error

	told     uint64 // revision of what was sent last
	spec     *agentv1.RackSpec
	servers  map[string]*agentv1.ServerSpec
	assigned map[string]string // operation ID -> attempt and epoch
}

// bookmark says that all of the rack up to a view was sent. An agent that knows it
// can tell, when an older backup is restored, that it was not cut off before.
func (w *rackWatch) bookmark(v *state.View) error {
	if v.Revision() <= w.told {
		return nil
	}
	w.told = v.Revision()
	return w.send(&agentv1.RackUpdate{Revision: v.Revision()})
}

func (w *rackWatch) snapshot(v *state.View) error {
	w.told = v.Revision()
	rack, ok := v.Rack(w.rack)
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "the rack has been removed")
	}
	w.spec, w.servers, w.assigned = w.rackSpec(v, rack), map[string]*agentv1.ServerSpec{}, map[string]string{}
	if err := w.send(&agentv1.RackUpdate{Revision: v.Revision(), Reset_: true, Rack: w.spec}); err != nil {
		return err
	}
	m := &agentv1.RackUpdate{Revision: v.Revision()}
	for srv := range v.Servers(state.ServerFilter{RackID: w.rack}) {
		spec := w.serverSpec(v, srv)
		w.servers[srv.ID] = spec
		if m.Upserts = append(m.Upserts, spec); len(m.Upserts) == upsertBatch {
			if err := w.send(m); err != nil {
				return err
			}
			m = &agentv1.RackUpdate{Revision: v.Revision()}
		}
	}
	if len(m.GetUpserts()) > 0 {
		if err := w.send(m); err != nil {
			return err
		}
	}
	for op := range v.OpenOperations(w.rack) {
		if m := w.assign(v, rack, op); m != nil {
			if err := w.send(m); err != nil {
				return err
			}
		}
	}
	return w.send(&agentv1.RackUpdate{Revision: v.Revision(), Synced: true})
}

// assign is the message of an operation that is this agent's under the rack's
// present lease, once per attempt and epoch: manifests are large. Nil: no news.
func (w *rackWatch) assign(v *state.View, rack *metal.Rack, op *metal.Operation) *agentv1.RackUpdate {
	key := assignmentKey(op)
	if !w.mine(rack, op) || w.assigned[op.ID] == key {
		return nil
	}
	srv, ok := v.Server(op.ServerID)
	if !ok {
		return nil
	}
	w.assigned[op.ID] = key
	assignment, err := w.assignment(v, rack, srv, op)
	if err != nil { // a node whose key ring is whole assigns it; else it becomes late
		w.Log.Error("an operation cannot be assigned by this node", "server", srv.ID, "operation", op.ID, "err", err)
		return nil
	}
	return &agentv1.RackUpdate{Revision: v.Revision(), Assignments: []*agentv1.Assignment{assignment}}
}

func assignmentKey(op *metal.Operation) string { return fmt.Sprintf("%d/%d", op.Attempt, op.Epoch) }

func (w *rackWatch) mine(rack *metal.Rack, op *metal.Operation) bool {
	return !op.State.Ended() && op.Agent == w.agent && rack.Lease.Agent == w.agent && op.Epoch == rack.Lease.Epoch
}

// delta sends what has changed for this agent, if anything has.
func (w *rackWatch) delta(v *state.View, changes []state.Change) error {
	rack, ok := v.Rack(w.rack)
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "the rack has been removed")
	}
	touched := map[string]bool{} // servers
	rackTouched, specTouched := false, false
	for _, c := range changes {
		switch c.Kind {
		case state.KindServer, state.KindOperation:
			touched[c.ServerID] = true
			if c.Kind == state.KindServer {
				touched[c.ID] = true
			}
		case state.KindRack:
			rackTouched = rackTouched || c.ID == w.rack
		case state.KindNode:
			specTouched = true
		}
	}
	delete(touched, "")
	m := &agentv1.RackUpdate{Revision: v.Revision()}
	if rackTouched || specTouched {
		if spec := w.rackSpec(v, rack); !proto.Equal(spec, w.spec) {
			w.spec, m.Rack = spec, spec
		}
	}
	w.touch(v, m, touched)
	w.withdraw(v, m, rack)
	var out []*agentv1.RackUpdate
	if m.Rack != nil || len(m.Upserts)+len(m.Removed)+len(m.Withdrawn) > 0 {
		out = append(out, m)
	}
	if rackTouched || len(touched) > 0 {
		for op := range v.OpenOperations(w.rack) {
			if m := w.assign(v, rack, op); m != nil {
				out = append(out, m)
			}
		}
	}
	if len(out) > 0 {
		w.told = v.Revision()
	}
	// An agent that had a part of this revision from a node that then died would
	// take the rest, from a node that is behind, for old news.
	for i, m := range out {
		m.More = i < len(out)-1
		if err := w.send(m); err != nil {
			return err
		}
	}
	return nil
}

func (w *rackWatch) touch(v *state.View, m *agentv1.RackUpdate, touched map[string]bool) {
	ids := make([]string, 0, len(touched))
	for id := range touched {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		srv, ok := v.Server(id)
		if !ok || srv.RackID != w.rack {
			if w.servers[id] != nil {
				delete(w.servers, id)
				m.Removed = append(m.Removed, id)
			}
			continue
		}
		spec := w.serverSpec(v, srv)
		if old := w.servers[id]; old != nil && sameSpec(old, spec) {
			continue
		}
		w.servers[id] = spec
		m.Upserts = append(m.Upserts, spec)
	}
}

// sameSpec ignores the revision, which step reports raise all the time.
func sameSpec(a, b *agentv1.ServerSpec) bool {
	c := proto.CloneOf(a)
	c.Revision = b.GetRevision()
	return proto.Equal(c, b)
}

func (w *rackWatch) withdraw(v *state.View, m *agentv1.RackUpdate, rack *metal.Rack) {
	for id := range w.assigned {
		op, ok := v.Operation(id)
		if !ok || !w.mine(rack, op) {
			delete(w.assigned, id)
			m.Withdrawn = append(m.Withdrawn, id)
		}
	}
	slices.Sort(m.Withdrawn)
}

func (w *rackWatch) rackSpec(v *state.View, r *metal.Rack) *agentv1.RackSpec {
	return &agentv1.RackSpec{Id: r.ID, Name: r.Name, Subnet: r.Subnet.String(), Gateway: text(r.Gateway), Dns: texts(r.DNS),
		Domain: r.Domain, LeaseTime: durationpb.New(r.LeaseTime), Frozen: r.Frozen, Generation: v.Meta().Generation, Nodes: w.nodeAddresses(v),
		Discovery: r.Discovery}
}

// serverSpec unseals the management controller's password: it goes to the
// rack's agents only, over mTLS.
func (w *rackWatch) serverSpec(v *state.View, s *metal.Server) *agentv1.ServerSpec {
	out := &agentv1.ServerSpec{Id: s.ID, Name: s.Name, State: string(s.State), Hostname: refName(s), Macs: slices.Clone(s.MACs),
		Address: text(s.Address), Serial: s.Serial, Uuid: s.UUID, PowerWanted: string(s.Power.Wanted), ConsoleTty: s.ConsoleTTY,
		BootDisk: bootsDisk(v, s), BootRamdisk: bootsRamdisk(v, s), Revision: s.Revision,
		Oob: &agentv1.OOB{Protocol: s.OOB.Protocol, Address: s.OOB.Address, Username: s.OOB.Username, CipherSuite: int32(s.OOB.CipherSuite)}}
	if s.Warm.Waits() {
		out.WarmBootId = s.Warm.BootID
	}
	if s.Hardware != nil {
		out.Firmware = s.Hardware.Firmware
	}
	if s.Rental != nil {
		out.SshHostKey = strings.Join(s.Rental.SSHHostKeys, "\n")
	}
	if len(s.OOB.Password) > 0 {
		plain, err := w.Sealer.Open(s.OOB.Password, s.ID+oobAD)
		if err != nil {
			w.Log.Error("a management controller's password cannot be unsealed", "server", s.ID, "err", err)
		}
		out.Oob.Password = string(plain)
	}
	return out
}

// bootsDisk decides what a network boot is answered when no operation wants the
// ramdisk: a rented server whose image is on its disk boots from there.
func bootsDisk(v *state.View, s *metal.Server) bool {
	if s.Rental == nil || s.Rental.Released {
		return false
	}
	if s.State == metal.StateActive {
		return true
	}
	if s.State != metal.StateDeploying {
		return false
	}
	op, ok := v.Operation(s.Operation)
	return ok && (op.Current() == metal.StepBootDisk || op.Current() == metal.StepReady)
}

// bootsRamdisk says whether an operation waits for the machine's ramdisk, or
// works with it: a machine that boots from the network now waits for the one
// agent that has its seed.
func bootsRamdisk(v *state.View, s *metal.Server) bool {
	op, ok := v.Operation(s.Operation)
	if !ok || op.State.Ended() {
		return false
	}
	switch op.Current() {
	case metal.StepBootRamdisk, metal.StepInspect, metal.StepWipe, metal.StepWriteImage, metal.StepConfigure:
		return true
	}
	return false
}

func (w *rackWatch) assignment(v *state.View, rack *metal.Rack, srv *metal.Server, op *metal.Operation) (*agentv1.Assignment, error) {
	out := &agentv1.Assignment{OperationId: op.ID, Kind: string(op.Kind), ServerId: op.ServerID, Attempt: uint32(op.Attempt),
		Epoch: op.Epoch, Deadline: stamp(op.Deadline), Revision: op.Revision, Sequence: op.Sequence,
		BootId: op.BootID, RootDisk: op.RootDisk, ReportedEpoch: op.ReportedEpoch}
	out.DoneSteps = notPlanned(op)
	for _, st := range op.Steps {
		switch st.State {
		case metal.StepDone:
			out.DoneSteps = append(out.DoneSteps, string(st.Step))
		case metal.StepRunning:
			out.BegunStep, out.BegunAt, out.Recovery = string(st.Step), stamp(st.Started), st.Recovery
		}
	}
	switch op.Kind {
	case metal.KindDeploy:
		var err error
		if out.Deploy, err = w.deploySpec(v, rack, srv, op); err != nil {
			return nil, err
		}
	case metal.KindPower, metal.KindRestart:
		out.Power = &agentv1.PowerSpec{Wanted: string(op.WantedPower), Hard: op.Hard}
	case metal.KindEnroll:
		out.Enroll = &agentv1.EnrollSpec{Wipe: srv.WipeOK}
	}
	if slices.Contains(metal.Plan(op.Kind), metal.StepWipe) {
		out.Wipe = &agentv1.WipeSpec{}
	}
	return out, nil
}

// notPlanned are the steps of its kind that an operation does without: one that
// goes on with a ramdisk which has waited for it is not switched off first. To an
// agent they are done; one that knows nothing of waiting starts the machine anew,
// which begins with off.
func notPlanned(op *metal.Operation) (out []string) {
	for _, step := range metal.Plan(op.Kind) {
		if !slices.ContainsFunc(op.Steps, func(st metal.StepStatus) bool { return st.Step == step }) {
			out = append(out, string(step))
		}
	}
	return out
}

func (w *rackWatch) deploySpec(v *state.View, rack *metal.Rack, srv *metal.Server, op *metal.Operation) (*agentv1.DeploySpec, error) {
	r := srv.Rental
	if r == nil {
		return &agentv1.DeploySpec{}, nil
	}
	out := &agentv1.DeploySpec{ImageId: r.ImageID, Hostname: r.Name, SshKeys: slices.Clone(r.SSHKeys), Gateway: text(rack.Gateway), Dns: texts(rack.DNS),
		KexecOff: kexecOff(v, srv)}
	if srv.Address.IsValid() {
		out.Address = fmt.Sprintf("%s/%d", srv.Address, rack.Subnet.Bits())
	}
	if img, ok := v.Image(r.Project, r.ImageID); ok {
		out.Manifest, out.Signature = img.Manifest, img.Signature
	}
	if p, ok := v.Project(r.Project); ok {
		out.TrustedKeys = slices.Clone(p.SigningKeys)
	}
	if z, ok := v.Size(srv.Size); ok {
		out.RootDiskHint = z.RootDiskHint
	}
	if len(r.UserData) > 0 {
		plain, err := w.Sealer.Open(r.UserData, op.ID+userDataAD)
		if err != nil {
			return nil, fmt.Errorf("unseal the user data: %w", err)
		}
		out.UserData = plain
	}
	return out, nil
}

// agentsOf lists who may be asked about a rack: the lease's holder first.
func agentsOf(v *state.View, rackID string) []string {
	var out []string
	if r, ok := v.Rack(rackID); ok && r.Lease.Agent != "" {
		out = append(out, r.Lease.Agent)
	}
	for ag := range v.Agents() {
		if slices.Contains(ag.Racks, rackID) && !slices.Contains(out, ag.ID) {
			out = append(out, ag.ID)
		}
	}
	return out
}
