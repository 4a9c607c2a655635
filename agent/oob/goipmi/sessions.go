package goipmi

import (
	"context"
	"errors"
	"fmt"

	"github.com/bougou/go-ipmi/pkg/command/app"
)

// ErrNoFence says that a controller does not let sessions be listed, or ended
// by somebody else than their owner. Both are optional in IPMI 2.0.
var ErrNoFence = errors.New("the controller does not end other sessions")

const (
	maxSessions = 63 // a count has six bits (IPMI 2.0, table 22-26)
	closeRounds = 2  // a session may come while the others are closed
)

// CloseOthers ends our user's other sessions at the controller: whatever their
// owners send from then on is refused. Sessions of other users stay. It returns
// how many were closed.
func (c *Conn) CloseOthers(ctx context.Context) (closed int, err error) {
	if c.session == nil {
		return 0, ErrClosed
	}
	for range closeRounds {
		others, err := c.others(ctx)
		if err != nil || len(others) == 0 {
			return closed, err
		}
		for _, handle := range others {
			err := c.ask(ctx, func(ctx context.Context) error {
				return c.exchange(ctx, &app.CloseSessionRequest{SessionHandle: handle}, &app.CloseSessionResponse{})
			})
			if err = tolerate(err); err != nil {
				return closed, err
			}
		}
		left, err := c.others(ctx)
		if err != nil {
			return closed, err
		}
		if closed += max(0, len(others)-len(left)); len(left) == 0 {
			return closed, nil
		}
	}
	return closed, ErrNoFence
}

// others lists the handles of our user's sessions beside this one. Section
// 22.20: index 0 is the asking session, N the Nth active one. Some controllers
// take N for a slot, and leave gaps.
func (c *Conn) others(ctx context.Context) ([]uint8, error) {
	own, err := c.sessionInfo(ctx, 0)
	if err != nil {
		return nil, err
	}
	if own.SessionHandle == 0 || own.UserID == 0 {
		return nil, fmt.Errorf("%w: it does not tell our own", ErrNoFence)
	}
	var out []uint8
	active := 0
	for n := 1; n <= min(int(own.PossibleActiveSessions), maxSessions) && active < int(own.CurrentActiveSessions); n++ {
		s, err := c.sessionInfo(ctx, uint8(n))
		if err != nil {
			return nil, err
		}
		if s.SessionHandle == 0 {
			continue
		}
		active++
		if s.SessionHandle != own.SessionHandle && s.UserID == own.UserID {
			out = append(out, s.SessionHandle)
		}
	}
	return out, nil
}

// sessionInfo takes a refusal of its index for ErrNoFence.
func (c *Conn) sessionInfo(ctx context.Context, index uint8) (*app.GetSessionInfoResponse, error) {
	info := &app.GetSessionInfoResponse{}
	err := c.ask(ctx, func(ctx context.Context) error {
		return c.exchange(ctx, &app.GetSessionInfoRequest{SessionIndex: index}, info)
	})
	if err = classify(err); errors.Is(err, ErrRefused) {
		return nil, fmt.Errorf("%w: %w", ErrNoFence, err)
	}
	return info, err
}
