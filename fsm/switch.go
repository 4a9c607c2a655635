package fsm

import (
	"slices"

	"bmc/fsm/logpb"
	"bmc/metal"
)

// do is the one switch. Decode has refused what is not here.
func (a *applier) do(c *logpb.Command, r *Result) *metal.Error {
	if init, ok := c.GetCommand().(*logpb.Command_InitCluster); ok {
		return a.initCluster(init.InitCluster, r)
	}
	if a.Meta().ClusterID == "" {
		return metal.Errorf(metal.CodeWrongState, "the cluster has not been initialised").WithHint("bmc-controlplane init --config FILE")
	}
	if level := featureLevel(c); level > a.Meta().FeatureLevel {
		return metal.Errorf(metal.CodeWrongState, "%s needs feature level %d, the cluster is at %d", Name(c), level, a.Meta().FeatureLevel).
			WithHint("bmc cluster raise-feature-level")
	}
	if t := a.h.GetTerm(); t != 0 && t != a.term {
		return metal.Errorf(metal.CodeNoLeader, "the leader that proposed it led in term %d, and this is term %d", t, a.term)
	}
	switch m := c.GetCommand().(type) {
	case *logpb.Command_ApplyInventory:
		return a.applyInventory(m.ApplyInventory, r)
	case *logpb.Command_CreateServer:
		return a.createServer(m.CreateServer, r)
	case *logpb.Command_DestroyServer:
		return a.destroyServer(m.DestroyServer, r)
	case *logpb.Command_SetPower:
		return a.setPower(m.SetPower, r)
	case *logpb.Command_RestartServer:
		return a.restartServer(m.RestartServer, r)
	case *logpb.Command_RetryServer:
		return a.retryServer(m.RetryServer, r)
	case *logpb.Command_InspectServer:
		return a.inspectServer(m.InspectServer, r)
	case *logpb.Command_CleanServer:
		return a.cleanServer(m.CleanServer, r)
	case *logpb.Command_ForgetServer:
		return a.forgetServer(m.ForgetServer, r)
	case *logpb.Command_RetireServer:
		return a.retireServer(m.RetireServer, r)
	case *logpb.Command_SetHold:
		return a.setHold(m.SetHold, r)
	case *logpb.Command_AddKey:
		return a.addKey(m.AddKey, r)
	case *logpb.Command_RemoveKey:
		return a.removeKey(m.RemoveKey, r)
	case *logpb.Command_CreateImage:
		return a.createImage(m.CreateImage, r)
	case *logpb.Command_DeleteImage:
		return a.deleteImage(m.DeleteImage, r)
	case *logpb.Command_AddSigningKey:
		return a.addSigningKey(m.AddSigningKey, r)
	case *logpb.Command_CreateProject:
		return a.createProject(m.CreateProject, r)
	case *logpb.Command_CreateToken:
		return a.createToken(m.CreateToken, r)
	case *logpb.Command_RevokeToken:
		return a.revokeToken(m.RevokeToken, r)
	case *logpb.Command_JoinAgent:
		return a.joinAgent(m.JoinAgent, r)
	case *logpb.Command_RemoveAgent:
		return a.removeAgent(m.RemoveAgent, r)
	case *logpb.Command_JoinNode:
		return a.joinNode(m.JoinNode, r)
	case *logpb.Command_RemoveNode:
		return a.removeNode(m.RemoveNode, r)
	case *logpb.Command_GrantLease:
		return a.grantLease(m.GrantLease, r)
	case *logpb.Command_MarkSilence:
		return a.markSilence(m.MarkSilence, r)
	case *logpb.Command_ClearSilence:
		return a.clearSilence(m.ClearSilence, r)
	case *logpb.Command_AssignOperation:
		return a.assignOperation(m.AssignOperation, r)
	case *logpb.Command_ReportStep:
		return a.reportStep(m.ReportStep, r)
	case *logpb.Command_Observe:
		return a.observe(m.Observe, r)
	case *logpb.Command_MarkLate:
		return a.markLate(m.MarkLate, r)
	case *logpb.Command_ExpireStep:
		return a.expireStep(m.ExpireStep, r)
	case *logpb.Command_FailOperation:
		return a.failOperation(m.FailOperation, r)
	case *logpb.Command_RegisterFeatureLevel:
		return a.registerFeatureLevel(m.RegisterFeatureLevel, r)
	case *logpb.Command_RaiseFeatureLevel:
		return a.raiseFeatureLevel(m.RaiseFeatureLevel, r)
	case *logpb.Command_CancelOperation:
		return a.cancelOperation(m.CancelOperation, r)
	case *logpb.Command_QuarantineServer:
		return a.quarantineServer(m.QuarantineServer, r)
	case *logpb.Command_ReconcileRack:
		return a.reconcileRack(m.ReconcileRack, r)
	case *logpb.Command_SetModelKexec:
		return a.setModelKexec(m.SetModelKexec, r)
	case *logpb.Command_ThawRack:
		return a.thawRack(m.ThawRack, r)
	case *logpb.Command_RegisterNode:
		return a.registerNode(m.RegisterNode, r)
	case *logpb.Command_SetRackWarm:
		return a.setRackWarm(m.SetRackWarm, r)
	case *logpb.Command_WarmServer:
		return a.warmServer(m.WarmServer, r)
	case *logpb.Command_LendAddress:
		return a.lendAddress(m.LendAddress, r)
	case *logpb.Command_ReportDiscovered:
		return a.reportDiscovered(m.ReportDiscovered, r)
	case *logpb.Command_ExpireLoans:
		return a.expireLoans(m.ExpireLoans, r)
	case *logpb.Command_AcceptIdentity:
		return a.acceptIdentity(m.AcceptIdentity, r)
	case *logpb.Command_FreezeRacks:
		return a.freezeRacks(m.FreezeRacks, r)
	case *logpb.Command_RaiseGeneration:
		return a.raiseGeneration(m.RaiseGeneration, r)
	}
	// A command that logpb has and this switch has not is a programming error,
	// and to skip it would make replicas differ.
	panic("fsm: no case for command " + Name(c))
}

// FeatureLevel is the newest that this version knows.
const FeatureLevel = 6

// TermLevel is the feature level whose commands say in which term they were built. A
// leader that has lost the lead and has it again may find in its queue what it decided
// before: that a lease is silent, say, which another leader has seen renewed since.
const TermLevel = 6

// featureLevel is the level that a command came with: it is refused until every
// node knows it.
func featureLevel(c *logpb.Command) uint32 {
	if c.GetHeader().GetTerm() != 0 {
		return max(TermLevel, bodyLevel(c))
	}
	return bodyLevel(c)
}

func bodyLevel(c *logpb.Command) uint32 {
	switch m := c.GetCommand().(type) {
	case *logpb.Command_ReconcileRack:
		if m.ReconcileRack.Revision != nil {
			return ToldLevel
		}
		return 2
	case *logpb.Command_CancelOperation, *logpb.Command_QuarantineServer,
		*logpb.Command_ThawRack, *logpb.Command_RegisterNode:
		return 2
	case *logpb.Command_SetRackWarm, *logpb.Command_WarmServer, *logpb.Command_SetModelKexec:
		return 3
	case *logpb.Command_SetHold:
		if m.SetHold.GetHold() == string(metal.HoldNoKexec) {
			return 3
		}
	case *logpb.Command_ApplyInventory:
		if slices.ContainsFunc(m.ApplyInventory.GetRacks(), (*logpb.RackInput).GetDiscovery) ||
			slices.ContainsFunc(m.ApplyInventory.GetSizes(), func(z *logpb.Size) bool { return z.GetRule() != nil }) {
			return discoveryLevel
		}
		if slices.ContainsFunc(m.ApplyInventory.GetRacks(), func(r *logpb.RackInput) bool { return r.Warm != nil }) {
			return 3
		}
	case *logpb.Command_Observe:
		if slices.ContainsFunc(m.Observe.GetObservations(), func(o *logpb.Observation) bool { return o.GetWarmLost() != "" }) {
			return 3
		}
	case *logpb.Command_LendAddress, *logpb.Command_ReportDiscovered, *logpb.Command_ExpireLoans, *logpb.Command_AcceptIdentity:
		return discoveryLevel
	case *logpb.Command_MarkSilence, *logpb.Command_ClearSilence:
		return silenceLevel
	case *logpb.Command_FreezeRacks:
		return FreezeLevel
	// RaiseGeneration's feature_level is not asked for here: it is there to raise the
	// level of a backup. Who proposes it makes sure that every node knows it.
	case *logpb.Command_ReportStep:
		if m.ReportStep.GetFound() != nil || m.ReportStep.GetHardware().Detailed() {
			return discoveryLevel
		}
		if r := m.ReportStep; r.GetBootMethod() != "" || r.GetRamdisk() != "" {
			return 3
		}
		if r := m.ReportStep; r.GetBootId() != "" || r.GetRootDisk() != "" || r.GetPhase() == phaseBooted {
			return 2
		}
	}
	return 1
}
