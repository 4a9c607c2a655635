package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/cmd/bmc/output"
)

var operationColumns = []output.Column[*bmcv1.Operation]{
	{Name: "ID", Value: (*bmcv1.Operation).GetId},
	{Name: "KIND", Value: (*bmcv1.Operation).GetKind},
	{Name: "TARGET", Value: (*bmcv1.Operation).GetTarget},
	{Name: "STATE", Value: (*bmcv1.Operation).GetState},
	{Name: "STEP", Value: (*bmcv1.Operation).GetStep},
	{Name: "CREATED", Value: func(o *bmcv1.Operation) string { return when(o.GetCreated()) }},
	{Name: "REASON", Value: func(o *bmcv1.Operation) string { return o.GetFailure().GetReason() }},
	{Name: "ENDED", Wide: true, Value: func(o *bmcv1.Operation) string { return when(o.GetEnded()) }},
	{Name: "ATTEMPT", Wide: true, Value: func(o *bmcv1.Operation) string { return fmt.Sprint(o.GetAttempt()) }},
	{Name: "BY", Wide: true, Value: (*bmcv1.Operation).GetPrincipal},
	{Name: "SERVER", Wide: true, Value: (*bmcv1.Operation).GetServerName},
}

func (a *app) printOperations(ops []*bmcv1.Operation) error {
	return output.List(a.out, a.format, ops, operationColumns, (*bmcv1.Operation).GetId)
}

func (a *app) operationCommand() *cobra.Command {
	req := &bmcv1.ListOperationsRequest{}
	list := &cobra.Command{Use: "list", Short: "List operations, newest first", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listOperations(cmd.Context(), req) }}
	list.Flags().StringVar(&req.Server, "server", "", "only of this server")
	list.Flags().StringVar(&req.State, "state", "", "pending, running, succeeded, failed, cancelled")
	get := &cobra.Command{Use: "get OPERATION", Short: "Show an operation", Args: exactly("OPERATION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			op, err := a.operation(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return output.One(a.out, a.format, op, operationColumns, (*bmcv1.Operation).GetId)
		}}
	log := &cobra.Command{Use: "log OPERATION", Short: "Show an operation's steps, their seconds and what went wrong", Args: exactly("OPERATION"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.operationLog(cmd.Context(), args[0]) }}
	watch := &cobra.Command{Use: "watch OPERATION", Short: "Follow an operation to its end", Args: exactly("OPERATION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			op, err := a.operation(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = a.follow(cmd.Context(), []*bmcv1.Operation{op})
			return err
		}}
	return group("operation", "Work under way or done", list, get, log, watch)
}

func (a *app) operation(ctx context.Context, id string) (*bmcv1.Operation, error) {
	c, err := a.api()
	if err != nil {
		return nil, err
	}
	return c.Operations.GetOperation(ctx, &bmcv1.GetOperationRequest{Id: id})
}

func (a *app) listOperations(ctx context.Context, req *bmcv1.ListOperationsRequest) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	var ops []*bmcv1.Operation
	for {
		page, err := c.Operations.ListOperations(ctx, req)
		if err != nil {
			return err
		}
		ops = append(ops, page.GetOperations()...)
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	return show(a, ops, operationColumns, (*bmcv1.Operation).GetId, "no operations")
}

func (a *app) operationLog(ctx context.Context, id string) error {
	op, err := a.operation(ctx, id)
	if err != nil {
		return err
	}
	if a.format.Machine() {
		return output.One(a.out, a.format, op, operationColumns, (*bmcv1.Operation).GetId)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s of %s (%s), asked for by %s at %s: %s, attempt %d\n", op.GetKind(), op.GetTarget(), op.GetServerName(),
		op.GetPrincipal(), when(op.GetCreated()), op.GetState(), op.GetAttempt())
	writeSteps(&b, op)
	if f := op.GetFailure(); f != nil {
		fmt.Fprintf(&b, "failed: %s (%s) at step %s\n", f.GetMessage(), f.GetReason(), f.GetStep())
		if f.GetHint() != "" {
			fmt.Fprintf(&b, "hint: %s\n", f.GetHint())
		}
	}
	_, err = fmt.Fprint(a.out, b.String())
	return err
}

var eventColumns = []output.Column[*bmcv1.Event]{
	{Name: "TIME", Value: func(e *bmcv1.Event) string { return when(e.GetTime()) }},
	{Name: "KIND", Value: (*bmcv1.Event).GetKind},
	{Name: "TARGET", Value: (*bmcv1.Event).GetTarget},
	{Name: "BY", Value: (*bmcv1.Event).GetPrincipal},
	{Name: "MESSAGE", Value: eventText},
	{Name: "REVISION", Wide: true, Value: func(e *bmcv1.Event) string { return fmt.Sprint(e.GetRevision()) }},
	{Name: "OPERATION", Wide: true, Value: (*bmcv1.Event).GetOperationId},
}

func eventText(e *bmcv1.Event) string {
	text := firstOf(e.GetMessage(), e.GetKind())
	if e.GetReason() != "" {
		text += " (" + e.GetReason() + ")"
	}
	return text
}

func (a *app) eventsCommand() *cobra.Command {
	var (
		follow bool
		since  time.Duration
		server string
	)
	cmd := &cobra.Command{Use: "events [SERVER]", Short: "What happened, oldest first", Args: atMost("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				server = args[0]
			}
			return a.events(cmd.Context(), server, since, follow)
		}}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens next")
	cmd.Flags().DurationVar(&since, "since", 0, "only the last hour, say: 1h")
	return cmd
}

func (a *app) events(ctx context.Context, server string, since time.Duration, follow bool) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	req := &bmcv1.ListEventsRequest{Server: server}
	if since > 0 {
		req.Since = timestamppb.New(time.Now().Add(-since))
	}
	var last, at uint64
	var index uint32
	for {
		page, err := c.Events.ListEvents(ctx, req)
		if err != nil {
			return err
		}
		for _, e := range page.GetEvents() {
			last, index = e.GetRevision(), e.GetIndex()
			if err := a.event(e); err != nil {
				return err
			}
		}
		at = page.GetRevision()
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if !follow {
		return nil
	}
	watch := &bmcv1.WatchRequest{Kinds: []string{"event"}, Server: server, AfterRevision: at, NoSnapshot: true}
	return c.Watch(ctx, watch, func(m *bmcv1.WatchResponse) error {
		e := m.GetEvent()
		if m.GetResync() {
			a.note("some events were missed; going on from now")
		}
		if e == nil || e.GetRevision() < last || (e.GetRevision() == last && e.GetIndex() <= index) {
			return nil
		}
		last, index = e.GetRevision(), e.GetIndex()
		return a.event(e)
	})
}

// event prints one event as a line, so that a stream can be read as it comes.
func (a *app) event(e *bmcv1.Event) error {
	if a.format.Machine() {
		f := a.format
		if f.JSON() {
			f, _ = output.Parse("jsonl", nil, "") //nolint:errcheck // a known format
		}
		return output.One(a.out, f, e, eventColumns, (*bmcv1.Event).GetKind)
	}
	_, err := fmt.Fprintf(a.out, "%s  %-20s %-14s %s\n", when(e.GetTime()), e.GetKind(), e.GetTarget(), eventText(e))
	return err
}
