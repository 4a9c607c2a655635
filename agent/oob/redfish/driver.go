// Package redfish is a bmclib driver for Redfish (DMTF DSP0266, DSP0268) with one kept
// session over one kept connection. It is registered in bmclib's registry by agent/oob;
// DESIGN.md there says why bmclib's own is not used. It offers on, off and soft;
// never a restart, whose lost reply would leave nobody knowing whether to send it again.
//
// A refusal is one of goipmi's errors, which agent/oob knows.
package redfish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/bmc-toolbox/bmclib/v2/providers"
	"github.com/jacobweinstock/registrar"

	"bmc/agent/oob/goipmi"
)

// Name and Protocol identify the driver in bmclib's registry.
const (
	Name     = "redfish"
	Protocol = "redfish"
)

// Features is what the driver implements, in bmclib's words.
var Features = registrar.Features{
	providers.FeaturePowerState,
	providers.FeaturePowerSet,
	providers.FeatureBootDeviceSet,
}

const (
	rootPath     = "/redfish/v1/"
	closeTimeout = 2 * time.Second
	// A boot override is read back until it is as wanted: some controllers need a
	// moment.
	readBack      = 4 // times
	readBackPause = 500 * time.Millisecond
	// Sessions that are read at most, one request each, when others are closed: as a
	// part of a session's opening. Controllers have room for 4 to 16.
	maxSessions = 32
)

// Config says which service to talk to.
type Config struct {
	Host     string // name or address, without port
	Port     int
	Username string
	Password string
	// Look is called right before each request that changes something; its
	// error keeps the request back. decisive: this one has the effect. May be nil.
	Look func(decisive bool) error
}

// Conn is one service's session. It is not safe for concurrent use.
type Conn struct {
	cfg      Config
	client   *client // nil without a session
	session  string  // its path; "" without a session service
	sessions string  // path of the collection
	system   string  // path
}

// New returns a driver without a session.
func New(cfg Config) *Conn { return &Conn{cfg: cfg} }

// Name implements bmclib's bmc.Provider.
func (c *Conn) Name() string { return Name }

type link struct {
	Path string `json:"@odata.id"`
}

type members struct {
	Members []link
}

// Open implements bmclib's bmc.Opener. A service with several systems is refused: which
// of them is meant nobody has said.
func (c *Conn) Open(ctx context.Context) error {
	if c.client != nil {
		return nil
	}
	cl := newClient(c.cfg)
	var root struct {
		Systems link
		Links   struct{ Sessions link }
	}
	_, err := cl.get(ctx, rootPath, &root)
	if err != nil {
		cl.http.CloseIdleConnections()
		return err
	}
	c.client, c.session, c.sessions = cl, "", root.Links.Sessions.Path
	if err = c.login(ctx); err == nil {
		err = c.find(ctx, root.Systems.Path)
	}
	if err != nil {
		_ = c.Close(ctx) // the first error is the one that counts
	}
	return err
}

// login makes a session, or has each request carry the password where the service knows
// no sessions.
func (c *Conn) login(ctx context.Context) error {
	if c.sessions == "" {
		c.client.basic = true
		return nil
	}
	r, err := c.client.do(ctx, http.MethodPost, c.sessions, nil, map[string]string{"UserName": c.cfg.Username, "Password": c.cfg.Password})
	switch code := statusOf(err); {
	case code == http.StatusNotFound, code == http.StatusMethodNotAllowed, code == http.StatusNotImplemented:
		c.sessions, c.client.basic = "", true
		return nil
	case code == http.StatusBadRequest && !errors.Is(err, goipmi.ErrBusy): // how some refuse a password
		return fmt.Errorf("%w: %w", goipmi.ErrAuth, err)
	case err != nil:
		return err
	}
	c.client.token = r.header.Get("X-Auth-Token")
	if at, err := url.Parse(r.header.Get("Location")); err == nil {
		c.session = at.Path // some tell a whole URL
	}
	if c.session == "" { // some have no such header: the body is the session
		var made link
		if err := json.Unmarshal(r.body, &made); err == nil {
			c.session = made.Path
		}
	}
	if c.client.token == "" {
		return fmt.Errorf("%w: it made a session without a token", goipmi.ErrRefused)
	}
	return nil
}

func (c *Conn) find(ctx context.Context, systems string) error {
	var list members
	if _, err := c.client.get(ctx, systems, &list); err != nil {
		return err
	}
	if n := len(list.Members); n != 1 {
		return fmt.Errorf("%w: it controls %d systems, and which one is not known", goipmi.ErrRefused, n)
	}
	c.system = list.Members[0].Path
	return nil
}

// Close implements bmclib's bmc.Closer. The session is closed on the controller even when
// ctx has ended, within two seconds.
func (c *Conn) Close(ctx context.Context) error {
	if c.client == nil {
		return nil
	}
	cl := c.client
	c.client = nil
	defer cl.http.CloseIdleConnections()
	if c.session == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_, err := cl.do(ctx, http.MethodDelete, c.session, nil, nil)
	return err
}

// computer is what is read of a ComputerSystem.
type computer struct {
	PowerState string
	ETag       string `json:"@odata.etag"`
	Boot       boot
	Actions    struct {
		Reset struct {
			Target  string   `json:"target"`
			Allowed []string `json:"ResetType@Redfish.AllowableValues"`
		} `json:"#ComputerSystem.Reset"`
	}
	Links struct{ Chassis []link }
}

type boot struct {
	Enabled string `json:"BootSourceOverrideEnabled"`
	Target  string `json:"BootSourceOverrideTarget"`
	Mode    string `json:"BootSourceOverrideMode,omitempty"`
}

func (c *Conn) read(ctx context.Context) (*computer, error) {
	if c.client == nil {
		return nil, goipmi.ErrClosed
	}
	s := &computer{}
	header, err := c.client.get(ctx, c.system, s)
	if err == nil && header.Get("ETag") != "" {
		s.ETag = header.Get("ETag")
	}
	return s, err
}

// PowerStateGet implements bmclib's bmc.PowerStateGetter, in Redfish's words.
func (c *Conn) PowerStateGet(ctx context.Context) (string, error) {
	s, err := c.read(ctx)
	if err != nil {
		return "", err
	}
	return s.PowerState, nil
}

// resets are the ways to have an effect, the first one that a service allows counts.
var resets = map[string][]string{
	"on":   {"On", "ForceOn"},
	"off":  {"ForceOff"},
	"soft": {"GracefulShutdown", button},
}

// button toggles.
const button = "PushPowerButton"

// PowerSet implements bmclib's bmc.PowerSetter for "on", "off" and "soft". The action is
// posted once; an error other than a refusal means its outcome is unknown and the state
// must be read.
func (c *Conn) PowerSet(ctx context.Context, state string) (bool, error) {
	ways := resets[state]
	if ways == nil {
		return false, fmt.Errorf("%w: no such power command %q", goipmi.ErrRefused, state)
	}
	s, err := c.read(ctx)
	if err != nil {
		return false, err
	}
	r := s.Actions.Reset
	if len(r.Allowed) > 0 { // else it does not say
		ways = slices.DeleteFunc(slices.Clone(ways), func(w string) bool { return !slices.Contains(r.Allowed, w) })
	}
	if r.Target == "" || len(ways) == 0 {
		return false, fmt.Errorf("%w: it knows no way to turn the system %s", goipmi.ErrRefused, state)
	}
	if ways[0] == button && s.PowerState != "On" { // it would turn on what is off by now
		return false, fmt.Errorf("%w: it has only a power button, and the system reads %q", goipmi.ErrBusy, s.PowerState)
	}
	_, err = c.client.send(ctx, c.look, http.MethodPost, r.Target, nil, map[string]string{"ResetType": ways[0]})
	return err == nil, err
}

// look is the last thing before a request that changes something.
func (c *Conn) look() error {
	if c.cfg.Look == nil {
		return nil
	}
	return c.cfg.Look(true)
}

// BootDeviceSet implements bmclib's bmc.BootDeviceSetter for "pxe" and "disk". What the
// service did not keep is ErrRefused. One that refuses the firmware's kind is asked
// without it.
func (c *Conn) BootDeviceSet(ctx context.Context, device string, persistent, efi bool) (bool, error) {
	want := boot{Enabled: "Once", Mode: "Legacy"}
	switch device {
	case "pxe":
		want.Target = "Pxe"
	case "disk":
		want.Target = "Hdd"
	default:
		return false, fmt.Errorf("%w: no such boot device %q", goipmi.ErrRefused, device)
	}
	if persistent {
		want.Enabled = "Continuous"
	}
	if efi {
		want.Mode = "UEFI"
	}
	err := c.patch(ctx, want)
	if errors.Is(err, goipmi.ErrRefused) {
		want.Mode = ""
		err = c.patch(ctx, want)
	}
	if err != nil {
		return false, err
	}
	return true, c.kept(ctx, want)
}

// patch sends the override; once more, when the system has changed meanwhile, and then
// without its entity tag: there are services that do not know the tags that they tell.
func (c *Conn) patch(ctx context.Context, want boot) error {
	refused := ""
	for try := 0; ; try++ {
		s, err := c.read(ctx)
		if err != nil {
			return err
		}
		header := http.Header{}
		tagged := s.ETag != "" && s.ETag != refused && try < 2
		if tagged {
			header.Set("If-Match", s.ETag)
		}
		_, err = c.client.send(ctx, c.look, http.MethodPatch, c.system, header, map[string]boot{"Boot": want})
		if statusOf(err) != http.StatusPreconditionFailed || !tagged {
			return err
		}
		refused = s.ETag
	}
}

// kept reads the override back.
func (c *Conn) kept(ctx context.Context, want boot) error {
	var got boot
	for n := range readBack {
		if n > 0 {
			select {
			case <-time.After(readBackPause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		s, err := c.read(ctx)
		if err != nil {
			return err
		}
		if got = s.Boot; got.Enabled == want.Enabled && got.Target == want.Target {
			return nil
		}
	}
	return fmt.Errorf("%w: the boot override reads %s %s after %s %s was set", goipmi.ErrRefused, got.Enabled, got.Target, want.Enabled, want.Target)
}

// Watts is what the machine's chassis draws now. A service that does not tell is ErrRefused.
func (c *Conn) Watts(ctx context.Context) (int, error) {
	s, err := c.read(ctx)
	if err != nil {
		return 0, err
	}
	for _, at := range s.Links.Chassis {
		var chassis struct{ Power link }
		if _, err := c.client.get(ctx, at.Path, &chassis); err != nil {
			return 0, err
		}
		if chassis.Power.Path == "" {
			continue
		}
		var power struct {
			PowerControl []struct{ PowerConsumedWatts *float64 }
		}
		if _, err := c.client.get(ctx, chassis.Power.Path, &power); err != nil {
			return 0, err
		}
		if p := power.PowerControl; len(p) > 0 && p[0].PowerConsumedWatts != nil {
			return int(*p[0].PowerConsumedWatts), nil
		}
	}
	return 0, fmt.Errorf("%w: it does not measure power", goipmi.ErrRefused)
}
