package lifecycle

import "bmc/metal"

// Transition is one row of the table.
type Transition struct {
	From  metal.State
	Event Event
	To    metal.State
}

// Transitions returns the table. The slice is shared: do not change it.
func Transitions() []Transition { return transitions }

var transitions = []Transition{
	{metal.StateDiscovered, EventEnroll, metal.StateEnrolling},
	{metal.StateDiscovered, EventForget, Gone},

	{metal.StateEnrolling, EventIdentified, metal.StateInspecting},
	{metal.StateEnrolling, EventFailed, metal.StateFailed},
	{metal.StateEnrolling, EventCancel, metal.StateFailed},

	{metal.StateInspecting, EventInspected, metal.StateCleaning},
	{metal.StateInspecting, EventReturned, metal.StateAvailable},
	{metal.StateInspecting, EventStillDirty, metal.StateQuarantined},
	{metal.StateInspecting, EventFailed, metal.StateFailed},
	{metal.StateInspecting, EventCancel, metal.StateFailed},

	{metal.StateAvailable, EventCreate, metal.StateDeploying},
	{metal.StateAvailable, EventInspect, metal.StateInspecting},
	{metal.StateAvailable, EventClean, metal.StateCleaning},
	{metal.StateAvailable, EventRetire, metal.StateRetired},
	{metal.StateAvailable, EventWarm, metal.StateAvailable},
	{metal.StateAvailable, EventCool, metal.StateAvailable},
	{metal.StateAvailable, EventReplaced, metal.StateEnrolling},

	{metal.StateDeploying, EventDeployed, metal.StateActive},
	{metal.StateDeploying, EventFailed, metal.StateFailed},
	{metal.StateDeploying, EventCancel, metal.StateCleaning},

	{metal.StateActive, EventPower, metal.StateActive},
	{metal.StateActive, EventRestart, metal.StateActive},
	{metal.StateActive, EventReinstall, metal.StateDeploying},
	{metal.StateActive, EventRescue, metal.StateRescuing},
	{metal.StateActive, EventDestroy, metal.StateReleasing},

	{metal.StateRescuing, EventRescued, metal.StateRescue},
	{metal.StateRescuing, EventFailed, metal.StateFailed},
	{metal.StateRescuing, EventCancel, metal.StateActive},

	{metal.StateRescue, EventExit, metal.StateActive},
	{metal.StateRescue, EventReinstall, metal.StateDeploying},
	{metal.StateRescue, EventDestroy, metal.StateReleasing},

	{metal.StateReleasing, EventPoweredOff, metal.StateCleaning},
	{metal.StateReleasing, EventFailed, metal.StateFailed},

	{metal.StateCleaning, EventCleaned, metal.StateAvailable},
	{metal.StateCleaning, EventWipeFailed, metal.StateQuarantined},
	{metal.StateCleaning, EventAbort, metal.StateQuarantined},
	{metal.StateCleaning, EventFailed, metal.StateFailed},

	{metal.StateFailed, EventRetryEnroll, metal.StateEnrolling},
	{metal.StateFailed, EventRetryInspect, metal.StateInspecting},
	{metal.StateFailed, EventRetryDeploy, metal.StateDeploying},
	{metal.StateFailed, EventRetryRescue, metal.StateRescuing},
	{metal.StateFailed, EventRetryRelease, metal.StateReleasing},
	{metal.StateFailed, EventRetryClean, metal.StateCleaning},
	{metal.StateFailed, EventRescue, metal.StateRescuing},
	{metal.StateFailed, EventDestroy, metal.StateReleasing},
	{metal.StateFailed, EventQuarantine, metal.StateQuarantined},
	{metal.StateFailed, EventForget, Gone},
	{metal.StateFailed, EventReplaced, metal.StateEnrolling},

	{metal.StateQuarantined, EventInspect, metal.StateInspecting},
	{metal.StateQuarantined, EventClean, metal.StateCleaning},
	{metal.StateQuarantined, EventForget, Gone},
	{metal.StateQuarantined, EventRetire, metal.StateRetired},
	{metal.StateQuarantined, EventReplaced, metal.StateEnrolling},

	{metal.StateRetired, EventEnroll, metal.StateEnrolling},
	{metal.StateRetired, EventForget, Gone},
	{metal.StateRetired, EventCool, metal.StateRetired},

	// After a backup was restored (fsm/reconcile.go).
	{metal.StateDiscovered, EventDisowned, metal.StateQuarantined},
	{metal.StateEnrolling, EventDisowned, metal.StateQuarantined},
	{metal.StateInspecting, EventDisowned, metal.StateQuarantined},
	{metal.StateAvailable, EventDisowned, metal.StateQuarantined},
	{metal.StateReleasing, EventDisowned, metal.StateQuarantined},
	{metal.StateCleaning, EventDisowned, metal.StateQuarantined},
	{metal.StateFailed, EventDisowned, metal.StateQuarantined},
	{metal.StateQuarantined, EventDisowned, metal.StateQuarantined},
	{metal.StateRetired, EventDisowned, metal.StateQuarantined},
	{metal.StateDeploying, EventDisputed, metal.StateFailed},
	{metal.StateActive, EventDisputed, metal.StateFailed},
	{metal.StateRescuing, EventDisputed, metal.StateFailed},
	{metal.StateRescue, EventDisputed, metal.StateFailed},
	{metal.StateFailed, EventDisputed, metal.StateFailed},
}

// verbs is design's table. What failed admits depends on whether the server has
// been available once: see Admitted.
var verbs = map[metal.State][]Verb{
	metal.StateDiscovered:  {VerbEnroll, VerbForget},
	metal.StateEnrolling:   {VerbCancel},
	metal.StateInspecting:  {VerbCancel},
	metal.StateAvailable:   {VerbCreate, VerbInspect, VerbClean, VerbRetire},
	metal.StateDeploying:   {VerbCancel},
	metal.StateActive:      {VerbPower, VerbRestart, VerbReinstall, VerbRescue, VerbDestroy},
	metal.StateRescuing:    {VerbCancel},
	metal.StateRescue:      {VerbExit, VerbReinstall, VerbDestroy},
	metal.StateReleasing:   {},
	metal.StateCleaning:    {VerbAbort},
	metal.StateFailed:      {VerbRetry, VerbRescue, VerbDestroy, VerbQuarantine, VerbForget},
	metal.StateQuarantined: {VerbInspect, VerbClean, VerbForget, VerbRetire},
	metal.StateRetired:     {VerbEnroll, VerbForget},
}

// States lists every state in the order in which a server meets them.
func States() []metal.State {
	return []metal.State{
		metal.StateDiscovered, metal.StateEnrolling, metal.StateInspecting, metal.StateAvailable,
		metal.StateDeploying, metal.StateActive, metal.StateRescuing, metal.StateRescue,
		metal.StateReleasing, metal.StateCleaning, metal.StateFailed, metal.StateQuarantined, metal.StateRetired,
	}
}
