// Package oob drives servers' management controllers, out of band: power and
// boot device. There is one implementation, a bmclib client with exactly one
// driver chosen (ours on go-ipmi, ours for Redfish, or bmclib's ipmitool), because
// bmclib repeats a failed action on the next driver it holds.
package oob

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"time"

	"bmc/metal"
)

// The protocols of Config.
const (
	ProtocolIPMI     = "ipmi"     // our driver: a kept session, no process
	ProtocolIpmitool = "ipmitool" // a process per call
	ProtocolRedfish  = "redfish"
)

// Boot devices of SetBootDevice.
const (
	DevicePXE  = "pxe"
	DeviceDisk = "disk"
)

// Controller is one server's management controller. It is safe for concurrent
// use and holds at most one command session. Every call is bounded, whatever
// its context, and fails with a *metal.Error: OOB_UNREACHABLE, OOB_AUTH,
// OOB_REFUSED, or STALE_EPOCH around ErrLease.
type Controller interface {
	// Power reads the state; lost answers are asked for again.
	Power(ctx context.Context) (metal.Power, error)
	// SetPower turns the server on or off and returns when it reads so, within
	// two minutes. A server that already reads as wanted is left alone.
	SetPower(ctx context.Context, wanted metal.Power) error
	// SoftOff asks the operating system to shut down and does not wait for it.
	SoftOff(ctx context.Context) error
	// SetBootDevice chooses what the next boot, or every boot, starts from.
	// A controller that cannot keep it answers OOB_REFUSED.
	SetBootDevice(ctx context.Context, device string, persistent, efi bool) error
	// Close ends the session; the next call opens another.
	Close(ctx context.Context) error
}

// Meter is a Controller that can tell what its machine draws: those of Pool and
// Dial are.
type Meter interface {
	// Watts reads it; ok is false where the controller does not measure it, which
	// is no error: DCMI is optional, so is Redfish's Power, and ipmitool is not asked.
	Watts(ctx context.Context) (watts int, ok bool, err error)
}

// Config says how to reach a controller. It never shows its password.
type Config struct {
	Server      string // the server's name, for messages
	Protocol    string // "" means ProtocolIPMI
	Address     string // host or host:port
	Username    string
	Password    string
	CipherSuite int    // IPMI; 0: 17, then 3
	Ipmitool    string // path of the program; "" looks in PATH
	Timing      Timing
	Lease       Lease        // nil: nobody else uses the controller
	Log         *slog.Logger // nil: nowhere
}

func (c Config) withDefaults() Config {
	if c.Protocol == "" {
		c.Protocol = ProtocolIPMI
	}
	if c.Log == nil {
		c.Log = silent
	}
	return c
}

var silent = slog.New(slog.DiscardHandler)

// Timing bounds a controller's calls; zero fields take the defaults.
type Timing struct {
	Wait     time.Duration // IPMI: for an answer before it is asked for again; 1 s, then growing
	Read     time.Duration // one reading, asked for again and again; 10 s (a process: 15 s)
	Act      time.Duration // one command; 8 s (a process: 20 s)
	Dialog   time.Duration // several in a row: a session's opening, a boot device; 20 s
	Settle   time.Duration // SetPower altogether; 2 min
	PollMin  time.Duration // first pause between two reads; 250 ms
	PollMax  time.Duration // longest pause; 5 s
	ActAgain time.Duration // send on or off again when nothing changed for so long; 20 s
}

func (t Timing) withDefaults(protocol string) Timing {
	read, act := 10*time.Second, 8*time.Second
	if protocol != ProtocolIPMI {
		read, act = 15*time.Second, 20*time.Second
	}
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.Wait, time.Second)
	set(&t.Read, read)
	set(&t.Act, act)
	set(&t.Dialog, 20*time.Second)
	set(&t.Settle, 2*time.Minute)
	set(&t.PollMin, 250*time.Millisecond)
	set(&t.PollMax, 5*time.Second)
	set(&t.ActAgain, 20*time.Second)
	return t
}

// LogValue keeps the credentials out of logs.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(slog.String("server", c.Server), slog.String("protocol", c.Protocol), slog.String("addr", c.Address))
}

// String keeps the credentials out of formatted output.
func (c Config) String() string {
	return "management controller " + c.Address + " of " + c.Server
}

// GoString keeps the credentials out of %#v.
func (c Config) GoString() string { return "oob.Config(" + c.String() + ")" }

// Dial returns a controller whose session is open, proving address and
// credentials. The caller closes it.
func Dial(ctx context.Context, cfg Config) (Controller, error) {
	c := newController(cfg)
	if _, err := c.Power(ctx); err != nil {
		_ = c.Close(ctx) // the first error is the one to tell
		return nil, err
	}
	return c, nil
}

// split returns host and port of an address, with the protocol's port by default.
func split(address, protocol string) (host string, port int, err error) {
	def := 623
	if protocol == ProtocolRedfish {
		def = 443
	}
	if net.ParseIP(address) != nil {
		return address, def, nil
	}
	h, p, err := net.SplitHostPort(address)
	if err != nil {
		return address, def, nil //nolint:nilerr // no port in it
	}
	port, err = strconv.Atoi(p)
	return h, port, err
}
