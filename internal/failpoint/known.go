package failpoint

import (
	"fmt"
	"strings"
)

// kinds are the points that there are; * is one name or more: a command of the log, a
// record of a journal, a command to a management controller.
var kinds = []string{
	"raft/log/before", "raft/log/after", "raft/log/*/before", "raft/log/*/after",
	"controlplane/propose/*/before", "controlplane/propose/*/after",
	"agent/journal/before", "agent/journal/after", "agent/journal/*/before", "agent/journal/*/after",
	"agent/oob/*/before", "agent/oob/*/after",
}

// CheckPoint refuses a point that no daemon has. It knows the kinds of points, not
// each command and step.
func CheckPoint(point string) error {
	for _, k := range kinds {
		head, end, some := strings.Cut(k, "*")
		if point == k && !some {
			return nil
		}
		if some && len(point) > len(head)+len(end) && strings.HasPrefix(point, head) && strings.HasSuffix(point, end) {
			return nil
		}
	}
	return fmt.Errorf("no daemon has the point %q; there are: %s", point, strings.Join(kinds, " "))
}
