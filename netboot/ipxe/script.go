// Package ipxe makes boot scripts and holds the iPXE loaders.
//
// A script line is split at spaces, has ${settings} expanded and # comments cut,
// and is joined by || and &&. None of the values here needs any of these
// characters, so a value that holds one is refused rather than quoted.
package ipxe

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Paths on the HTTP server.
const (
	KernelPath = "/ramdisk/vmlinuz"
	InitrdPath = "/ramdisk/initrd.img"
	SeedPath   = "/boot/seed/" // <mac>.cpio
	ScriptPath = "/boot/ipxe"  // ?mac=
)

const (
	maxArgs    = 64
	maxArgLen  = 256
	maxLineLen = 2048 // COMMAND_LINE_SIZE on x86
)

// Local is the script of a machine that shall boot its own disk. A BIOS goes to
// the first disk at once. UEFI goes on with its boot order if iPXE leaves with an
// error; a success would end in the firmware's menu. ipxedust's loader always
// leaves with success, so there the machine starts again, and its firmware,
// which asks DHCP by itself, is sent on without a loader.
const Local = `#!ipxe
iseq ${platform} efi && goto efi ||
sanboot --no-describe --drive 0x80 || exit 1
:efi
iseq ${user-class} Tinkerbell && reboot ||
exit 1
`

// Again is the script of a machine that asks the wrong server: another one has
// what it shall boot, and answers its DHCP alone.
const Again = `#!ipxe
:anew
sleep 2
dhcp || goto anew
chain --replace --autofree ${filename} || goto anew
`

// Ramdisk is what a machine with an open boot intent loads.
type Ramdisk struct {
	Server netip.AddrPort // of the HTTP server
	MAC    string         // any form that net.ParseMAC takes
	Args   []string       // words of the kernel line
}

// Script returns the boot script, or an error that names the value it refuses.
//
// The loads are tried some times. Then the machine asks DHCP again and takes
// whatever script it is pointed to: its agent may have died and another answer,
// or the intent may be gone. It never falls through to the disk, which an
// operation is about to wipe or has half written.
func (r Ramdisk) Script() ([]byte, error) {
	if !r.Server.Addr().Is4() || r.Server.Port() == 0 {
		return nil, fmt.Errorf("ipxe: server %v is not an IPv4 address and port", r.Server)
	}
	mac, err := net.ParseMAC(r.MAC)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("ipxe: MAC %q is malformed", r.MAC)
	}
	args, err := KernelLine(r.Args)
	if err != nil {
		return nil, err
	}
	base := Base(r.Server)
	var b strings.Builder
	b.WriteString("#!ipxe\nset try:int32 1\n:load\nimgfree\n")
	// Under UEFI the kernel's stub finds initrds by these names; kernels that
	// ask iPXE itself, and a BIOS, get both in this order and ignore the words.
	fmt.Fprintf(&b, "kernel %s%s initrd=initrd.img initrd=seed.cpio%s || goto again\n", base, KernelPath, args)
	fmt.Fprintf(&b, "initrd --name initrd.img %s%s || goto again\n", base, InitrdPath)
	// Last, since every fetch makes a new token and voids the one before.
	fmt.Fprintf(&b, "initrd --name seed.cpio %s%s%s.cpio || goto again\n", base, SeedPath, mac)
	b.WriteString("boot || goto again\n")
	b.WriteString(":again\niseq ${try} 4 && goto anew ||\ninc try\nsleep 2\ngoto load\n")
	b.WriteString(":anew\nsleep 5\ndhcp || goto anew\nchain --replace --autofree ${filename} || goto anew\n")
	return []byte(b.String()), nil
}

// Elsewhere is the script of a machine whose operation another agent of the rack
// is at: only that one knows whether it shall boot its disk. When it does not
// answer, the machine asks DHCP again, since by then somebody else may know; the
// disk is not an answer to silence.
func Elsewhere(server netip.AddrPort, mac string) ([]byte, error) {
	hw, err := net.ParseMAC(mac)
	if err != nil || len(hw) != 6 || !server.Addr().Is4() || server.Port() == 0 {
		return nil, fmt.Errorf("ipxe: cannot send MAC %q to server %v", mac, server)
	}
	var b strings.Builder
	b.WriteString("#!ipxe\nset try:int32 1\n:ask\n")
	fmt.Fprintf(&b, "chain --replace --autofree %s%s?mac=%s ||\n", Base(server), ScriptPath, hw)
	b.WriteString("iseq ${try} 4 && goto anew ||\ninc try\nsleep 2\ngoto ask\n")
	b.WriteString(":anew\nsleep 5\ndhcp || goto anew\nchain --replace --autofree ${filename} || goto anew\n")
	return []byte(b.String()), nil
}

// Base is the URL of an HTTP server, without the default port.
func Base(server netip.AddrPort) string {
	if server.Port() == 80 {
		return "http://" + server.Addr().String()
	}
	return "http://" + server.String()
}

// KernelLine joins words of a kernel line, each with a space before it.
func KernelLine(args []string) (string, error) {
	if len(args) > maxArgs {
		return "", fmt.Errorf("ipxe: %d kernel arguments, at most %d are allowed", len(args), maxArgs)
	}
	var b strings.Builder
	for _, a := range args {
		if err := checkArg(a); err != nil {
			return "", err
		}
		b.WriteString(" " + a)
	}
	if b.Len() > maxLineLen/2 { // the other half is the script's own
		return "", fmt.Errorf("ipxe: kernel line of %d bytes is too long", b.Len())
	}
	return b.String(), nil
}

func checkArg(a string) error {
	if a == "" || len(a) > maxArgLen {
		return fmt.Errorf("ipxe: kernel argument %.32q has %d bytes, 1 to %d are allowed", a, len(a), maxArgLen)
	}
	if i := strings.IndexFunc(a, func(c rune) bool { return !argChar(c) }); i >= 0 {
		return fmt.Errorf("ipxe: kernel argument %q: character %q is not allowed", a, a[i])
	}
	if a[0] == '-' || strings.HasPrefix(a, "initrd=") {
		return fmt.Errorf("ipxe: kernel argument %q is not allowed", a)
	}
	return nil
}

// argChar is what console=ttyS0,115200n8, ip=10.0.0.2::10.0.0.1:… and module.option=1 need.
func argChar(c rune) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("._,=:/@+-", c)
}
