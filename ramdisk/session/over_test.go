package session

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "bmc/api/agent/v1"
)

// A ramdisk whose operation has ended asks for more for ten minutes, then powers the
// machine off: its agent is sure that nothing will come. An answer in between, or an
// agent that does not know, ends nothing.
func TestOver(t *testing.T) {
	over := status.Error(codes.FailedPrecondition, "no operation is under way on this server")
	for name, tc := range map[string]struct {
		away  error
		after time.Duration // that have passed by the ramdisk's clock at each look
		ends  bool
		known int // refusals before
	}{
		"over":                {over, overFor, true, 0},
		"over, a moment only": {over, 0, false, 0},
		"nobody knows":        {status.Error(codes.Unavailable, "no operation is known yet"), overFor, false, 0},
		// Silence ends nothing, whatever was said before it.
		"over, then silence": {status.Error(codes.Unavailable, "connection refused"), overFor, false, overRefusals},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clock := &wall{at: time.Now()}
			a, s, _ := start(t, func(context.Context, *agentv1.Task, Progress) (*agentv1.CompleteTaskRequest, error) { return nil, nil })
			s.cfg.Now = func() time.Time { clock.pass(tc.after / overRefusals); return clock.now() }
			ctx := within(t, 30*time.Second)
			if err := s.Hello(ctx); err != nil {
				t.Fatal(err)
			}
			asking, stop := context.WithTimeout(ctx, 20*time.Second)
			defer stop()
			if !tc.ends {
				asking, stop = context.WithTimeout(ctx, 6*time.Second)
				defer stop()
			}
			a.Away(tc.away)
			s.refusals, s.since = tc.known, clock.now().Add(-overFor)
			end, err := s.Serve(asking)
			if tc.ends && (end != PowerOff || err != nil || s.refusals < overRefusals) {
				t.Errorf("ended %q, %v after %d refusals", end, err, s.refusals)
			}
			if !tc.ends && (end != "" || err == nil) {
				t.Errorf("ended %q, %v", end, err)
			}
		})
	}
}

// A result that nobody wants is told once; a call that is answered begins the count anew.
func TestOverForgets(t *testing.T) {
	over := status.Error(codes.FailedPrecondition, "no operation is under way on this server")
	a, s, _ := start(t, func(context.Context, *agentv1.Task, Progress) (*agentv1.CompleteTaskRequest, error) { return nil, nil })
	ctx := within(t, 20*time.Second)
	if err := s.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	s.refusals, s.since = 100, time.Now().Add(-time.Hour)
	a.Unwanted(over)
	a.Push(inspect("op/1/late"))
	a.Push(reboot("op/1/reboot"))
	if end, err := s.Serve(ctx); end != Reboot || err != nil {
		t.Fatalf("ended %q, %v", end, err)
	}
	if s.refusals != 0 || a.Deliveries("op/1/late") != 1 {
		t.Errorf("%d refusals, %d deliveries", s.refusals, a.Deliveries("op/1/late"))
	}
}
