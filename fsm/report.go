package fsm

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"bmc/fsm/lifecycle"
	"bmc/fsm/logpb"
	"bmc/internal/mutant"
	"bmc/metal"
)

// Phases of a report.
const (
	phaseWaiting = "waiting" // not under way, but its agent has it in hand
	phaseStarted = "started"
	phaseDone    = "done"
	phaseFailed  = "failed"
	phaseBooted  = "booted" // the machine has booted the ramdisk anew
)

// reportStep records a step's edge. The last report of an operation may come
// again: its answer may have been lost. Everything else that is not news of the
// current step, under the current lease, is refused, so that an agent that was
// cut off cannot undo what its successor did.
func (a *applier) reportStep(m *logpb.ReportStep, r *Result) *metal.Error {
	digest := reportDigest(m)
	if o, ok := a.Operation(m.GetOperationId()); ok && int64(o.Attempt) == m.GetAttempt() && o.Epoch == m.GetEpoch() &&
		o.Sequence == m.GetSequence() && o.Sequence > 0 && bytes.Equal(o.LastReport, digest) {
		a.target = o.Target
		r.ID, r.OperationID, r.Value, r.Replayed = o.ServerID, o.ID, o, true
		return nil
	}
	old, was, err := a.open(m.GetOperationId(), m.GetAttempt())
	if err != nil {
		return err
	}
	if err := a.current(old, was, m); err != nil {
		return err
	}
	o, s := *old, *was
	o.Sequence, o.LastReport = m.GetSequence(), digest
	if a.Meta().FeatureLevel >= 2 { // older replicas hash rows without it
		o.ReportedEpoch = m.GetEpoch()
	}
	o.Steps = append([]metal.StepStatus(nil), old.Steps...)
	st := step(&o)
	if st.Recovery = m.GetRecovery(); len(st.Recovery) > 16 {
		st.Recovery = st.Recovery[:16]
	}
	switch m.GetPhase() {
	case phaseWaiting:
		a.stepWaiting(&o, &s, m)
	case phaseBooted:
		err = a.stepBooted(&o, &s, m)
	case phaseStarted:
		err = a.stepStarted(&o, &s)
	case phaseDone:
		err = a.stepDone(&o, &s, m)
	case phaseFailed:
		if m.GetReason() == "" {
			return metal.Invalid("reason", "is empty")
		}
		if m.GetFound() != nil && metal.Code(m.GetReason()) == metal.CodeIdentityChanged {
			a.claimed(&s, m.GetFound().Metal())
		}
		err = a.fail(&o, &s, metal.Code(m.GetReason()), shorten(m.GetMessage()))
	default:
		return metal.Invalid("phase", "%q is not waiting, started, booted, done or failed", m.GetPhase())
	}
	if err != nil {
		return err
	}
	r.ID, r.OperationID, r.Value = s.ID, o.ID, &o
	return nil
}

func reportDigest(m *logpb.ReportStep) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("fsm: a decoded report cannot be encoded: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

// current refuses reports from under another lease, out of sequence, or about
// another step.
func (a *applier) current(o *metal.Operation, s *metal.Server, m *logpb.ReportStep) *metal.Error {
	rack, ok := a.Rack(s.RackID)
	if mutant.On("ignore-epoch") {
		return nil
	}
	if !ok || o.State != metal.OperationRunning || o.Epoch != m.GetEpoch() || rack.Lease.Epoch != m.GetEpoch() ||
		o.Agent != m.GetAgentId() || rack.Lease.Agent != m.GetAgentId() {
		return metal.Errorf(metal.CodeStaleEpoch, "operation %s is not assigned to agent %q at epoch %d", o.ID, m.GetAgentId(), m.GetEpoch())
	}
	if m.GetSequence() <= o.Sequence {
		return metal.Errorf(metal.CodeStaleAttempt, "report %d of operation %s comes after report %d", m.GetSequence(), o.ID, o.Sequence)
	}
	if string(o.Current()) != m.GetStep() {
		return metal.Errorf(metal.CodeConflict, "operation %s is at step %s, not %q", o.ID, o.Current(), m.GetStep())
	}
	return nil
}

// step returns the current step in a list that may be changed.
func step(o *metal.Operation) *metal.StepStatus {
	for i := range o.Steps {
		if o.Steps[i].State != metal.StepDone {
			return &o.Steps[i]
		}
	}
	return &metal.StepStatus{} // an operation that runs has a step that is not done
}

// stepStarted may come again for a running step: the agent was restarted, or
// another one took over.
func (a *applier) stepStarted(o *metal.Operation, s *metal.Server) *metal.Error {
	st := step(o)
	if err := mayWipe(o, s, st.Step); err != nil {
		return err
	}
	if st.State != metal.StepRunning {
		st.State, st.Started = metal.StepRunning, a.now
		a.untilDeadline(o, s)
		a.event("operation.step", s, o, "", string(st.Step)+" started")
	}
	a.PutOperation(o)
	a.PutServer(s)
	return nil
}

// stepWaiting gives a step its whole time again: it waits its turn at an agent
// that says so time and again.
func (a *applier) stepWaiting(o *metal.Operation, s *metal.Server, m *logpb.ReportStep) {
	step(o).Message = shorten(m.GetMessage())
	a.untilDeadline(o, s)
	a.PutOperation(o)
	a.PutServer(s)
}

// stepBooted records which boot of the ramdisk counts from now on: what an
// earlier one did or says is no evidence any more.
func (a *applier) stepBooted(o *metal.Operation, s *metal.Server, m *logpb.ReportStep) *metal.Error {
	if err := plain("boot_id", m.GetBootId()); err != nil {
		return err
	}
	st := step(o)
	if st.State != metal.StepRunning {
		return metal.Errorf(metal.CodeConflict, "step %s of operation %s has not started", st.Step, o.ID)
	}
	o.BootID = m.GetBootId()
	a.event("operation.booted", s, o, "", "the ramdisk was booted again during "+string(st.Step))
	a.stepWaiting(o, s, m)
	return nil
}

// mayWipe keeps an enrolment from erasing disks without the operator's word.
func mayWipe(o *metal.Operation, s *metal.Server, st metal.Step) *metal.Error {
	if st == metal.StepWipe && o.Kind == metal.KindEnroll && !s.WipeOK {
		return wipeRefused(s)
	}
	return nil
}

func (a *applier) stepDone(o *metal.Operation, s *metal.Server, m *logpb.ReportStep) *metal.Error {
	st := step(o)
	if err := mayWipe(o, s, st.Step); err != nil {
		return err
	}
	if reason, message := a.accept(s, st.Step, m); reason != "" {
		return a.fail(o, s, reason, message)
	}
	switch {
	case st.Step == metal.StepBootRamdisk && m.GetBootId() != "":
		o.BootID = shorten(m.GetBootId())
	case st.Step == metal.StepWriteImage && m.GetRootDisk() != "":
		o.RootDisk = shorten(m.GetRootDisk())
	case st.Step == metal.StepBootDisk && m.GetBootMethod() != "":
		if b := m.GetBootMethod(); b != metal.BootKexec && b != metal.BootFirmware {
			return metal.Invalid("boot_method", "%q is neither kexec nor firmware", shorten(b))
		}
		o.BootMethod = m.GetBootMethod()
	}
	if st.Started.IsZero() {
		st.Started = a.now
	}
	st.State, st.Ended, st.Message = metal.StepDone, a.now, shorten(m.GetMessage())
	a.event("operation.step", s, o, "", string(st.Step)+" done")
	if err := a.effect(o, s, st.Step, m); err != nil {
		return err
	}
	if st.Step == metal.StepReady && o.BootMethod == metal.BootKexec && len(st.Recovery) > 0 {
		a.kexecFailed(o, s)
	}
	if o.Current() == "" {
		if err := a.succeed(o, s); err != nil {
			return err
		}
	} else {
		a.untilDeadline(o, s)
	}
	a.PutOperation(o)
	a.PutServer(s)
	return nil
}

// accept checks what a step claims to have done; a reason fails the operation.
func (a *applier) accept(s *metal.Server, st metal.Step, m *logpb.ReportStep) (metal.Code, string) {
	switch st {
	case metal.StepInspect:
		if m.GetHardware() == nil {
			return metal.CodeInternal, "the inspection brought no hardware"
		}
		h := m.GetHardware().Metal()
		if a.Meta().FeatureLevel >= discoveryLevel && s.WasAvailable {
			return a.identifyAgain(s, h)
		}
		return identify(s, h)
	case metal.StepWipe:
		return wiped(s.Hardware, logpb.Wipes(m.GetWipes()))
	}
	return "", ""
}

// identifyAgain compares an inspection with the machine that was inspected
// before. A part that was replaced asks for an operator's word.
func (a *applier) identifyAgain(s *metal.Server, h *metal.Hardware) (metal.Code, string) {
	switch s.Identity().Compare(h.Identity()) {
	case metal.Same:
		return "", ""
	case metal.BoardReplaced:
		a.claimed(s, h)
		return metal.CodeIdentityChanged, s.Claim.Reason
	}
	return identify(s, h)
}

// claimed notes what another board in a server's machine says it is; what has its
// boot NIC alone may be another machine's.
func (a *applier) claimed(s *metal.Server, h *metal.Hardware) {
	if h == nil || !s.WasAvailable || s.Identity().Compare(h.Identity()) != metal.BoardReplaced {
		return
	}
	trim(h)
	s.Claim = a.claim(s, h.Identity(), s.MACs[0], boardReplaced(s, h))
	s.Claim.Board = true
	a.event("server.claim", s, nil, metal.CodeIdentityChanged, s.Name+" came with changed parts: "+s.Claim.Reason)
}

// identify compares an inspection with the machine that was expected.
func identify(s *metal.Server, h *metal.Hardware) (metal.Code, string) {
	if s.Serial != "" && !strings.EqualFold(s.Serial, h.Serial) {
		return metal.CodeBMCMismatch, "expected serial " + s.Serial + ", found " + shown(h.Serial)
	}
	if s.UUID != "" && !strings.EqualFold(s.UUID, h.UUID) {
		return metal.CodeBMCMismatch, "expected UUID " + s.UUID + ", found " + shown(h.UUID)
	}
	for _, n := range h.NICs {
		if len(s.MACs) > 0 && strings.EqualFold(n.MAC, s.MACs[0]) {
			return "", ""
		}
	}
	return metal.CodeBMCMismatch, "the machine has no NIC " + strings.Join(s.MACs[:min(1, len(s.MACs))], "")
}

func shown(s string) string {
	if s == "" {
		return "none"
	}
	return shorten(s)
}

// wiped says whether every fixed disk was erased and all of it read back.
func wiped(h *metal.Hardware, ws []metal.WipeEvidence) (metal.Code, string) {
	if len(ws) == 0 {
		return metal.CodeWipeFailed, "the wipe brought no evidence"
	}
	for _, w := range ws {
		if w.Bytes == 0 || w.BytesReadBack < w.Bytes {
			return metal.CodeWipeFailed, "disk " + shorten(w.Disk) + " was not read back in full"
		}
	}
	if h == nil {
		return "", ""
	}
	for _, d := range h.Disks {
		if !d.Removable && !slices.ContainsFunc(ws, func(w metal.WipeEvidence) bool {
			return w.Disk != "" && (w.Disk == d.WWN || w.Disk == d.Serial || w.Disk == d.Name)
		}) {
			return metal.CodeWipeFailed, "there is no evidence for disk " + shorten(d.Name)
		}
	}
	return "", ""
}

// effect is what a step's end means for the server.
func (a *applier) effect(o *metal.Operation, s *metal.Server, st metal.Step, m *logpb.ReportStep) *metal.Error {
	switch st {
	case metal.StepPowerOff:
		a.observed(s, metal.PowerOff)
		if o.Kind == metal.KindCool {
			chill(a, s)
		}
		if o.Kind == metal.KindRelease && s.State == metal.StateReleasing {
			// Read as off: from here on the machine is nobody's.
			s.Rental = nil
			a.event("server.cleaning", s, o, "", s.Name+" is off and is wiped")
			return a.move(s, lifecycle.EventPoweredOff)
		}
	case metal.StepStop, metal.StepPowerOffEnd:
		a.observed(s, metal.PowerOff)
	case metal.StepBootRamdisk:
		a.observed(s, metal.PowerOn)
		if o.Kind == metal.KindWarm {
			a.waits(s, o.BootID, m.GetRamdisk())
		}
		if o.Kind == metal.KindEnroll {
			a.event("server.inspecting", s, o, "", s.Name+" said hello")
			return a.move(s, lifecycle.EventIdentified)
		}
	case metal.StepStart, metal.StepBootDisk, metal.StepReady:
		a.observed(s, metal.PowerOn)
	case metal.StepSetPower:
		a.observed(s, o.WantedPower)
	case metal.StepInspect:
		a.inspected(s, m.GetHardware().Metal())
		if o.Kind == metal.KindEnroll {
			a.event("server.cleaning", s, o, "", s.Name+" was inspected")
			return a.move(s, lifecycle.EventInspected)
		}
	case metal.StepWipe:
		s.Wiped = logpb.Wipes(m.GetWipes())
	case metal.StepConfigure:
		if s.Rental != nil {
			rental := *s.Rental
			rental.SSHHostKeys, rental.RootDisk = m.GetInstalled().GetSshHostKeys(), m.GetInstalled().GetRootDisk()
			s.Rental = &rental
		}
	}
	return nil
}

// inspected keeps what was found, and finds a size for servers without one.
func (a *applier) inspected(s *metal.Server, h *metal.Hardware) {
	h.InspectedAt = a.now
	detailed := a.Meta().FeatureLevel >= discoveryLevel
	if detailed {
		trim(h)
		a.compareParts(s, h)
		s.Serial, s.UUID, s.Claim = orElse(metal.ProperSerial(h.Serial), s.Serial), orElse(metal.ProperUUID(h.UUID), s.UUID), nil
	} else {
		s.Serial, s.UUID = h.Serial, h.UUID
	}
	s.Hardware = h
	var degraded []string
	if s.Size == "" || s.SizeByRule {
		s.Size = bestSize(&a.View, h, s.Labels)
		s.SizeByRule = detailed
		if s.Size == "" && detailed {
			a.event("server.size", s, nil, "", s.Name+" is of no size: bmc size test "+s.Name)
		}
	} else if z, ok := a.Size(s.Size); ok {
		if lack := z.Lacks(h); lack != "" {
			degraded = append(degraded, lack)
		}
	}
	if failing := h.Failing(); failing != "" {
		degraded = append(degraded, failing)
	}
	clearCondition(s, metal.ConditionHardwareDegraded)
	if len(degraded) > 0 {
		a.raise(s, metal.ConditionHardwareDegraded, shorten(strings.Join(degraded, "; ")))
		if detailed {
			a.event("server.degraded", s, nil, "", shorten(s.Name+": "+strings.Join(degraded, "; ")))
		}
	}
}

// compareParts says which ports are gone since the last inspection, and which
// have come.
func (a *applier) compareParts(s *metal.Server, h *metal.Hardware) {
	if s.Hardware == nil {
		return
	}
	was, is := s.Hardware.Identity().MACs, h.Identity().MACs
	var gone, come []string
	for _, m := range was {
		if !slices.Contains(is, m) {
			gone = append(gone, m)
		}
	}
	for _, m := range is {
		if !slices.Contains(was, m) {
			come = append(come, m)
		}
	}
	if len(gone)+len(come) == 0 {
		return
	}
	a.event("server.ports", s, nil, "", shorten(fmt.Sprintf("network ports of %s have changed: %s gone, %s new", s.Name, listed(gone), listed(come))))
}

func listed(macs []string) string {
	if len(macs) == 0 {
		return "none"
	}
	return strings.Join(macs, ", ")
}
