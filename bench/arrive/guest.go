package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"

	"bmc/internal/newc"
)

// guestInit is the guest's init: the network as it is known, then dd. Its kernel
// and drivers are the ramdisk's.
const guestInit = `#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b depmod -b / $($b uname -r) # the ramdisk names direct needs only
for m in virtio_pci virtio_net virtio_blk; do $b modprobe $m; done
until [ -e /sys/class/net/eth0 ] && [ -b /dev/vda ]; do $b sleep 0.1; done
$b ip link set eth0 up
$b ip address add %s dev eth0
until $b ping -c 1 -W 1 %s >/dev/null 2>&1; do :; done
echo "peer: dd" >/dev/console
$b wget -q -O - %s | $b dd of=/dev/vda bs=4M iflag=fullblock oflag=direct conv=fsync
echo "peer: reset" >/dev/console
$b reboot -f
`

// writeGuest appends an init of busybox to the ramdisk's initramfs: what comes
// later in an initramfs replaces what was there.
func writeGuest(ramdisk, to string) error {
	base, err := os.ReadFile(ramdisk)
	if err != nil {
		return err
	}
	path, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("busybox is missing: apt install busybox-static: %w", err)
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	url := fmt.Sprintf("http://%s:%d/image", serverAddr, imagePort)
	var b bytes.Buffer
	b.Write(base)
	w := newc.NewWriter(&b)
	for _, e := range []newc.Entry{
		{Name: "bin", Mode: newc.ModeDir | 0o755},
		{Name: "bin/busybox", Mode: newc.ModeFile | 0o755, Data: busybox},
		{Name: "init", Mode: newc.ModeFile | 0o755, Data: fmt.Appendf(nil, guestInit, guestAddr+prefix, serverAddr, url)},
		// The kernel asks for modules by this name; a script would ask again.
		{Name: "sbin/modprobe", Mode: newc.ModeSymlink | 0o777, Data: []byte("/bin/busybox")},
	} {
		if err := w.Write(e); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	b.Write(make([]byte, (4-b.Len()%4)%4))
	return os.WriteFile(to, b.Bytes(), 0o600)
}
