package operation

import (
	"bmc/internal/failpoint"
	"bmc/metal"
)

// pointOf names a record in a failpoint: deploy/write-image/report-done.
func pointOf(kind metal.OperationKind, rec Record) string {
	name := string(kind) + "/" + string(rec.Step) + "/" + string(rec.Kind)
	switch {
	case rec.Kind == RecordIntent:
		name += "-" + rec.Act
	case rec.Kind == RecordReport:
		name += "-" + rec.Text
	case rec.Kind == RecordBoot && rec.Boot != nil:
		name += "-" + string(rec.Boot.Kind)
	}
	return name
}

// hitJournal hits a record's failpoints, before it is written or after it was
// synced.
func hitJournal(kind metal.OperationKind, rec Record, when string) error {
	if !failpoint.Enabled {
		return nil
	}
	if err := failpoint.Hit("agent/journal/" + when); err != nil {
		return err
	}
	return failpoint.Hit("agent/journal/" + pointOf(kind, rec) + "/" + when)
}
