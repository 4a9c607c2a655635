package rpc

import (
	"context"
	"fmt"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/fsm/lifecycle"
	"bmc/fsm/state"
	"bmc/metal"
)

// explainEvents is how many events an explanation ends with.
const explainEvents = 20

func (s *servers) ExplainServer(ctx context.Context, req *bmcv1.ExplainServerRequest) (*bmcv1.ExplainServerResponse, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	srv, err := s.resolve(ctx, v, req.GetRef())
	if err != nil {
		return nil, err
	}
	id := caller(ctx)
	resp := &bmcv1.ExplainServerResponse{Server: toServer(v, srv, id.operates()), Revision: v.Revision()}
	if req.GetAllowStale() {
		resp.Age = s.age()
	}
	if id.operates() {
		resp.Server.Watts = s.watts.of(srv.ID, s.Now())
	}
	op := latest(v, srv)
	if op != nil && mayseeOperation(id, op) {
		resp.Operation = toOperation(v, op)
		resp.Operation.Progress = s.progress.of(op.ID, op.Attempt, string(op.Current()))
	}
	resp.WaitingFor = waitingFor(v, srv, op)
	if p := resp.GetOperation().GetProgress(); p.GetMessage() != "" && s.Now().Sub(p.GetAt().AsTime()) < progressFresh {
		resp.WaitingFor += "; " + p.GetMessage()
	}
	if op != nil && !op.State.Ended() {
		resp.WaitingFor += s.silentAgent(v, srv)
	}
	if c := srv.Claim; c != nil && id.operates() {
		resp.WaitingFor += fmt.Sprintf("; its machine came with changed parts, which an operator may accept: %s", c.Reason)
	}
	resp.Next = nextCommands(id, srv, op)
	for e := range v.EventsOf(srv.ID) {
		if len(resp.Events) == explainEvents {
			break
		}
		if id.mayseeEvent(e) {
			resp.Events = append(resp.Events, toEvent(e))
		}
	}
	return resp, nil
}

// progressFresh is how long an agent's last word explains anything: it repeats it.
const progressFresh = 30 * time.Second

// silentAgent says that nobody does what a server waits for, where that is so.
func (a *API) silentAgent(v *state.View, srv *metal.Server) string {
	r, ok := v.Rack(srv.RackID)
	if !ok || r.Lease.Agent == "" || a.Membership == nil || a.agentAlive(r.Lease.Agent) {
		return ""
	}
	name := r.Lease.Agent
	if ag, ok := v.Agent(name); ok {
		name = ag.Name
	}
	for _, id := range agentsOf(v, srv.RackID) {
		if id != r.Lease.Agent && a.agentAlive(id) {
			return fmt.Sprintf("; the rack's agent %s does not answer: another takes over when its lease has run out", name)
		}
	}
	return fmt.Sprintf("; the rack's agent %s does not answer, and the rack has no other that does: start it again", name)
}

// latest is the operation under way, else the last one, else nil.
func latest(v *state.View, s *metal.Server) *metal.Operation {
	if op, ok := v.Operation(s.Operation); ok {
		return op
	}
	for op := range v.OperationsOf(s.ID) {
		return op
	}
	return nil
}

// doing says what a step does, to follow "waits until".
var doing = map[metal.Step]string{
	metal.StepVerifyOOB:   "its management controller answers",
	metal.StepPowerOff:    "its management controller reads off",
	metal.StepBootRamdisk: "it boots from the network and its ramdisk says hello",
	metal.StepInspect:     "its hardware is inspected",
	metal.StepWipe:        "its disks are wiped and read back",
	metal.StepWriteImage:  "the image is written and read back",
	metal.StepConfigure:   "the system on its disk is configured",
	metal.StepBootDisk:    "it restarts from its disk",
	metal.StepReady:       "the system answers with its recorded host key",
	metal.StepSetPower:    "its management controller reads the wanted power",
	metal.StepStop:        "it has shut down",
	metal.StepStart:       "it is on again",
	metal.StepPowerOffEnd: "its management controller reads off",
}

// waitingFor says in one sentence what has to happen next, and who must act.
func waitingFor(v *state.View, s *metal.Server, op *metal.Operation) string {
	if op != nil && op.State == metal.OperationPending {
		return waitingForAgent(v, s, op)
	}
	if op != nil && op.State == metal.OperationRunning {
		step := op.Current()
		out := fmt.Sprintf("%s waits until %s (%s, step %s", refName(s), doing[step], op.Kind, step)
		if !op.Deadline.IsZero() {
			out += ", until " + op.Deadline.UTC().Format(time.RFC3339)
		}
		out += ")"
		if op.Late {
			out += "; it is late: half of the time has gone"
		}
		if c, ok := s.Conditions[metal.ConditionOOBUnreachable]; ok {
			out += fmt.Sprintf("; management controller %s has not answered since %s", s.OOB.Address, c.Since.UTC().Format(time.RFC3339))
		}
		return out
	}
	switch s.State {
	case metal.StateAvailable:
		return waitsForTenant(v, s)
	case metal.StateActive:
		return refName(s) + " is in use and waits for nothing"
	case metal.StateFailed, metal.StateQuarantined:
		if f := s.Failure; f != nil {
			return fmt.Sprintf("%s waits for a person: %s %s, %s", refName(s), failedIn(f), f.Reason, f.Message)
		}
		return refName(s) + " waits for a person"
	case metal.StateDiscovered:
		return fmt.Sprintf("%s was discovered in rack %s and waits for an operator to enroll or forget it", refName(s), rackName(v, s.RackID))
	case metal.StateRetired:
		return refName(s) + " is retired and waits for nothing"
	}
	return refName(s) + " waits for nothing"
}

// failedIn begins a sentence that a reason ends: a server that was put aside after a
// restored backup has failed in no step.
func failedIn(f *metal.Failure) string {
	switch {
	case f.Reason == metal.CodeRestored:
		return "it was put aside with"
	case f.Step == "":
		return "it failed with"
	}
	return "step " + string(f.Step) + " failed with"
}

func waitingForAgent(v *state.View, s *metal.Server, op *metal.Operation) string {
	rack := rackName(v, s.RackID)
	r, ok := v.Rack(s.RackID)
	agents := agentsOf(v, s.RackID)
	switch {
	case ok && r.HoldsBack(op):
		why := fsm.Frozen(r)
		return fmt.Sprintf("%s waits to begin its %s: %s (%s)", refName(s), op.Kind, why.Message, why.Hint)
	case len(agents) == 0:
		return fmt.Sprintf("%s waits for an agent: rack %s has none (bmc cluster join-token --role agent --rack %s)", refName(s), rack, rack)
	case !ok || r.Lease.Agent == "":
		return fmt.Sprintf("%s waits for an agent of rack %s to take the rack's lease", refName(s), rack)
	}
	name := r.Lease.Agent
	if ag, ok := v.Agent(r.Lease.Agent); ok {
		name = ag.Name
	}
	return fmt.Sprintf("%s waits for agent %s of rack %s to begin its %s", refName(s), name, rack, op.Kind)
}

// commandOf is what a person types for a verb; verbs that bmc has no command
// for yet are left out.
func commandOf(verb lifecycle.Verb, s *metal.Server) (cmd string, operators bool) {
	switch verb {
	case lifecycle.VerbCreate:
		if s.Size != "" {
			return "bmc create --name NAME --size " + s.Size, false
		}
		return "bmc create --name NAME", false
	case lifecycle.VerbEnroll:
		if s.State == metal.StateDiscovered {
			address := "ADDRESS"
			if s.Hardware != nil && s.Hardware.OOBAddress != "" {
				address = s.Hardware.OOBAddress
			}
			return fmt.Sprintf("bmc inventory approve %s --name NAME --oob-address %s --oob-user USER --oob-password-file FILE --wipe", s.Name, address), true
		}
	case lifecycle.VerbInspect:
		return "bmc inventory inspect " + s.Name, true
	case lifecycle.VerbForget:
		return "bmc inventory forget " + s.Name, true
	case lifecycle.VerbRetire:
		if s.State == metal.StateAvailable { // forget retires it first
			return "bmc inventory forget " + s.Name, true
		}
	case lifecycle.VerbPower:
		if s.Power.Observed == metal.PowerOff {
			return "bmc power on " + refName(s), false
		}
		return "bmc power off " + refName(s), false
	case lifecycle.VerbRestart:
		return "bmc restart " + refName(s), false
	case lifecycle.VerbDestroy:
		return "bmc destroy " + refName(s), false
	case lifecycle.VerbRetry:
		return "bmc retry " + refName(s), false
	case lifecycle.VerbClean:
		if s.State == metal.StateQuarantined { // where a retry is a clean
			return "bmc retry " + refName(s), false
		}
	}
	return "", false
}

// nextCommands are those that the lifecycle admits now and the caller may give.
func nextCommands(id *identity, s *metal.Server, op *metal.Operation) []string {
	var out []string
	if op != nil && !op.State.Ended() {
		out = append(out, "bmc operation watch "+op.ID)
	}
	if s.State == metal.StateActive && s.Rental != nil && s.Power.Observed != metal.PowerOff {
		out = append(out, "bmc login "+refName(s))
	}
	if s.State == metal.StateFailed && op != nil {
		out = append(out, "bmc operation log "+op.ID)
	}
	if op != nil && !op.State.Ended() || rank(id.role) < rank(metal.RoleMember) {
		return out // one operation at a time
	}
	if s.Claim != nil && id.operates() {
		out = append(out, "bmc inventory accept "+s.Name)
	}
	for _, verb := range lifecycle.Admitted(s.State, s.WasAvailable) {
		if verb == lifecycle.VerbDestroy && s.Rental == nil {
			continue
		}
		if cmd, operators := commandOf(verb, s); cmd != "" && (!operators || id.operates()) {
			out = append(out, cmd)
		}
	}
	return out
}
