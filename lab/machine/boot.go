package machine

import "fmt"

// Device is what a machine boots from.
type Device string

// A machine without any override tries the network, then its disk.
const (
	Default Device = ""
	Network Device = "network"
	Disk    Device = "disk"
)

// Override is what a BMC asks of the next boots. EFI is recorded, and changes
// nothing: the machine has one firmware.
type Override struct {
	Device     Device
	Persistent bool
	EFI        bool
}

// BootOrder is a machine's boot order as its firmware's setup and its BMC know it:
// a one-shot override goes before the persistent one, for one boot.
type BootOrder struct {
	persistent Override
	once       Override
	using      bool // a boot that obeys once is under way
}

// Set takes what a BMC asks for.
func (b *BootOrder) Set(o Override) error {
	switch o.Device {
	case Default:
		*b = BootOrder{}
	case Network, Disk:
		if o.Persistent {
			// The later word counts: a one-shot override from before is dropped.
			*b = BootOrder{persistent: o}
		} else {
			b.once, b.using = o, false
		}
	default:
		return fmt.Errorf("unknown boot device %q", o.Device)
	}
	return nil
}

// Current is what a BMC answers when asked for its boot flags.
func (b *BootOrder) Current() Override {
	if b.once.Device != Default {
		return b.once
	}
	return b.persistent
}

// First is the device that the next boot tries first.
func (b *BootOrder) First() Device {
	if d := b.Current().Device; d != Default {
		return d
	}
	return Network
}

// Boots tells that a boot begins.
func (b *BootOrder) Boots() { b.using = b.once.Device != Default }

// Booted tells that the boot has read its order: the one-shot override that it
// obeyed is used up. One that was set since stays for the next boot.
func (b *BootOrder) Booted() {
	if b.using {
		b.once, b.using = Override{}, false
	}
}
