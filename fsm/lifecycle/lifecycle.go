// Package lifecycle is a server's transition table: which verbs a state admits
// and where events lead. It is data and pure functions; the state machine asks
// it, and the diagram in the documentation is drawn from it.
package lifecycle

import (
	"fmt"
	"strings"

	"bmc/metal"
)

// Verb is what a person may ask of a server.
type Verb string

// The verbs.
const (
	VerbEnroll     Verb = "enroll"
	VerbForget     Verb = "forget"
	VerbCancel     Verb = "cancel"
	VerbCreate     Verb = "create"
	VerbInspect    Verb = "inspect"
	VerbClean      Verb = "clean"
	VerbRetire     Verb = "retire"
	VerbPower      Verb = "power"
	VerbRestart    Verb = "restart"
	VerbReinstall  Verb = "reinstall"
	VerbRescue     Verb = "rescue"
	VerbExit       Verb = "exit"
	VerbDestroy    Verb = "destroy"
	VerbAbort      Verb = "abort"
	VerbRetry      Verb = "retry"
	VerbQuarantine Verb = "quarantine"
)

// Event moves a server from one state to another.
type Event string

// The events: first what people ask for, then what operations report.
const (
	EventEnroll       Event = "enroll"
	EventForget       Event = "forget"
	EventCancel       Event = "cancel"
	EventCreate       Event = "create"
	EventInspect      Event = "inspect"
	EventClean        Event = "clean"
	EventRetire       Event = "retire"
	EventPower        Event = "power"
	EventRestart      Event = "restart"
	EventReinstall    Event = "reinstall"
	EventRescue       Event = "rescue"
	EventExit         Event = "exit"
	EventDestroy      Event = "destroy"
	EventAbort        Event = "abort"
	EventQuarantine   Event = "quarantine"
	EventRetryEnroll  Event = "retry-enroll"
	EventRetryInspect Event = "retry-inspect"
	EventRetryDeploy  Event = "retry-deploy"
	EventRetryRescue  Event = "retry-rescue"
	EventRetryRelease Event = "retry-release"
	EventRetryClean   Event = "retry-clean"

	EventIdentified Event = "identified"  // the very machine said hello
	EventInspected  Event = "inspected"   // enrolment's inspection is done, the first wipe follows
	EventReturned   Event = "returned"    // an inspection of an available server is done
	EventStillDirty Event = "still-dirty" // an inspection of a quarantined server is done
	EventCleaned    Event = "cleaned"     // wiped, read back, off
	EventWipeFailed Event = "wipe-failed"
	EventDeployed   Event = "deployed" // the OS proved itself
	EventRescued    Event = "rescued"
	EventPoweredOff Event = "powered-off" // the management controller read off
	EventFailed     Event = "failed"
	EventWarm       Event = "warm"     // the system's own: into the ramdisk, to wait there
	EventCool       Event = "cool"     // and off again
	EventReplaced   Event = "replaced" // by an operator's word the machine has another mainboard
	EventDisowned   Event = "disowned" // after a restore: the agent knew a tenant that the backup does not
	EventDisputed   Event = "disputed" // after a restore: the agent knew the rental otherwise
)

// Gone is the pseudo-state of a server that left the inventory.
const Gone metal.State = ""

// Next says where an event leads. The error's code is WRONG_STATE; its message
// names what the state admits.
func Next(from metal.State, event Event) (metal.State, error) {
	for i := range transitions {
		if t := &transitions[i]; t.From == from && t.Event == event {
			return t.To, nil
		}
	}
	return from, wrongState(from, string(event), Verbs(from))
}

// Verbs returns what a state admits, in the order of the documentation. The
// slice is shared: do not change it.
func Verbs(s metal.State) []Verb { return verbs[s] }

// Admitted narrows Verbs to what this server admits: a failed server that has
// never been available holds nobody's rental, and one that has cannot simply be
// forgotten.
func Admitted(s metal.State, wasAvailable bool) []Verb {
	if s != metal.StateFailed {
		return Verbs(s)
	}
	if wasAvailable {
		return []Verb{VerbRetry, VerbRescue, VerbDestroy, VerbQuarantine}
	}
	return []Verb{VerbRetry, VerbForget}
}

// Admit refuses a verb that the server's state does not admit.
func Admit(s metal.State, wasAvailable bool, verb Verb) error {
	admitted := Admitted(s, wasAvailable)
	for _, v := range admitted {
		if v == verb {
			return nil
		}
	}
	return wrongState(s, string(verb), admitted)
}

func wrongState(s metal.State, what string, admitted []Verb) *metal.Error {
	return metal.Errorf(metal.CodeWrongState, "%s is not possible while the server is %s, which admits %s", what, s, join(admitted))
}

func join(vs []Verb) string {
	if len(vs) == 0 {
		return "nothing: wait until it has passed"
	}
	names := make([]string, len(vs))
	for i, v := range vs {
		names[i] = string(v)
	}
	return strings.Join(names, ", ")
}

// String makes a transition readable in test failures.
func (t Transition) String() string {
	return fmt.Sprintf("%s --%s--> %s", t.From, t.Event, t.To)
}
