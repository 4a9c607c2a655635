package fsm

import (
	"fmt"
	"time"

	"bmc/fsm/lifecycle"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// A restored backup may be older than what the racks have lived through since:
// a machine that it calls available may be somebody's by now. So a restore
// freezes every rack that has servers. An agent that remembers each of them
// from before thaws its rack; who disagrees with the backup is put aside for
// a person to decide, and no disk is touched.

// BackupLevel is the feature level whose racks remember the revision of the
// backup that froze them.
const BackupLevel = 5

// ToldLevel is the feature level at which agents say up to which revision they were
// told their rack.
const ToldLevel = 6

// freeze stops new work on a rack; the caller knows that it has servers. The rack
// remembers the backup's revision: the rows of its servers change from here on
// (warmth is forgotten, powers are observed, holds are set), and with them the
// revisions by which it could be told whether an agent knew more than the backup.
//
// A backup that was taken while the rack was frozen keeps that revision, which is
// of an older backup. Its time is another: who is newer than the first freeze, or was
// put aside since, may have been rented after this backup.
func (a *applier) freeze(rackID string) {
	rack, ok := a.Rack(rackID)
	remembers := a.Meta().FeatureLevel >= BackupLevel
	if !ok || rack.Frozen && !remembers {
		return
	}
	changed := *rack
	changed.Frozen = true
	if remembers {
		changed.FrozenSince = a.now
	}
	switch {
	case rack.FrozenAt != 0 || !remembers:
	case rack.Frozen: // below BackupLevel, by a backup of at least its oldest row
		changed.FrozenAt = a.oldest(rackID)
	default:
		changed.FrozenAt = a.Before()
	}
	a.PutRack(&changed)
	if rack.Frozen {
		return
	}
	a.coldAgain(rackID)
	a.note("rack.frozen", rack.Name, "", "a backup was restored: nothing starts in rack "+rack.Name+" until its agent has said what it knew")
}

// oldest is the least revision of a rack's servers.
func (a *applier) oldest(rackID string) uint64 {
	least := a.Before()
	for _, s := range a.inRack(rackID) {
		least = min(least, s.Revision)
	}
	return least
}

func (a *applier) inRack(rackID string) []*metal.Server {
	var out []*metal.Server
	for s := range a.Servers(state.ServerFilter{RackID: rackID}) {
		out = append(out, s)
	}
	return out
}

// Frozen says why nothing starts in a rack; nil: it does.
func Frozen(rack *metal.Rack) *metal.Error {
	switch {
	case rack.Frozen:
	case rack.Stopped():
		return stopped(rack)
	default:
		return nil
	}
	return metal.Errorf(metal.CodeRackFrozen, "rack %s is frozen: a backup was restored, and its agent has yet to say what it knew", rack.Name).
		WithHint("bmc rack thaw %s", rack.Name)
}

// thaw lets work start; tried are the attempts that the agent knew, by operation.
func (a *applier) thaw(rack *metal.Rack, tried map[string]int64, message string) {
	changed := *rack
	changed.Frozen, changed.FrozenAt, changed.FrozenSince = false, 0, time.Time{}
	a.PutRack(&changed)
	a.note("rack.thawed", rack.Name, "", message)
	for _, s := range a.inRack(rack.ID) {
		a.again(s, tried)
	}
}

// thawRack is an operator's word that the backup is right.
func (a *applier) thawRack(m *logpb.ThawRack, r *Result) *metal.Error {
	rack, ok := a.Rack(m.GetRackId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no rack %q", m.GetRackId()).WithHint("bmc rack list")
	}
	a.target, r.ID = rack.Name, rack.ID
	if rack.Frozen {
		a.thaw(rack, nil, "rack "+rack.Name+" was thawed by "+a.h.GetPrincipal())
	}
	return nil
}

// reconcileRack compares what the rack's agent knew before a restore with what
// the backup says. The rack stays frozen when the agent does not remember all
// of its servers, or was cut off before the backup was made: of what has become of them
// since it knows nothing. Result.Value: bool, whether it is still frozen.
func (a *applier) reconcileRack(m *logpb.ReconcileRack, r *Result) *metal.Error {
	rack, ok := a.Rack(m.GetRackId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no rack %q", m.GetRackId())
	}
	a.target, r.ID, r.Value = rack.Name, rack.ID, rack.Frozen
	if rack.Lease.Agent != m.GetAgentId() || rack.Lease.Agent == "" || m.GetGeneration() != a.Meta().Generation {
		return metal.Errorf(metal.CodeStaleEpoch, "agent %q does not hold rack %s in generation %d", m.GetAgentId(), rack.Name, a.Meta().Generation)
	}
	if !rack.Frozen {
		return nil
	}
	known := map[string]*logpb.KnownServer{}
	for _, k := range m.GetServers() {
		known[k.GetServerId()] = k
		if _, ok := a.Server(k.GetServerId()); !ok {
			a.note("rack.unknown-server", rack.Name, "", fmt.Sprintf("the agent knew %s (%s, %s), which the backup does not have",
				shorten(k.GetName()), shorten(k.GetServerId()), shorten(k.GetState())))
		}
	}
	unknown, conflicts, old := 0, 0, false
	for _, s := range a.inRack(rack.ID) {
		k := known[s.ID]
		if k == nil && since(rack, s.Created) { // no agent can remember it
			continue
		}
		old = old || m.Revision != nil && m.GetRevision() < rack.FrozenAt
		switch {
		case k == nil:
			unknown++
		case newer(rack, s, k) && disagrees(s, k):
			conflicts++
			if err := a.putAside(s, k); err != nil {
				return err
			}
		}
	}
	if unknown > 0 {
		a.note("rack.reconcile", rack.Name, "", fmt.Sprintf("the agent does not remember %d servers of rack %s, which stays frozen", unknown, rack.Name))
		return nil
	}
	if old {
		a.note("rack.reconcile", rack.Name, "", fmt.Sprintf("the agent was told rack %s up to revision %d, and the backup is of %d: what has happened since it does not know, and the rack stays frozen",
			rack.Name, m.GetRevision(), rack.FrozenAt))
		return nil
	}
	tried := map[string]int64{}
	for _, k := range m.GetOperations() {
		tried[k.GetOperationId()] = max(tried[k.GetOperationId()], k.GetAttempt())
	}
	a.thaw(rack, tried, fmt.Sprintf("rack %s goes on: its agent remembers all of its servers, %d differ from the backup and were put aside", rack.Name, conflicts))
	r.Value = false
	return nil
}

// newer says whether what an agent knew of a server is of after the backup. A
// server that has been put aside on its word is not looked at again: a person may
// have decided meanwhile.
func newer(rack *metal.Rack, s *metal.Server, k *logpb.KnownServer) bool {
	if rack.FrozenAt == 0 { // frozen below BackupLevel
		return k.GetRevision() > s.Revision
	}
	aside := s.Failure != nil && s.Failure.Reason == metal.CodeRestored && !s.Failure.At.Before(rack.FrozenSince)
	return k.GetRevision() > rack.FrozenAt && !aside
}

// since says whether something happened after a rack was frozen, as far as it
// remembers when that was.
func since(rack *metal.Rack, t time.Time) bool {
	return rack.FrozenAt != 0 && t.After(rack.FrozenSince)
}

// disagrees says whether the agent's newer knowledge makes it dangerous to go
// on from the backup's: about who has the machine, or whether a system is on it.
func disagrees(s *metal.Server, k *logpb.KnownServer) bool {
	rented := s.Rental != nil && !s.Rental.Released
	tenant := false
	switch metal.State(k.GetState()) {
	case metal.StateDeploying, metal.StateActive, metal.StateRescuing, metal.StateRescue:
		tenant = true
	case metal.StateFailed:
		tenant = k.GetHostname() != "" && k.GetHostname() != k.GetName()
	}
	switch {
	case rented != tenant:
		return true
	case !rented: // whoever had it after the backup may have left something behind
		return s.State == metal.StateAvailable && metal.State(k.GetState()) != metal.StateAvailable
	}
	return k.GetHostname() != s.Rental.Name || s.State == metal.StateDeploying && metal.State(k.GetState()) != metal.StateDeploying
}

// putAside ends what the backup had under way on a server and leaves the rest
// to a person.
func (a *applier) putAside(was *metal.Server, k *logpb.KnownServer) *metal.Error {
	s := *was
	message := fmt.Sprintf("the backup has it as %s, its agent knew it as %s (%s) after the backup was taken", s.State, shorten(k.GetState()), shorten(k.GetHostname()))
	f := &metal.Failure{From: s.State, Operation: s.Operation, Reason: metal.CodeRestored, Message: message, At: a.now}
	if old, ok := a.Operation(s.Operation); ok && !old.State.Ended() {
		o := *old
		o.State, o.Ended, o.Failure = metal.OperationCancelled, a.now, f
		a.untilDeadline(&o, &s)
		a.PutOperation(&o)
		a.event("operation.cancelled", &s, &o, metal.CodeRestored, message)
	}
	ev := lifecycle.EventDisputed
	if s.Rental == nil || s.Rental.Released {
		ev, s.Rental = lifecycle.EventDisowned, nil
	}
	if err := a.move(&s, ev); err != nil {
		return err
	}
	s.Operation, s.Failure = "", f
	setWarm(a, &s, nil)
	a.event("server."+string(s.State), &s, nil, metal.CodeRestored, s.Name+": "+message)
	a.PutServer(&s)
	return nil
}

const (
	// attemptGap stands above the attempts that were made after the backup and
	// that nobody has told of: those of the rack's other agents. A journal is
	// found by operation and attempt, and one of before would be taken up where
	// it ended.
	attemptGap  = 16
	maxAttempts = 1 << 20 // more than an agent may tell of
)

// again starts an open operation over, as a new attempt: nothing that was
// granted before the restore can be taken for it. One that has failed is
// counted on, for when it is retried.
func (a *applier) again(s *metal.Server, tried map[string]int64) {
	id := s.Operation
	if id == "" && s.Failure != nil {
		id = s.Failure.Operation
	}
	old, ok := a.Operation(id)
	if !ok {
		return
	}
	o := *old
	o.Attempt = max(old.Attempt, int(min(tried[old.ID], maxAttempts))) + attemptGap
	if old.State.Ended() {
		a.PutOperation(&o)
		return
	}
	o.State, o.Steps, o.Queued = metal.OperationPending, steps(old.Kind), a.queued()
	o.BootID, o.RootDisk, o.ReportedEpoch = "", "", 0
	if rack, ok := a.Rack(s.RackID); ok && rack.Stopped() { // it begins anew, and waits for the operator's thaw
		o.Started = logpb.Time(0)
	}
	reassign(&o, "", 0)
	a.PutOperation(&o)
	a.event("operation.retried", s, &o, metal.CodeRestored, string(o.Kind)+" begins again after a restored backup")
}
