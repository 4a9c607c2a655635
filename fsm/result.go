package fsm

import "bmc/metal"

// Result is what Apply returns to the proposer.
type Result struct {
	Revision    uint64       // the command's index; for a replay, that of the first run
	Err         *metal.Error // a refused business rule; nil when accepted
	Value       any          // documented at each command in logpb; nil when refused
	ID          string       // of what was made or changed
	OperationID string       // that was started or continued
	Replayed    bool         // the request ID was known: nothing was done again
}

// Applied is one object of an ApplyInventory command.
type Applied struct {
	Kind        string // rack, size, server
	Name        string
	ID          string
	Change      string // created, updated, unchanged, enrolled
	OperationID string // the enrolment that it started
}

// What Applied.Change says.
const (
	Created   = "created"
	Updated   = "updated"
	Unchanged = "unchanged"
	Enrolled  = "enrolled" // a discovered machine became this server
)
