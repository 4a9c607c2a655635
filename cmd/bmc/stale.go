package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bmc/client"
)

// reading are the commands that take --allow-stale: those that only look.
var reading = []string{
	"list", "get", "explain", "power status", "events",
	"operation list", "operation get", "operation log", "key list", "image list", "image get", "size list", "size test",
	"inventory list", "inventory get", "inventory models", "rack list", "rack get", "agent list", "token list",
}

// staleFlag gives the reading commands the flag with which any node's replica answers.
func (a *app) staleFlag(root *cobra.Command) {
	for _, path := range reading {
		if cmd, _, err := root.Find(strings.Fields(path)); err == nil {
			cmd.Flags().BoolVar(&a.allowStale, "allow-stale", false, "answer from any node's replica, with or without a leader; says how old that may be")
		}
	}
}

// noteStale says how old the answers were, if one was stale.
func (a *app) noteStale() {
	if s, ok := a.client.Stale(); ok {
		a.note("%s", staleText(s))
	}
}

func staleText(s client.Staleness) string {
	from := "from a replica"
	if s.Revision != 0 {
		from = fmt.Sprintf("as of revision %d", s.Revision)
	}
	switch {
	case s.Never:
		return from + "; no leader was heard since the node started"
	case s.Age == 0:
		return from + "; the leader answered"
	case s.Age < 10*time.Second:
		return fmt.Sprintf("%s; a leader was last heard %.1fs ago", from, s.Age.Seconds())
	}
	return fmt.Sprintf("%s; a leader was last heard %s ago", from, s.Age.Round(time.Second))
}
