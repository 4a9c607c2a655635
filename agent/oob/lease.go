package oob

import (
	"context"
	"errors"
	"fmt"

	"bmc/agent/oob/goipmi"
	"bmc/internal/failpoint"
	"bmc/internal/mutant"
	"bmc/metal"
)

// ErrLease says that the right to use a controller ended before, or in the
// middle of, a call. What was sent may have had its effect or not: observe.
var ErrLease = errors.New("the rack's lease is not held, or no longer")

// Lease is the right to use the controllers of a rack, which another agent may
// get once it has run out. Two leases are the same when they are equal (==).
type Lease interface {
	// Held says whether it is held now, and under which epoch. Epochs rise: a
	// new one says that somebody else may have been at the controllers.
	Held() (epoch uint64, ok bool)
}

// fence is a driver that can end what former holders of a lease left open.
type fence interface {
	// CloseOthers ends our user's other sessions, and says how many.
	CloseOthers(ctx context.Context) (int, error)
}

// enter begins a call, with the turn held: all of it happens under the epoch of
// this moment. A session from under an older one is not used any more: while
// the lease was away, others have changed what was read on it.
func (c *controller) enter(ctx context.Context) error {
	if err := c.lock(ctx); err != nil {
		return err
	}
	if err := c.begin(ctx); err != nil {
		c.unlock()
		return err
	}
	return nil
}

func (c *controller) begin(ctx context.Context) error {
	if c.cfg.Lease == nil || mutant.On("no-lease-look") {
		return nil
	}
	epoch, ok := c.cfg.Lease.Held()
	if !ok {
		return ErrLease
	}
	if epoch != c.epoch {
		c.drop(ctx)
		c.epoch = epoch
	}
	return nil
}

// allowed looks at the lease again.
func (c *controller) allowed() error {
	if c.cfg.Lease == nil || mutant.On("no-lease-look") {
		return nil
	}
	if epoch, ok := c.cfg.Lease.Held(); !ok || epoch != c.epoch {
		return ErrLease
	}
	return nil
}

// takeOver is the first thing that is done on the first session under an epoch.
// An agent that was stopped between its look at the lease and its send finds
// its session gone when it goes on. What its commands did before is then read.
func (c *controller) takeOver(ctx context.Context) error {
	if c.cfg.Lease == nil || c.taken && c.takenEpoch == c.epoch {
		return nil
	}
	if mutant.On("leave-sessions") {
		c.taken, c.takenEpoch = true, c.epoch
		return nil
	}
	if err := c.closeOthers(ctx); err != nil {
		return err
	}
	if err := c.allowed(); err != nil {
		return err
	}
	if _, err := c.client.GetPowerState(ctx); err != nil {
		return err
	}
	c.taken, c.takenEpoch = true, c.epoch
	return nil
}

// closeOthers says once where a controller cannot do it: there the look at the
// lease before each command is all that keeps a former holder from acting.
func (c *controller) closeOthers(ctx context.Context) error {
	err := goipmi.ErrNoFence
	closed := 0
	if f, ok := c.client.Registry.Drivers[0].DriverInterface.(fence); ok {
		closed, err = f.CloseOthers(ctx)
	}
	switch {
	case errors.Is(err, goipmi.ErrNoFence):
		if !c.unfenced {
			c.unfenced = true
			c.cfg.Log.Warn("controller does not end other sessions: the lease alone guards it", "oob", c.cfg, "err", err)
		}
		return nil
	case err != nil:
		return err
	case closed > 0:
		c.cfg.Log.Info("other sessions closed at a controller", "oob", c.cfg, "sessions", closed, "epoch", c.epoch)
	}
	return nil
}

// The commands that failpoints name: agent/oob/<command>/before, between the
// look at the lease and the send, and /after it.
const (
	commandOn   = "power-on"
	commandOff  = "power-off"
	commandSoft = "soft-off"
	commandBoot = "boot-device"
)

func powerCommand(state string) string {
	switch state {
	case string(metal.PowerOn):
		return commandOn
	case string(metal.PowerOff):
		return commandOff
	}
	return commandSoft
}

// look is the last thing before a request is sent that changes something.
func (c *controller) look(decisive bool) error {
	if err := c.allowed(); err != nil {
		return err
	}
	if failpoint.Enabled && decisive {
		if err := failpoint.Hit("agent/oob/" + c.command + "/before"); err != nil {
			return err
		}
	}
	if c.paused != nil && decisive {
		c.paused()
	}
	return nil
}

// send runs a driver's command, which looks at the lease itself where it is
// ours; for the others that happens here.
func (c *controller) send(command string, f func() error) error {
	c.command = command
	if c.cfg.Protocol == ProtocolIpmitool {
		if err := c.look(true); err != nil {
			return err
		}
	}
	err := f()
	if err != nil && c.allowed() != nil && !errors.Is(err, ErrLease) {
		return fmt.Errorf("%w: %w", ErrLease, err) // our session may have been closed
	}
	if failpoint.Enabled && err == nil {
		err = failpoint.Hit("agent/oob/" + command + "/after")
	}
	return err
}
