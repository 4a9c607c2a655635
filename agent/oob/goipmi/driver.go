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
	// replyTimeout bounds one exchange. Chassis control may start a machine
	// before it answers, so it is longer than a read needs; callers bound reads
	// by their context.
	replyTimeout = 5 * time.Second
)

// Config says which controller to talk to.
type Config struct {
	Host        string // name or address, without port
	Port        int
	Username    string
	Password    string
	CipherSuite int // 0: 17, then 3
	// Look is called right before each request that changes something; its
	// error keeps the request back. decisive: this one has the effect, the
	// others prepare or complete it. May be nil.
	Look func(decisive bool) error
}

// Conn is one controller's session. It is not safe for concurrent use.
type Conn struct {
	cfg    Config
	client *client.Client // nil without a session
}

// New returns a driver without a session.
func New(cfg Config) *Conn { return &Conn{cfg: cfg} }

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
	cl.WithTimeout(replyTimeout).WithRetry(0).WithCipherSuiteID(suite)
	if err := handshake(ctx, cl); err != nil {
		ended, cancel := context.WithCancel(ctx)
		cancel()            // no session stands: close the socket alone
		_ = cl.Close(ended) // the handshake's error is the one that counts
		return classify(err)
	}
	c.client = cl
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	if _, err := cl.SetSessionPrivilegeLevel(ctx, types.PrivilegeLevelAdministrator); err != nil {
		_ = c.Close(ctx) // likewise
		return classify(err)
	}
	return nil
}

// handshake is IPMI 2.0 section 13.15 from Open Session on. go-ipmi's Connect
// does the same, but flattens the cause of a failure to text and starts a
// keepalive that races with commands; sessions here are used or closed.
func handshake(ctx context.Context, cl *client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	cl.WithMaxPrivilegeLevel(types.PrivilegeLevelAdministrator)
	if _, err := cl.OpenSession(ctx); err != nil {
		return err
	}
	if _, err := cl.RAKPMessage1(ctx); err != nil {
		return err
	}
	_, err := cl.RAKPMessage3(ctx)
	return err
}

// Close implements bmclib's bmc.Closer. The session is closed on the
// controller even when ctx has ended, within two seconds.
func (c *Conn) Close(ctx context.Context) error {
	if c.client == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	err := c.client.Close(ctx)
	c.client = nil
	return classify(err)
}

// PowerStateGet implements bmclib's bmc.PowerStateGetter: "on" or "off".
func (c *Conn) PowerStateGet(ctx context.Context) (string, error) {
	if c.client == nil {
		return "", ErrClosed
	}
	status, err := c.client.GetChassisStatus(ctx)
	if err != nil {
		return "", classify(err)
	}
	if status.PowerIsOn {
		return "on", nil
	}
	return "off", nil
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
	if _, err := c.client.ChassisControl(ctx, control); err != nil {
		return false, classify(err)
	}
	return true, nil
}

func (c *Conn) look(decisive bool) error {
	if c.cfg.Look == nil {
		return nil
	}
	return c.cfg.Look(decisive)
}

// BootDeviceSet implements bmclib's bmc.BootDeviceSetter for "pxe" and "disk".
// IPMI 2.0 section 28.12: parameter 0 guards the set, 4 clears the firmware's
// acknowledgement and 5 holds the flags. Only the flags are mandatory, so
// refusals of the others do not count. Where the controller lets the flags be
// read, a device or persistence that it did not keep is ErrRefused.
func (c *Conn) BootDeviceSet(ctx context.Context, device string, persistent, efi bool) (bool, error) {
	if c.client == nil {
		return false, ErrClosed
	}
	flags := &types.BootOptionParam_BootFlags{BootFlagsValid: true, Persist: persistent, BIOSBootType: types.BIOSBootType(efi)}
	switch device {
	case "pxe":
		flags.BootDeviceSelector = types.BootDeviceSelectorForcePXE
	case "disk":
		flags.BootDeviceSelector = types.BootDeviceSelectorForceHardDrive
	default:
		return false, fmt.Errorf("%w: no such boot device %q", ErrRefused, device)
	}
	if err := c.setBootFlags(ctx, flags); err != nil {
		return false, err
	}
	return true, c.verifyBootFlags(ctx, flags)
}

func (c *Conn) setBootFlags(ctx context.Context, flags *types.BootOptionParam_BootFlags) error {
	if err := c.look(false); err != nil {
		return err
	}
	if err := tolerate(c.client.SetBootParamSetInProgress(ctx, types.SetInProgress_SetInProgress)); err != nil {
		return err
	}
	if err := c.look(false); err != nil {
		return err
	}
	if err := tolerate(c.client.SetBootParamClearAck(ctx, types.BootInfoAcknowledgeByBIOSPOST)); err != nil {
		return err
	}
	if err := c.look(true); err != nil {
		return err
	}
	setErr := classify(c.client.SetSystemBootOptionsParamFor(ctx, flags))
	if err := c.look(false); err != nil {
		return err
	}
	if err := tolerate(c.client.SetBootParamSetInProgress(ctx, types.SetInProgress_SetComplete)); err != nil && setErr == nil {
		setErr = err
	}
	return setErr
}

func (c *Conn) verifyBootFlags(ctx context.Context, want *types.BootOptionParam_BootFlags) error {
	got := &types.BootOptionParam_BootFlags{}
	if err := c.client.GetSystemBootOptionsParamFor(ctx, got); err != nil {
		return tolerate(err)
	}
	if got.BootDeviceSelector != want.BootDeviceSelector {
		return fmt.Errorf("%w: boot device reads %v after %v was set", ErrRefused, got.BootDeviceSelector, want.BootDeviceSelector)
	}
	if want.Persist && !got.Persist {
		return fmt.Errorf("%w: the boot device was not kept as persistent", ErrRefused)
	}
	return nil
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
