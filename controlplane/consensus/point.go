package consensus

import (
	"github.com/hashicorp/raft"

	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/internal/failpoint"
)

// pointOf names a command in a failpoint: report_step/write-image/done.
func pointOf(c *logpb.Command) string {
	name := fsm.Name(c)
	if r := c.GetReportStep(); r != nil {
		name += "/" + r.GetStep() + "/" + r.GetPhase()
	}
	return name
}

// hitPropose hits a command's failpoint before it is proposed, or after it was
// applied and before that is known outside.
func hitPropose(c *logpb.Command, when string) error {
	if !failpoint.Enabled {
		return nil
	}
	return failpoint.Hit("controlplane/propose/" + pointOf(c) + "/" + when)
}

// hitStore hits the failpoints of a batch of log entries, before it is written
// or after it was synced.
func hitStore(logs []*raft.Log, when string) error {
	if !failpoint.Enabled {
		return nil
	}
	if err := failpoint.Hit("raft/log/" + when); err != nil {
		return err
	}
	for _, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		c, err := fsm.Decode(l.Data)
		if err != nil {
			continue // Apply stops the node for it
		}
		if err := failpoint.Hit("raft/log/" + pointOf(c) + "/" + when); err != nil {
			return err
		}
	}
	return nil
}
