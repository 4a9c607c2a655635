package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

func (a *app) waitCommand() *cobra.Command {
	var condition string
	cmd := &cobra.Command{
		Use: "wait SERVER --for state=running", Short: "Wait until a server is as wanted", Args: exactly("SERVER"),
		Long: "Waits for state=STATE (a tenant's or an operator's word), power=on|off, or condition=NAME.",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, want, ok := strings.Cut(condition, "=")
			check, known := waitChecks[key]
			if !ok || !known || want == "" {
				return usage(cmd, "--for wants state=…, power=… or condition=…")
			}
			return a.waitServer(cmd.Context(), args[0], condition, func(s *bmcv1.Server) (bool, error) {
				if check(s, want) {
					return true, nil
				}
				if s.GetState() == string(metal.StateFailed) {
					f := s.GetFailure()
					return false, operationFailed{&bmcv1.Operation{Kind: "wait", Target: target0(s), State: "failed", Failure: f}}
				}
				return false, nil
			})
		},
	}
	cmd.Flags().StringVar(&condition, "for", "state=running", "what to wait for")
	return cmd
}

var waitChecks = map[string]func(s *bmcv1.Server, want string) bool{
	"state": func(s *bmcv1.Server, want string) bool { return s.GetState() == want || s.GetStatus() == want },
	"power": func(s *bmcv1.Server, want string) bool { return s.GetPower().GetObserved() == want },
	"condition": func(s *bmcv1.Server, want string) bool {
		for _, c := range s.GetConditions() {
			if c.GetName() == want {
				return true
			}
		}
		return false
	},
}

// waitServer watches a server until cond holds.
func (a *app) waitServer(ctx context.Context, ref string, what string, cond func(*bmcv1.Server) (bool, error)) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	s, err := c.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: ref})
	if err != nil {
		return err
	}
	wctx := ctx
	if a.timeout > 0 {
		var cancel context.CancelFunc
		wctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	done := errors.New("done")
	err = c.Watch(wctx, &bmcv1.WatchRequest{Kinds: []string{"server"}, Server: s.GetId()}, func(m *bmcv1.WatchResponse) error {
		if m.GetRemoved().GetId() == s.GetId() {
			return metal.Errorf(metal.CodeNotFound, "%s is gone, or no longer yours: it will not be %s", ref, what).WithHint("bmc list")
		}
		if m.GetServer() == nil || m.GetServer().GetId() != s.GetId() {
			return nil
		}
		ok, err := cond(m.GetServer())
		if err != nil {
			return err
		}
		if ok {
			return done
		}
		return nil
	})
	switch {
	case errors.Is(err, done):
		return nil
	case timeIsUp(wctx) && ctx.Err() == nil:
		return errWaitTimeout{what: fmt.Sprintf("%s to be %s", ref, what), resume: "bmc explain " + ref}
	}
	return err
}
