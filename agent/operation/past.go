package operation

import (
	"time"

	"google.golang.org/protobuf/proto"

	"bmc/agent/boot"
	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// past is what an operation's journal says.
type past struct {
	done     map[metal.Step]*agentv1.ReportStepRequest
	failed   *agentv1.ReportStepRequest
	intents  map[string]time.Time // by step and act
	recovery map[metal.Step][]string
	boots    []boot.Event
	sequence uint64
	epoch    uint64 // of the last report; also that of another agent, if taken over
	former   former
	ended    bool
}

func newPast() past {
	return past{done: make(map[metal.Step]*agentv1.ReportStepRequest), intents: make(map[string]time.Time), recovery: make(map[metal.Step][]string)}
}

func replay(records []Record) past {
	p := newPast()
	for _, rec := range records {
		p.add(rec)
	}
	return p
}

func (p *past) add(rec Record) {
	switch rec.Kind {
	case RecordIntent:
		p.intents[string(rec.Step)+"/"+rec.Act] = rec.At
	case RecordRecovery:
		p.recovery[rec.Step] = append(p.recovery[rec.Step], rec.Text)
	case RecordReport:
		p.sequence, p.epoch = rec.Sequence, max(p.epoch, rec.Epoch)
	case RecordBoot:
		if rec.Boot != nil {
			p.boots = append(p.boots, *rec.Boot)
		}
	case RecordEnded:
		p.ended = true
	case RecordTaken:
		sequence := p.sequence
		*p = newPast()
		p.sequence, p.epoch, p.former = sequence, rec.Epoch, former{step: rec.Step, begun: rec.Begun, rungs: rec.Rungs}
	case RecordBegun:
	case RecordDone, RecordFailed:
		rep := &agentv1.ReportStepRequest{}
		if proto.Unmarshal(rec.Report, rep) != nil {
			return // the step runs again, and observes first
		}
		if rec.Kind == RecordFailed {
			p.failed = rep
		} else {
			p.done[rec.Step] = rep
		}
	}
}
