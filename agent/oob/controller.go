package oob

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	bmclib "github.com/bmc-toolbox/bmclib/v2"
	"github.com/go-logr/logr"
	"github.com/jacobweinstock/registrar"

	"bmc/agent/oob/goipmi"
	"bmc/agent/oob/redfish"
	"bmc/metal"
)

const (
	readAttempts = 3
	closeTimeout = 5 * time.Second
	// idleLimit is shorter than the 60 s after which a controller forgets a
	// session (IPMI 2.0 section 6.12.15): asking on a forgotten one would cost
	// a whole timeout.
	idleLimit = 45 * time.Second
)

// controller implements Controller on a bmclib client with one driver.
type controller struct {
	cfg    Config
	timing Timing
	turn   chan struct{}  // one command at a time; a mutex that honours contexts
	hub    *goipmi.Hub    // nil: a socket of its own
	client *bmclib.Client // open session, or nil; held by turn
	former *controller    // of this address, with other credentials; nil once it is closed; held by turn
	used   time.Time      // when the session was last used; held by turn

	// Of the lease; held by turn, too.
	epoch      uint64 // of the call that has the turn, and of its session
	taken      bool   // other sessions were closed, under takenEpoch
	takenEpoch uint64
	unfenced   bool   // the controller cannot close them; it was said
	command    string // under way, for failpoints
	failed     failed // of sweeps
	paused     func() // of tests: between look and send
}

func newController(cfg Config) *controller {
	cfg = cfg.withDefaults()
	return &controller{cfg: cfg, timing: cfg.Timing.withDefaults(cfg.Protocol), turn: make(chan struct{}, 1)}
}

func (c *controller) lock(ctx context.Context) error {
	if err := ctx.Err(); err != nil { // select would take a free turn as well
		return err
	}
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *controller) unlock() { <-c.turn }

// Power implements Controller.
func (c *controller) Power(ctx context.Context) (metal.Power, error) {
	if err := c.enter(ctx); err != nil {
		return metal.PowerUnknown, c.fail("tell the power state", err)
	}
	defer c.unlock()
	return c.power(ctx)
}

// power reads with the turn held. A read that fails is repeated on a fresh
// session: the controller may have restarted and forgotten ours.
func (c *controller) power(ctx context.Context) (metal.Power, error) {
	var lastErr error
	for attempt := range readAttempts {
		if attempt > 0 {
			if err := pause(ctx, c.timing.PollMin<<attempt); err != nil {
				break
			}
		}
		state, err := c.readPower(ctx)
		if err == nil {
			return state, nil
		}
		lastErr = err
		c.drop(ctx)
		if final(err) || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil && !errors.Is(lastErr, ErrLease) {
		lastErr = ctx.Err()
	}
	return metal.PowerUnknown, c.fail("tell the power state", lastErr)
}

func (c *controller) readPower(ctx context.Context) (metal.Power, error) {
	if err := c.open(ctx); err != nil {
		return metal.PowerUnknown, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timing.Read)
	defer cancel()
	state, err := c.client.GetPowerState(ctx)
	if err != nil {
		return metal.PowerUnknown, err
	}
	return parsePower(state)
}

// SetPower implements Controller. Accepted is not done: it reads until the
// state is as wanted. Off must read so twice, since controllers are known to
// say off while the supply still stands.
func (c *controller) SetPower(ctx context.Context, wanted metal.Power) error {
	if wanted != metal.PowerOn && wanted != metal.PowerOff {
		return c.fail("set power "+string(wanted), goipmi.ErrRefused)
	}
	doing := "turn " + string(wanted)
	ctx, cancel := context.WithTimeout(ctx, c.timing.Settle)
	defer cancel()
	if err := c.enter(ctx); err != nil {
		return c.fail(doing, err)
	}
	defer c.unlock()

	var acted time.Time
	var lastErr error
	matches, need := 0, 1
	differs := false // it accepted, and read otherwise since
	if wanted == metal.PowerOff {
		need = 2
	}
	for delay := c.timing.PollMin; ; delay = min(2*delay, c.timing.PollMax) {
		state, err := c.power(ctx)
		switch {
		case errors.Is(err, ErrLease):
			return err
		case err != nil:
			if ctx.Err() != nil && differs { // time ran out amid a reading: the one before counts
				return c.settled(ctx, wanted, lastErr)
			}
			if metal.CodeOf(err) == metal.CodeOOBAuth || ctx.Err() != nil {
				return c.settled(ctx, wanted, firstOf(lastErr, err))
			}
			lastErr, matches = err, 0
		case state == wanted:
			if matches++; matches >= need {
				return nil
			}
			delay = c.timing.PollMin
		default:
			matches, differs = 0, !acted.IsZero()
			if acted.IsZero() || time.Since(acted) >= c.timing.ActAgain {
				acted = time.Now()
				lastErr = c.act(ctx, string(wanted))
				if errors.Is(lastErr, goipmi.ErrRefused) || errors.Is(lastErr, ErrLease) {
					return c.fail(doing, lastErr)
				}
				delay = c.timing.PollMin
			}
		}
		if err := pause(ctx, delay); err != nil {
			return c.settled(ctx, wanted, lastErr)
		}
	}
}

// settled is the error of a SetPower that ran out of time or was stopped.
func (c *controller) settled(ctx context.Context, wanted metal.Power, lastErr error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return c.fail("turn "+string(wanted), ctx.Err())
	}
	if lastErr != nil {
		return c.fail("turn "+string(wanted), lastErr)
	}
	return metal.Errorf(metal.CodeOOBRefused, "%s accepted power %s, but it still does not read so after %s", c.cfg, wanted, c.timing.Settle)
}

// act sends one power command, once.
func (c *controller) act(ctx context.Context, state string) error {
	if err := c.open(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timing.Act)
	defer cancel()
	return c.send(powerCommand(state), func() error {
		_, err := c.client.SetPowerState(ctx, state)
		return err
	})
}

// SoftOff implements Controller. A lost answer is not asked for again: the
// caller reads the power state anyway.
func (c *controller) SoftOff(ctx context.Context) error {
	if err := c.enter(ctx); err != nil {
		return c.fail("shut down", err)
	}
	defer c.unlock()
	state, err := c.power(ctx) // also proves the session
	if err != nil || state == metal.PowerOff {
		return err
	}
	return c.fail("shut down", c.act(ctx, "soft"))
}

// SetBootDevice implements Controller. Setting it again has no effect, so a
// lost answer is asked for again.
func (c *controller) SetBootDevice(ctx context.Context, device string, persistent, efi bool) error {
	doing := "set the boot device to " + device
	if err := c.enter(ctx); err != nil {
		return c.fail(doing, err)
	}
	defer c.unlock()
	var lastErr error
	for attempt := range readAttempts {
		if attempt > 0 {
			if err := pause(ctx, c.timing.PollMin<<attempt); err != nil {
				break
			}
		}
		lastErr = c.setBootDevice(ctx, device, persistent, efi)
		if lastErr == nil || errors.Is(lastErr, goipmi.ErrRefused) || final(lastErr) {
			break
		}
		c.drop(ctx)
	}
	return c.fail(doing, lastErr)
}

func (c *controller) setBootDevice(ctx context.Context, device string, persistent, efi bool) error {
	if err := c.open(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timing.Dialog)
	defer cancel()
	return c.send(commandBoot, func() error {
		_, err := c.client.SetBootDevice(ctx, device, persistent, efi)
		return err
	})
}

// meter is a driver that can tell what the machine draws.
type meter interface {
	Watts(ctx context.Context) (int, error)
}

// Watts implements Meter.
func (c *controller) Watts(ctx context.Context) (int, bool, error) {
	const doing = "tell what the machine draws"
	if err := c.enter(ctx); err != nil {
		return 0, false, c.fail(doing, err)
	}
	defer c.unlock()
	if _, err := c.power(ctx); err != nil { // also proves the session
		return 0, false, err
	}
	m, ok := c.client.Registry.Drivers[0].DriverInterface.(meter)
	if !ok {
		return 0, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.timing.Read)
	defer cancel()
	watts, err := m.Watts(ctx)
	if errors.Is(err, goipmi.ErrRefused) {
		return 0, false, nil
	}
	return watts, err == nil, c.fail(doing, err)
}

// final says that another try would only meet the same.
func final(err error) bool {
	return codeOf(err) == metal.CodeOOBAuth || errors.Is(err, ErrLease)
}

// Close implements Controller.
func (c *controller) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout+c.timing.Act)
	defer cancel()
	if err := c.lock(ctx); err != nil {
		return c.fail("log out", err)
	}
	defer c.unlock()
	c.drop(ctx)
	c.closeFormer(ctx)
	return nil
}

func (c *controller) closeFormer(ctx context.Context) {
	if c.former != nil {
		_ = c.former.Close(ctx) // its session would end by itself
		c.former = nil
	}
}

// open makes sure that a session stands, with the turn held; without the lease
// none is opened. bmclib forgets its driver after a failed Open, so each one
// gets a client of its own.
func (c *controller) open(ctx context.Context) error {
	if err := c.allowed(); err != nil {
		return err
	}
	idle := time.Since(c.used)
	c.used = time.Now()
	if c.client != nil && idle < idleLimit {
		return nil
	}
	c.drop(ctx)
	c.closeFormer(ctx)
	cl, err := c.newClient()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timing.Dialog)
	defer cancel()
	if err := cl.Open(ctx); err != nil {
		return err
	}
	c.client, c.failed = cl, failed{}
	if err := c.takeOver(ctx); err != nil {
		c.drop(ctx)
		return err
	}
	return c.allowed()
}

// drop closes the session, if one stands, even when ctx has ended. The error
// of a logout changes nothing: the controller ends idle sessions by itself.
func (c *controller) drop(ctx context.Context) {
	if c.client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = c.client.Close(ctx)
	c.client = nil
}

// newClient builds a bmclib client that knows one driver.
func (c *controller) newClient() (*bmclib.Client, error) {
	host, port, err := split(c.cfg.Address, c.cfg.Protocol)
	if err != nil {
		return nil, err
	}
	opts := []bmclib.Option{
		bmclib.WithLogger(logr.Discard()),
		bmclib.WithPerProviderTimeout(max(c.timing.Act, c.timing.Read, c.timing.Dialog)),
	}
	switch c.cfg.Protocol {
	case ProtocolIPMI:
		reg := registrar.NewRegistry()
		reg.Register(goipmi.Name, goipmi.Protocol, goipmi.Features, nil, goipmi.New(goipmi.Config{
			Host: host, Port: port, Username: c.cfg.Username, Password: c.cfg.Password, CipherSuite: c.cfg.CipherSuite,
			Wait: c.timing.Wait, Look: c.look, Hub: c.hub,
		}))
		return bmclib.NewClient(host, c.cfg.Username, c.cfg.Password, append(opts, bmclib.WithRegistry(reg))...), nil
	case ProtocolIpmitool:
		opts = append(opts, bmclib.WithIpmitoolPort(strconv.Itoa(port)), bmclib.WithIpmitoolPath(c.cfg.Ipmitool))
		if c.cfg.CipherSuite > 0 {
			opts = append(opts, bmclib.WithIpmitoolCipherSuite(strconv.Itoa(c.cfg.CipherSuite)))
		}
		return only(bmclib.NewClient(host, c.cfg.Username, c.cfg.Password, opts...), "ipmitool")
	case ProtocolRedfish:
		reg := registrar.NewRegistry()
		reg.Register(redfish.Name, redfish.Protocol, redfish.Features, nil, redfish.New(redfish.Config{
			Host: host, Port: port, Username: c.cfg.Username, Password: c.cfg.Password, Look: c.look,
		}))
		return bmclib.NewClient(host, c.cfg.Username, c.cfg.Password, append(opts, bmclib.WithRegistry(reg))...), nil
	}
	return nil, metal.Invalid("oob.protocol", "%q is not one of ipmi, ipmitool, redfish", c.cfg.Protocol)
}

// only leaves one driver in a client's registry.
func only(cl *bmclib.Client, driver string) (*bmclib.Client, error) {
	cl.Registry.Drivers = cl.Registry.For(driver)
	if len(cl.Registry.Drivers) != 1 {
		return nil, metal.Errorf(metal.CodeOOBUnreachable, "this agent has no %s driver: is the program installed?", driver)
	}
	return cl, nil
}

func parsePower(state string) (metal.Power, error) {
	switch strings.TrimPrefix(strings.TrimSpace(state), "Chassis Power is ") {
	case "on", "On":
		return metal.PowerOn, nil
	case "off", "Off":
		return metal.PowerOff, nil
	case "PoweringOn", "PoweringOff", "Paused": // Redfish: on its way
		return metal.PowerUnknown, nil
	}
	return metal.PowerUnknown, fmt.Errorf("unknown power state %q", state)
}

// pause waits for d, give or take a quarter, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d*3/4 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
