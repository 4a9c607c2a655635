package virtualbmc

import (
	"context"

	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/hal/mock"
	"github.com/bougou/go-ipmi/pkg/types"

	"bmc/lab/machine"
)

// chassis is the hardware behind a controller: it has power, a reset button and a
// boot order; no sensors, no log, no console yet.
type chassis struct{ m Machine }

func (c *chassis) Chassis() hal.ChassisHAL { return c }
func (c *chassis) Sensors() hal.SensorHAL  { return nil }
func (c *chassis) Storage() hal.StorageHAL { return mock.New().Storage() }
func (c *chassis) Network() hal.NetworkHAL { return nil }
func (c *chassis) GPIO() hal.GPIOHAL       { return nil }
func (c *chassis) I2C() hal.I2CHAL         { return nil }
func (c *chassis) Console() hal.ConsoleHAL { return nil }
func (c *chassis) Close() error            { return nil }

func (c *chassis) PowerState(context.Context) (bool, error) { return c.m.State().On, nil }

func (c *chassis) SetPower(ctx context.Context, on bool) error {
	if on {
		return c.m.PowerOn(ctx)
	}
	return c.m.PowerOff(ctx)
}

func (c *chassis) PowerCycle(ctx context.Context) error {
	if err := c.m.PowerOff(ctx); err != nil {
		return err
	}
	return c.m.PowerOn(ctx)
}

func (c *chassis) ColdReset(ctx context.Context) error { return c.m.Reset(ctx) }

// WarmReset is what the library calls IPMI's soft shutdown (table 28-4, action 5).
func (c *chassis) WarmReset(ctx context.Context) error { return c.m.SoftOff(ctx) }

func (c *chassis) Identify(context.Context, uint8) error { return nil }

func (c *chassis) IntrusionState(context.Context) (bool, error) { return false, hal.ErrNotSupported }

// SetBootFlags takes IPMI's boot flags (table 28-14, parameter 5). Flags that are
// not valid clear the override.
func (c *chassis) SetBootFlags(ctx context.Context, f *types.BootOptionParam_BootFlags) error {
	o := machine.Override{Persistent: f.Persist, EFI: bool(f.BIOSBootType)}
	switch {
	case !f.BootFlagsValid || f.BootDeviceSelector == types.BootDeviceSelectorNoOverride:
		o = machine.Override{}
	case f.BootDeviceSelector == types.BootDeviceSelectorForcePXE:
		o.Device = machine.Network
	case f.BootDeviceSelector == types.BootDeviceSelectorForceHardDrive:
		o.Device = machine.Disk
	default:
		return hal.ErrNotSupported
	}
	return c.m.SetBoot(ctx, o)
}

func (c *chassis) GetBootFlags(context.Context) (*types.BootOptionParam_BootFlags, error) {
	o := c.m.State().Boot
	f := &types.BootOptionParam_BootFlags{
		BootFlagsValid: o.Device != machine.Default,
		Persist:        o.Persistent,
		BIOSBootType:   types.BIOSBootType(o.EFI),
	}
	switch o.Device {
	case machine.Network:
		f.BootDeviceSelector = types.BootDeviceSelectorForcePXE
	case machine.Disk:
		f.BootDeviceSelector = types.BootDeviceSelectorForceHardDrive
	}
	return f, nil
}

func (c *chassis) SetBootInfoAcknowledge(context.Context, *types.BootOptionParam_BootInfoAcknowledge) error {
	return nil
}

func (c *chassis) GetBootInfoAcknowledge(context.Context) (*types.BootOptionParam_BootInfoAcknowledge, error) {
	return nil, hal.ErrNotSupported
}
