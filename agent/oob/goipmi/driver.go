// Package goipmi is a bmclib driver on bougou/go-ipmi: IPMI 2.0 over RMCP+ with
// one kept session and no helper process. It is registered in bmclib's registry
// by agent/oob and offers on, off and soft; never cycle or reset, whose lost
// reply would leave nobody knowing whether to send it again.
package goipmi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/bmc-toolbox/bmclib/v2/providers"
	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/app"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"
	"github.com/jacobweinstock/registrar"
)

// Name and Protocol identify the driver in bmclib's registry.
const (
	Name     = "goipmi"
	Protocol = "ipmi"
)

// Features is what the driver implements, in bmclib's words.
var Features = registrar.Features{
	providers.FeaturePowerState,
	providers.FeaturePowerSet,
	providers.FeatureBootDeviceSet,
}

// Errors that the driver's callers tell apart. They wrap the cause.
var (
	ErrAuth    = errors.New("credentials refused")
	ErrRefused = errors.New("command refused")
	ErrBusy    = errors.New("busy or not in this state") // refused for now
	ErrClosed  = errors.New("no session")
)

const (
	closeTimeout = 2 * time.Second
	// actTimeout is how long the answer to an act is waited for: chassis control
	// may start a machine before it answers.
	actTimeout = 5 * time.Second
	// exchangeWaits bounds one step of the handshake, in first waits.
	exchangeWaits = 10
)

// Config says which controller to talk to.
type Config struct {
	Host        string // name or address, without port
	Port        int
	Username    string
	Password    string
	CipherSuite int           // 0: 17, then 3
	Wait        time.Duration // for an answer before it is asked for again; 0: 1 s
	// Look is called right before each request that changes something; its
	// error keeps the request back. decisive: this one has the effect, the
	// others prepare or complete it. May be nil.
	Look func(decisive bool) error
}

// Conn is one controller's session. It is not safe for concurrent use.
type Conn struct {
	cfg       Config
	client    *client.Client // nil without a session
	id        uint32         // the session's, at the controller
	unguarded bool           // the controller has no parameter that guards the boot flags
}

// New returns a driver without a session.
func New(cfg Config) *Conn {
	if cfg.Wait <= 0 {
		cfg.Wait = firstWait
	}
	return &Conn{cfg: cfg}
}

// Name implements bmclib's bmc.Provider.
func (c *Conn) Name() string { return Name }

// Open implements bmclib's bmc.Opener. Cipher suites are tried one at a time,
// each with a fresh client, because go-ipmi's own list loses the cause.
func (c *Conn) Open(ctx context.Context) error {
	if c.client != nil {
		return nil
	}
	ip, err := resolve(ctx, c.cfg.Host)
	if err != nil {
		return err
	}
	suites := []types.CipherSuiteID{types.CipherSuiteID17, types.CipherSuiteID3}
	if c.cfg.CipherSuite > 0 {
		suites = []types.CipherSuiteID{types.CipherSuiteID(c.cfg.CipherSuite)}
	}
	var lastErr error
	for _, suite := range suites {
		lastErr = c.connect(ctx, ip, suite)
		if lastErr == nil || !nextSuite(lastErr) {
			return lastErr
		}
	}
	return lastErr
}

func (c *Conn) connect(ctx context.Context, ip string, suite types.CipherSuiteID) error {
	cl, err := client.NewClient(ip, c.cfg.Port, c.cfg.Username, c.cfg.Password)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAuth, err)
	}
	cl.WithTimeout(exchangeWaits * c.cfg.Wait).WithRetry(0).WithCipherSuiteID(suite).WithUDPProxy(dialer{wait: c.cfg.Wait})
	id, err := handshake(ctx, cl)
	if err != nil {
		ended, cancel := context.WithCancel(ctx)
		cancel()            // no session stands: close the socket alone
		_ = cl.Close(ended) // the handshake's error is the one that counts
		return classify(err)
	}
	cl.WithTimeout(max(actTimeout, exchangeWaits*c.cfg.Wait)) // contexts end sooner
	c.client, c.id = cl, id
	err = c.ask(ctx, func(ctx context.Context) error {
		_, err := cl.SetSessionPrivilegeLevel(ctx, types.PrivilegeLevelAdministrator)
		return err
	})
	if err != nil {
		_ = c.Close(ctx) // likewise
		return classify(err)
	}
	return nil
}

// handshake is IPMI 2.0 section 13.15 from Open Session on. go-ipmi's Connect
// does the same, but flattens the cause of a failure to text and starts a
// keepalive that races with commands; sessions here are used or closed. It
// returns the session's ID at the controller.
func handshake(ctx context.Context, cl *client.Client) (uint32, error) {
	cl.WithMaxPrivilegeLevel(types.PrivilegeLevelAdministrator)
	opened, err := cl.OpenSession(ctx)
	if err != nil {
		return 0, err
	}
	if _, err := cl.RAKPMessage1(ctx); err != nil {
		return 0, err
	}
	_, err = cl.RAKPMessage3(ctx)
	return opened.ManagedSystemSessionID, err
}

// Close implements bmclib's bmc.Closer. The session is closed on the
// controller even when ctx has ended, within two seconds.
func (c *Conn) Close(ctx context.Context) error {
	if c.client == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	err := c.ask(ctx, func(ctx context.Context) error {
		_, err := c.client.CloseSession(ctx, &app.CloseSessionRequest{SessionID: c.id})
		return err
	})
	cancel()
	_ = c.client.Close(ctx) // the socket alone: ctx has ended
	c.client = nil
	return classify(err)
}

// PowerStateGet implements bmclib's bmc.PowerStateGetter: "on" or "off".
func (c *Conn) PowerStateGet(ctx context.Context) (string, error) {
	if c.client == nil {
		return "", ErrClosed
	}
	state := "off"
	err := c.ask(ctx, func(ctx context.Context) error {
		status, err := c.client.GetChassisStatus(ctx)
		if err == nil && status.PowerIsOn {
			state = "on"
		}
		return err
	})
	if err != nil {
		return "", classify(err)
	}
	return state, nil
}

// Watts is what the machine draws now (DCMI 1.5 section 6.6.1, optional). A
// controller that does not measure it is ErrRefused.
func (c *Conn) Watts(ctx context.Context) (int, error) {
	if c.client == nil {
		return 0, ErrClosed
	}
	var watts int
	err := c.ask(ctx, func(ctx context.Context) error {
		r, err := c.client.GetDCMIPowerReading(ctx)
		if err == nil && !r.PowerMeasurementActive {
			err = fmt.Errorf("%w: it does not measure power now", ErrRefused)
		}
		if err == nil {
			watts = int(r.CurrentPower)
		}
		return err
	})
	return watts, classify(err)
}

// PowerSet implements bmclib's bmc.PowerSetter for "on", "off" and "soft". The
// command is sent once; an error other than a refusal means its outcome is
// unknown and the state must be read.
func (c *Conn) PowerSet(ctx context.Context, state string) (bool, error) {
	if c.client == nil {
		return false, ErrClosed
	}
	var control chassis.ChassisControl
	switch state {
	case "on":
		control = chassis.ChassisControlPowerUp
	case "off":
		control = chassis.ChassisControlPowerDown
	case "soft":
		control = chassis.ChassisControlSoftShutdown
	default:
		return false, fmt.Errorf("%w: no such power command %q", ErrRefused, state)
	}
	if err := c.look(true); err != nil {
		return false, err
	}
	_, err := once(ctx, actTimeout, func(ctx context.Context) error {
		_, err := c.client.ChassisControl(ctx, control)
		return err
	})
	return err == nil, classify(err)
}

func (c *Conn) look(decisive bool) error {
	if c.cfg.Look == nil {
		return nil
	}
	return c.cfg.Look(decisive)
}

// nextSuite says whether another cipher suite may work where one failed. A
// refused Open Session is answered by a short message, which go-ipmi takes for
// a truncated one.
func nextSuite(err error) bool {
	if errors.Is(err, types.ErrUnpackedDataTooShort) {
		return true
	}
	var status *types.RmcpStatusError
	if !errors.As(err, &status) {
		return false
	}
	switch status.StatusCode() {
	case types.RmcpStatusCodeInvalidAuthAlg, types.RmcpStatusCodeInvalidIntegrityAlg,
		types.RmcpStatusCodeNoMatchingAuthPayload, types.RmcpStatusCodeNoMatchingIntegrityPayload,
		types.RmcpStatusCodeInvalidConfidentAlg, types.RmcpStatusCodeNoCipherSuiteMatch,
		types.RmcpStatusCodeIllegalParameter:
		return true
	}
	return false
}

// tolerate drops a refusal and keeps every other error.
func tolerate(err error) error {
	err = classify(err)
	if errors.Is(err, ErrRefused) || errors.Is(err, ErrBusy) {
		return nil
	}
	return err
}

// classify wraps what the controller answered into the errors of this package;
// the rest (timeouts, sockets) passes through.
func classify(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, client.ErrRAKPAuthentication) {
		return fmt.Errorf("%w: %w", ErrAuth, err)
	}
	var status *types.RmcpStatusError
	if errors.As(err, &status) {
		switch status.StatusCode() {
		case types.RmcpStatusCodeUnauthorizedName, types.RmcpStatusCodeUnauthorizedRoleOfPriLevel,
			types.RmcpStatusCodeInvalidRole, types.RmcpStatusCodeInvalidNameLength,
			types.RmcpStatusCodeInvalidIntegrityCheckValue:
			return fmt.Errorf("%w: %w", ErrAuth, err)
		case types.RmcpStatusCodeNoResToCreateSess, types.RmcpStatusCodeNoResToCreateSessAtRole:
			return fmt.Errorf("%w: %w", ErrBusy, err)
		}
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	var response *types.ResponseError
	if errors.As(err, &response) {
		switch uint8(response.CompletionCode()) {
		case 0xc0, 0xc3, 0xd2, 0xd5: // node busy, timeout, not now, not in this state
			return fmt.Errorf("%w: %w", ErrBusy, err)
		case 0xd4: // insufficient privilege
			return fmt.Errorf("%w: %w", ErrAuth, err)
		}
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

// resolve looks the name up within ctx (go-ipmi would do it without) and
// brackets IPv6, which go-ipmi joins with a port by a bare colon.
func resolve(ctx context.Context, host string) (string, error) {
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", err
	}
	ip := ips[0].Unmap().String()
	if strings.Contains(ip, ":") {
		return "[" + ip + "]", nil
	}
	return ip, nil
}
