package redfish

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"bmc/agent/oob/goipmi"
)

// CloseOthers ends our user's other sessions at the controller: whatever their owners
// send from then on is refused. It returns how many were closed.
func (c *Conn) CloseOthers(ctx context.Context) (closed int, err error) {
	if c.client == nil {
		return 0, goipmi.ErrClosed
	}
	if c.session == "" {
		return 0, fmt.Errorf("%w: it has no sessions", goipmi.ErrNoFence)
	}
	strangers := map[string]bool{}
	others, err := c.others(ctx, strangers)
	for _, path := range others {
		_, err := c.client.do(ctx, http.MethodDelete, path, nil, nil)
		if err != nil && statusOf(err) != http.StatusNotFound { // gone by itself
			return closed, unfenced(err)
		}
		closed++
	}
	if err != nil || closed == 0 {
		return closed, unfenced(err)
	}
	left, err := c.others(ctx, strangers)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%w: %d sessions are still there", goipmi.ErrNoFence, len(left))
	}
	return closed, unfenced(err)
}

// unfenced takes a refusal for ErrNoFence.
func unfenced(err error) error {
	if errors.Is(err, goipmi.ErrRefused) || errors.Is(err, goipmi.ErrAuth) {
		return fmt.Errorf("%w: %w", goipmi.ErrNoFence, err)
	}
	return err
}

// others lists our user's sessions beside this one; strangers are those of other users,
// which it adds to and does not read again. The collection must name this one: else it is
// not of the sessions that count. Of more than are read it returns some, and ErrNoFence.
func (c *Conn) others(ctx context.Context, strangers map[string]bool) ([]string, error) {
	var list members
	if _, err := c.client.get(ctx, c.sessions, &list); err != nil {
		return nil, err
	}
	own := func(m link) bool { return strings.TrimSuffix(m.Path, "/") == strings.TrimSuffix(c.session, "/") }
	if !slices.ContainsFunc(list.Members, own) {
		return nil, fmt.Errorf("%w: it does not list our own session", goipmi.ErrNoFence)
	}
	unknown := slices.DeleteFunc(list.Members, func(m link) bool { return own(m) || strangers[m.Path] })
	var out []string
	for n, m := range unknown {
		if n == maxSessions {
			return out, fmt.Errorf("%w: it lists %d other sessions, and %d are looked at", goipmi.ErrNoFence, len(unknown), maxSessions)
		}
		var s struct{ UserName string }
		_, err := c.client.get(ctx, m.Path, &s)
		switch {
		case statusOf(err) == http.StatusNotFound: // ended since
		case err != nil:
			return nil, err
		case s.UserName == c.cfg.Username:
			out = append(out, m.Path)
		default:
			strangers[m.Path] = true
		}
	}
	return out, nil
}
