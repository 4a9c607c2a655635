package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/cmd/bmc/output"
)

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use: "explain SERVER", Short: "Say what a server is waiting for, and what can be done", Args: exactly("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			e, err := c.Servers.ExplainServer(cmd.Context(), &bmcv1.ExplainServerRequest{Ref: args[0]})
			if err != nil {
				return err
			}
			if a.format.Machine() {
				return output.One(a.out, a.format, e, nil, func(e *bmcv1.ExplainServerResponse) string { return target0(e.GetServer()) })
			}
			_, err = fmt.Fprint(a.out, explanation(e))
			return err
		},
	}
}

func explanation(e *bmcv1.ExplainServerResponse) string {
	var b strings.Builder
	s := e.GetServer()
	fmt.Fprintf(&b, "%s (%s in %s) is %s since %s\n", target0(s), s.GetName(), s.GetRack(), s.GetState(), when(s.GetStateSince()))
	if e.GetWaitingFor() != "" {
		fmt.Fprintf(&b, "  %s\n", e.GetWaitingFor())
	}
	fmt.Fprintf(&b, "power: %s", firstOf(s.GetPower().GetObserved(), "unknown"))
	if w := s.GetPower().GetWanted(); w != "" && w != s.GetPower().GetObserved() {
		fmt.Fprintf(&b, ", wanted %s", w)
	}
	if w := s.GetWatts(); w != nil {
		fmt.Fprintf(&b, ", draws %s", watts(w))
	}
	b.WriteString("\n")
	for _, c := range s.GetConditions() {
		fmt.Fprintf(&b, "condition: %s\n", strings.TrimSpace(c.GetName()+" since "+when(c.GetSince())+" "+c.GetMessage()))
	}
	if f := s.GetFailure(); f != nil {
		fmt.Fprintf(&b, "failed: %s (%s) at step %s, from %s\n", f.GetMessage(), f.GetReason(), f.GetStep(), f.GetFrom())
	}
	if op := e.GetOperation(); op != nil {
		fmt.Fprintf(&b, "operation: %s %s, %s, attempt %d\n", op.GetKind(), op.GetId(), op.GetState(), op.GetAttempt())
		writeSteps(&b, op)
	}
	for i, ev := range e.GetEvents() {
		if i == 0 {
			b.WriteString("events, newest first:\n")
		}
		fmt.Fprintf(&b, "  %s %s\n", when(ev.GetTime()), eventText(ev))
	}
	for i, n := range e.GetNext() {
		if i == 0 {
			b.WriteString("next:\n")
		}
		fmt.Fprintf(&b, "  %s\n", n)
	}
	return b.String()
}

func writeSteps(b *strings.Builder, op *bmcv1.Operation) {
	for _, st := range op.GetSteps() {
		took := ""
		if st.GetStarted() != nil && st.GetEnded() != nil {
			took = fmt.Sprintf("%.1f s", st.GetEnded().AsTime().Sub(st.GetStarted().AsTime()).Seconds())
		}
		line := fmt.Sprintf("  %-14s %-8s %8s  %s", st.GetName(), st.GetState(), took, st.GetMessage())
		b.WriteString(strings.TrimRight(line, " ") + "\n")
		for _, r := range st.GetRecovery() {
			fmt.Fprintf(b, "  %-14s recovery: %s\n", "", r)
		}
	}
}

func when(t *timestamppb.Timestamp) string {
	if t == nil || t.AsTime().IsZero() || t.GetSeconds() == 0 {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}
