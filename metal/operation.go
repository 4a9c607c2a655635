package metal

import "time"

// OperationKind names a piece of work on one server.
type OperationKind string

// The kinds.
const (
	KindEnroll  OperationKind = "enroll"
	KindInspect OperationKind = "inspect"
	KindDeploy  OperationKind = "deploy"
	KindPower   OperationKind = "power"
	KindRestart OperationKind = "restart"
	KindRelease OperationKind = "release" // destroy: off, then wipe
	KindClean   OperationKind = "clean"
	KindWarm    OperationKind = "warm" // boot the ramdisk, which then waits for a tenant
	KindCool    OperationKind = "cool" // off again
)

// Yields says whether operations of a kind are the system's own: they end when a
// person wants the server.
func (k OperationKind) Yields() bool { return k == KindWarm || k == KindCool }

// Step is one observe-act-verify stage of an operation.
type Step string

// The steps.
const (
	StepVerifyOOB   Step = "verify-oob"   // the management controller answers and reads
	StepPowerOff    Step = "power-off"    // off, and read back as off
	StepBootRamdisk Step = "boot-ramdisk" // network boot until the very machine's hello
	StepInspect     Step = "inspect"
	StepWipe        Step = "wipe"
	StepWriteImage  Step = "write-image"
	StepConfigure   Step = "configure"
	StepBootDisk    Step = "boot-disk" // persistent boot device disk, reboot
	StepReady       Step = "ready"     // the OS proves itself
	StepSetPower    Step = "set-power"
	StepStop        Step = "stop" // graceful, then hard; read back as off
	StepStart       Step = "start"
	StepPowerOffEnd Step = "power-off-end" // leave the machine off, read back
)

// Plan returns the steps of a kind, in order. The slice is shared: do not change it.
func Plan(kind OperationKind) []Step { return plans[kind] }

var plans = map[OperationKind][]Step{
	KindEnroll:  {StepVerifyOOB, StepPowerOff, StepBootRamdisk, StepInspect, StepWipe, StepPowerOffEnd},
	KindInspect: {StepPowerOff, StepBootRamdisk, StepInspect, StepPowerOffEnd},
	KindDeploy:  {StepPowerOff, StepBootRamdisk, StepWriteImage, StepConfigure, StepBootDisk, StepReady},
	KindPower:   {StepSetPower},
	KindRestart: {StepStop, StepStart, StepReady},
	KindRelease: {StepPowerOff, StepBootRamdisk, StepWipe, StepPowerOffEnd},
	KindClean:   {StepPowerOff, StepBootRamdisk, StepWipe, StepPowerOffEnd},
	KindWarm:    {StepPowerOff, StepBootRamdisk},
	KindCool:    {StepPowerOff},
}

// How boot-disk starts the system that was installed.
const (
	BootKexec    = "kexec"    // the image's kernel in place of the ramdisk's, without the firmware
	BootFirmware = "firmware" // a reset, and the boot device disk
)

// OperationState is where an operation stands.
type OperationState string

// The operation states.
const (
	OperationPending   OperationState = "pending" // waits for its rack's agent
	OperationRunning   OperationState = "running"
	OperationSucceeded OperationState = "succeeded"
	OperationFailed    OperationState = "failed"
	OperationCancelled OperationState = "cancelled"
)

// Ended says whether nothing more will happen.
func (s OperationState) Ended() bool {
	return s == OperationSucceeded || s == OperationFailed || s == OperationCancelled
}

// Operation is work under way, or done, on one server.
type Operation struct {
	ID          string
	Kind        OperationKind
	State       OperationState
	ServerID    string
	Target      string // the rental's name when it was asked for, else the server's
	Project     string // ID; "" for operators' work
	Principal   string // who asked
	RequestID   string
	Attempt     int          // from 1; rises on retry, never on takeover
	Agent       string       // that it is assigned to
	Epoch       uint64       // of the rack's lease that it is assigned under
	Steps       []StepStatus // in the plan's order, of the current attempt
	Sequence    uint64       // of the last report accepted
	Created     time.Time
	Queued      time.Time // when it last began to wait for an agent
	Started     time.Time
	Ended       time.Time
	Deadline    time.Time // of the current step; zero when none runs
	Late        bool      // half of the step's time has gone
	Failure     *Failure
	WantedPower Power  // kind power
	Hard        bool   // kinds power and restart
	From        State  // of the server when it was asked for
	LastReport  []byte // SHA-256 of the last report accepted: tells a replay from a clash
	BootID      string // of the ramdisk's boot that this attempt works with; "" before its hello, unless one waits
	RootDisk    string // that write-image has chosen
	BootMethod  string // BootKexec or BootFirmware, how boot-disk started the system; "" before, or not known
	// ReportedEpoch is the epoch that the attempt's last accepted report came
	// under, 0 before it: by it an agent knows whether another one has acted.
	ReportedEpoch uint64
	Revision      uint64
}

// Adopts says whether the operation goes on with a ramdisk that has waited for
// it: its plan then lacks the power-off before the boot.
func (o *Operation) Adopts() bool {
	return len(o.Steps) > 0 && o.Steps[0].Step == StepBootRamdisk
}

// Current returns the first step that is not done, or "".
func (o *Operation) Current() Step {
	for _, s := range o.Steps {
		if s.State != StepDone {
			return s.Step
		}
	}
	return ""
}

// StepState is where a step stands.
type StepState string

// The step states.
const (
	StepPending StepState = "pending"
	StepRunning StepState = "running"
	StepDone    StepState = "done"
	StepFailed  StepState = "failed"
)

// StepStatus is one step of an operation's current attempt.
type StepStatus struct {
	Step     Step
	State    StepState
	Started  time.Time
	Ended    time.Time
	Message  string
	Recovery []string // rungs of the recovery ladder that it climbed
}
