// Package goipmi is a bmclib driver for IPMI 2.0 over RMCP+ with one kept session
// and no helper process. The messages and their keys are bougou/go-ipmi's; sessions,
// retries and the socket, which many controllers share, are ours. It is registered in bmclib's registry
// by agent/oob and offers on, off and soft; never cycle or reset, whose lost
// reply would leave nobody knowing whether to send it again.
package goipmi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/bmc-toolbox/bmclib/v2/providers"
	"github.com/bougou/go-ipmi/pkg/command/app"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/command/dcmi"
	"github.com/bougou/go-ipmi/pkg/rmcpplus"
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
	// attempts is how often a handshake is begun where its messages crossed. Each may
	// count as a wrong password to the controller, and some let five pass.
	attempts    = 3
	maxPassword = 20 // bytes (section 13.31)
)

// Config says which controller to talk to.
type Config struct {
	Host        string // name or address, without port
	Port        int
	Username    string
	Password    string
	CipherSuite int           // 0: 17, then 3
	Wait        time.Duration // for an answer before it is asked for again; 0: 1 s
	Hub         *Hub          // the socket; nil: one of its own
	// Look is called right before each request that changes something; its
	// error keeps the request back. decisive: this one has the effect, the
	// others prepare or complete it. May be nil.
	Look func(decisive bool) error
}

// Conn is one controller's session. It is not safe for concurrent use.
type Conn struct {
	cfg       Config
	port      *port    // nil without a session, like
	session   *session // this
	unguarded bool     // the controller has no parameter that guards the boot flags
}

// New returns a driver without a session.
func New(cfg Config) *Conn {
	if cfg.Wait <= 0 {
		cfg.Wait = firstWait
	}
	if cfg.Hub == nil {
		cfg.Hub = &Hub{}
	}
	return &Conn{cfg: cfg}
}

// Name implements bmclib's bmc.Provider.
func (c *Conn) Name() string { return Name }

// Open implements bmclib's bmc.Opener. Cipher suites are tried one at a time.
func (c *Conn) Open(ctx context.Context) error {
	if c.session != nil {
		return nil
	}
	if len(c.cfg.Username) > rmcpplus.MaxUserNameLength || len(c.cfg.Password) > maxPassword {
		return fmt.Errorf("%w: IPMI knows no user name or password as long", ErrAuth)
	}
	addr, err := resolve(ctx, c.cfg.Host, c.cfg.Port)
	if err != nil {
		return err
	}
	suites := []types.CipherSuiteID{types.CipherSuiteID17, types.CipherSuiteID3}
	if c.cfg.CipherSuite > 0 {
		suites = []types.CipherSuiteID{types.CipherSuiteID(c.cfg.CipherSuite)}
	}
	var lastErr error
	for _, suite := range suites {
		lastErr = c.connect(ctx, addr, suite)
		if lastErr == nil || !nextSuite(lastErr) {
			return lastErr
		}
	}
	return lastErr
}

func (c *Conn) connect(ctx context.Context, addr netip.AddrPort, suite types.CipherSuiteID) error {
	err := c.shake(ctx, addr, suite)
	for n := 1; n < attempts && errors.Is(err, errCrossed); n++ {
		err = c.shake(ctx, addr, suite)
	}
	if err != nil {
		return classify(err)
	}
	err = c.ask(ctx, func(ctx context.Context) error {
		return c.exchange(ctx, &app.SetSessionPrivilegeLevelRequest{PrivilegeLevel: types.PrivilegeLevelAdministrator}, &app.SetSessionPrivilegeLevelResponse{})
	})
	if err != nil {
		_ = c.Close(ctx) // the first error is the one that counts
		return classify(err)
	}
	return nil
}

// shake tries a handshake, once, on a port of its own.
func (c *Conn) shake(ctx context.Context, addr netip.AddrPort, suite types.CipherSuiteID) error {
	port, err := c.cfg.Hub.dial(addr)
	if err != nil {
		return err
	}
	h := &handshake{port: port, wait: c.cfg.Wait, user: c.cfg.Username, password: c.cfg.Password}
	session, err := h.run(ctx, suite)
	if err != nil {
		port.close()
		return err
	}
	c.port, c.session = port, session
	return nil
}

// Close implements bmclib's bmc.Closer. The session is closed on the
// controller even when ctx has ended, within two seconds.
func (c *Conn) Close(ctx context.Context) error {
	if c.session == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	err := c.ask(ctx, func(ctx context.Context) error {
		return c.exchange(ctx, &app.CloseSessionRequest{SessionID: c.session.bmc}, &app.CloseSessionResponse{})
	})
	c.port.close()
	c.port, c.session = nil, nil
	return classify(err)
}

// exchange sends a request, once, and waits for its answer until ctx ends.
func (c *Conn) exchange(ctx context.Context, req types.Request, resp types.Response) error {
	cmd := req.Command()
	packet, seq, err := c.session.request(cmd, req.Pack())
	if err != nil {
		return err
	}
	if err := c.port.send(packet); err != nil {
		return err
	}
	for {
		select {
		case p := <-c.port.in:
			data, ok, err := c.session.answer(p, cmd, seq)
			if !ok {
				continue
			}
			if err == nil {
				if uerr := resp.Unpack(data); uerr != nil {
					err = types.NewResponseError(0, cmd.Name+": "+uerr.Error())
				}
			}
			return err
		case <-ctx.Done():
			return fmt.Errorf("%s: no answer: %w", cmd.Name, ctx.Err())
		}
	}
}

// PowerStateGet implements bmclib's bmc.PowerStateGetter: "on" or "off".
func (c *Conn) PowerStateGet(ctx context.Context) (string, error) {
	if c.session == nil {
		return "", ErrClosed
	}
	status := &chassis.GetChassisStatusResponse{}
	err := c.ask(ctx, func(ctx context.Context) error {
		return c.exchange(ctx, &chassis.GetChassisStatusRequest{}, status)
	})
	if err != nil {
		return "", classify(err)
	}
	return powerOf(status), nil
}

// Watts is what the machine draws now (DCMI 1.5 section 6.6.1, optional). A
// controller that does not measure it is ErrRefused.
func (c *Conn) Watts(ctx context.Context) (int, error) {
	if c.session == nil {
		return 0, ErrClosed
	}
	r := &dcmi.GetDCMIPowerReadingResponse{}
	err := c.ask(ctx, func(ctx context.Context) error { return c.exchange(ctx, &dcmi.GetDCMIPowerReadingRequest{}, r) })
	if err == nil && !r.PowerMeasurementActive {
		return 0, fmt.Errorf("%w: it does not measure power now", ErrRefused)
	}
	return int(r.CurrentPower), classify(err)
}

// PowerSet implements bmclib's bmc.PowerSetter for "on", "off" and "soft". The
// command is sent once; an error other than a refusal means its outcome is
// unknown and the state must be read.
func (c *Conn) PowerSet(ctx context.Context, state string) (bool, error) {
	if c.session == nil {
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
		return c.exchange(ctx, &chassis.ChassisControlRequest{ChassisControl: control}, &chassis.ChassisControlResponse{})
	})
	return err == nil, classify(err)
}

func (c *Conn) look(decisive bool) error {
	if c.cfg.Look == nil {
		return nil
	}
	return c.cfg.Look(decisive)
}

// nextSuite says whether another cipher suite may work where one failed.
func nextSuite(err error) bool {
	if errors.Is(err, errDowngrade) {
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
	if errors.Is(err, ErrAuth) {
		return err
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

// resolve looks the name up within ctx.
func resolve(ctx context.Context, host string, port int) (netip.AddrPort, error) {
	if addr, ok := Literal(host, port); ok {
		return addr, nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(ips[0].Unmap(), uint16(port)), nil
}

// Literal is the address that a host is, if it is no name.
func Literal(host string, port int) (netip.AddrPort, bool) {
	ip, err := netip.ParseAddr(host)
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)), err == nil
}
