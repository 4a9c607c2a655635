package goipmi

import (
	"context"
	"errors"
	"fmt"

	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"
)

// BootDeviceSet implements bmclib's bmc.BootDeviceSetter for "pxe" and "disk".
// IPMI 2.0 section 28.12: parameter 0 guards the set, 4 clears the firmware's
// acknowledgement and 5 holds the flags. Only the flags are mandatory: a
// controller answers 80h to a parameter that it does not know, and refusals of
// the others do not count. Where the controller lets the flags be read, a
// device or persistence that it did not keep is ErrRefused.
func (c *Conn) BootDeviceSet(ctx context.Context, device string, persistent, efi bool) (bool, error) {
	if c.session == nil {
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
	if err := c.setInProgress(ctx, types.SetInProgress_SetInProgress); err != nil {
		return err
	}
	err := c.prepare(ctx, func(ctx context.Context) error {
		return c.setBootOption(ctx, &types.BootOptionParam_BootInfoAcknowledge{ByBIOSPOST: true})
	})
	if err != nil {
		return err
	}
	setErr := c.sendBootFlags(ctx, flags)
	if err := c.setInProgress(ctx, types.SetInProgress_SetComplete); err != nil && setErr == nil {
		setErr = err
	}
	return setErr
}

// sendBootFlags sends them once, and again only when no answer came and they
// do not read as wanted.
func (c *Conn) sendBootFlags(ctx context.Context, flags *types.BootOptionParam_BootFlags) error {
	wait := 2 * c.cfg.Wait
	for n := 1; ; n++ {
		if err := c.look(true); err != nil {
			return err
		}
		lost, err := once(ctx, jittered(wait), func(ctx context.Context) error {
			return c.setBootOption(ctx, flags)
		})
		if !lost || n == askTimes || ctx.Err() != nil {
			return classify(err)
		}
		got, readErr := c.readBootFlags(ctx)
		switch {
		case readErr != nil:
			return classify(err)
		case got.BootFlagsValid && got.BootDeviceSelector == flags.BootDeviceSelector && got.Persist == flags.Persist && got.BIOSBootType == flags.BIOSBootType:
			return nil
		}
	}
}

// setInProgress sends parameter 0, unless this controller was heard to refuse it.
func (c *Conn) setInProgress(ctx context.Context, state types.SetInProgressState) error {
	if c.unguarded {
		return nil
	}
	return c.prepare(ctx, func(ctx context.Context) error {
		err := c.setBootOption(ctx, &types.BootOptionParam_SetInProgress{Value: state})
		var response *types.ResponseError
		c.unguarded = errors.As(err, &response) && uint8(response.CompletionCode()) == parameterUnknown
		return err
	})
}

// parameterUnknown is how Set System Boot Options refuses a parameter that the
// controller does not have (IPMI 2.0 table 28-12).
const parameterUnknown = 0x80

// prepare asks for what surrounds the flags, and drops a refusal. The lease is
// looked at each time.
func (c *Conn) prepare(ctx context.Context, f func(context.Context) error) error {
	return tolerate(c.ask(ctx, func(ctx context.Context) error {
		if err := c.look(false); err != nil {
			return err
		}
		return f(ctx)
	}))
}

func (c *Conn) readBootFlags(ctx context.Context) (*types.BootOptionParam_BootFlags, error) {
	got := &types.BootOptionParam_BootFlags{}
	selector, set, block := got.BootOptionParameter()
	req, resp := &chassis.GetSystemBootOptionsParamRequest{ParamSelector: selector, SetSelector: set, BlockSelector: block}, &chassis.GetSystemBootOptionsParamResponse{}
	err := c.ask(ctx, func(ctx context.Context) error { return c.exchange(ctx, req, resp) })
	if err == nil {
		err = got.Unpack(resp.ParamData)
	}
	return got, err
}

func (c *Conn) setBootOption(ctx context.Context, p types.BootOptionParameter) error {
	selector, _, _ := p.BootOptionParameter()
	return c.exchange(ctx, &chassis.SetSystemBootOptionsParamRequest{ParamSelector: selector, ParamData: p.Pack()}, &chassis.SetSystemBootOptionsParamResponse{})
}

func (c *Conn) verifyBootFlags(ctx context.Context, want *types.BootOptionParam_BootFlags) error {
	got, err := c.readBootFlags(ctx)
	if err != nil {
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
