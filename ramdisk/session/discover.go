package session

import (
	"context"
	"fmt"

	agentv1 "bmc/api/agent/v1"
)

// Discover tells the agent what this machine is, and returns how to leave. It
// repeats the same report until ctx ends or the agent refuses: it never gets a
// certificate, nor a task.
func (s *Session) Discover(ctx context.Context) (End, error) {
	req := &agentv1.DiscoverRequest{Mac: s.cfg.Seed.MAC, Token: s.cfg.Seed.Token, Hardware: s.cfg.Identity, Version: s.cfg.Version, BootId: s.cfg.BootID}
	for refusals := 0; ; {
		resp, err := s.discover(ctx, req)
		if err == nil {
			s.cfg.Log.Info("agent knows what this machine is", "outcome", resp.GetOutcome(), "name", resp.GetName())
			if resp.GetReboot() {
				return Reboot, nil
			}
			return PowerOff, nil
		}
		if refused(err) {
			if refusals++; refusals == helloRefusals {
				return PowerOff, fmt.Errorf("the agent refused the report: %w", err)
			}
		}
		s.cfg.Log.Info("no answer to the report yet", "addr", s.cfg.Seed.Agent, "err", brief(err))
		if !s.pause(ctx) {
			return PowerOff, fmt.Errorf("no answer to the report from %s: %w", s.cfg.Seed.Agent, err)
		}
	}
}

func (s *Session) discover(ctx context.Context, req *agentv1.DiscoverRequest) (*agentv1.DiscoverResponse, error) {
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callFor)
	defer cancel()
	resp, err := s.client.Discover(ctx, req)
	if err != nil {
		s.Close()
	}
	return resp, err
}
