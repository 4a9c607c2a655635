package fsm

import (
	"time"

	"bmc/metal"
)

// deadlines are how long steps may take before the leader fails them. They
// count from the end of the step before, so that an agent that vanishes between
// two steps is noticed, too. The agent's own deadlines (no progress for two
// minutes, for one) are tighter.
var deadlines = map[metal.Step]time.Duration{
	metal.StepVerifyOOB:   2 * time.Minute,
	metal.StepPowerOff:    2 * time.Minute,
	metal.StepBootRamdisk: 12 * time.Minute,
	metal.StepInspect:     15 * time.Minute,
	metal.StepWipe:        60 * time.Minute,
	metal.StepWriteImage:  60 * time.Minute,
	metal.StepConfigure:   5 * time.Minute,
	metal.StepBootDisk:    5 * time.Minute,
	metal.StepReady:       10 * time.Minute,
	metal.StepSetPower:    5 * time.Minute, // graceful, then hard
	metal.StepStop:        5 * time.Minute,
	metal.StepStart:       2 * time.Minute,
	metal.StepPowerOffEnd: 2 * time.Minute,
}

// StepDeadline is how long a step may take; 0 for what is no step.
func StepDeadline(s metal.Step) time.Duration { return deadlines[s] }
