package light

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"bmc/lab/machine"
)

// Architectures of option 93 (RFC 4578, RFC 5970).
const (
	archBIOS = 0
	archX64  = 7
	archHTTP = 16
)

var (
	noAddr    = netip.Addr{}
	anyAddr   = netip.IPv4Unspecified()
	everybody = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// errNext lets the firmware try its next device.
var errNext = errors.New("next device")

func next(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errNext, fmt.Sprintf(format, args...))
}

// boot is one pass of the firmware, and of what it starts. It returns nil when
// the machine starts again.
func (l *life) boot(ctx context.Context) error {
	m := l.m
	if err := l.sleep(ctx, m.cfg.Timing.Post); err != nil {
		return err
	}
	m.mu.Lock()
	first := m.order.First()
	m.order.Boots()
	m.order.Booted()
	m.mu.Unlock()
	l.record(Boot, "", string(first))
	devices := []func(context.Context) error{l.bootNetwork, l.bootDisk}
	if first == machine.Disk {
		devices[0], devices[1] = devices[1], devices[0]
	}
	for _, try := range devices {
		err := try(ctx)
		if err == nil || !errors.Is(err, errNext) {
			return err
		}
		l.record(NoBoot, "", err.Error())
	}
	<-ctx.Done() // at the firmware's prompt
	return context.Cause(ctx)
}

// bootNetwork is PXE, or UEFI's HTTP boot: an address, the loader, and what the
// loader's script says.
func (l *life) bootNetwork(ctx context.Context) error {
	m := l.m
	offer, err := l.firmwareDHCP(ctx)
	if err != nil {
		return err
	}
	if err := l.fetchLoader(ctx, offer); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return next("no loader: %v", err)
	}
	p := &ipxe{host: l, settings: map[string]string{"platform": "pcbios", "user-class": l.userClass()}}
	if m.cfg.Firmware == machine.UEFI {
		p.settings["platform"] = "efi"
	}
	url, err := l.dhcp(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return next("the loader has no address: %v", err)
	}
	p.settings["filename"] = url
	script, err := l.nic.get(ctx, url, maxKept)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return next("no script: %v", err)
	}
	end, err := p.run(ctx, script)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		l.failed("script", err)
		return next("%v", err)
	}
	l.record(Script, "", [...]string{exits: "exit", fails: "error", boots: "kernel", sanboot: "disk", restart: "restart"}[end])
	switch end {
	case boots:
		raw, err := p.image.seed()
		if err != nil {
			l.failed("initrd", err)
			return next("%v", err)
		}
		return l.ramdisk(ctx, raw)
	case sanboot:
		return l.bootDisk(ctx)
	case restart:
		return nil
	}
	return next("the loader left")
}

// userClass is of this machine's build of iPXE: some lie about it.
func (l *life) userClass() string {
	if l.m.cfg.MAC[5]%2 == 0 {
		return "Tinkerbell"
	}
	return "iPXE"
}

// firmwareOptions are those of a PXE client (PXE 2.1, section 2.2.1).
func (l *life) firmwareOptions() map[byte][]byte {
	arch, class := archBIOS, "PXEClient"
	switch {
	case l.m.cfg.HTTPBoot:
		arch, class = archHTTP, "HTTPClient"
	case l.m.cfg.Firmware == machine.UEFI:
		arch = archX64
	}
	return map[byte][]byte{
		optClass:   fmt.Appendf(nil, "%s:Arch:%05d:UNDI:003016", class, arch),
		optArch:    {0, byte(arch)},
		optNIC:     {1, 3, 16},
		optUUID:    append([]byte{0}, l.uuid()...),
		optMaxSize: {1472 >> 8, 1472 & 255},
		optWanted:  {1, optRouter, 6, 12, 15, 43, 54, optClass, optBootFile, optUUID},
	}
}

func (l *life) uuid() []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(l.m.cfg.UUID, "-", ""))
	if err != nil || len(b) != 16 {
		return make([]byte, 16)
	}
	return b
}

// firmwareDHCP asks at 0, 1 and 3 units of time and gives up after 7.
func (l *life) firmwareDHCP(ctx context.Context) (*message, error) {
	unit := l.m.cfg.Timing.Retry
	ack, err := l.acquire(ctx, "firmware", l.firmwareOptions(), []time.Duration{unit, 2 * unit, 4 * unit})
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, next("%v", err)
	}
	if ack.file == "" {
		return nil, next("the answer names no boot file")
	}
	return ack, nil
}

func (l *life) fetchLoader(ctx context.Context, ack *message) error {
	name, size, err := ack.file, int64(0), error(nil)
	if l.m.cfg.HTTPBoot {
		size, err = l.nic.discard(ctx, name)
	} else {
		server := ack.siaddr
		if server == anyAddr {
			server = ack.server()
		}
		size, err = l.tftp(ctx, server, name)
	}
	if err != nil {
		return err
	}
	if size == 0 {
		return fmt.Errorf("%s is empty", name)
	}
	l.record(Loader, "", fmt.Sprintf("%s, %d bytes", name, size))
	return nil
}

func (l *life) tftp(ctx context.Context, server netip.Addr, name string) (int64, error) {
	u, err := l.nic.udp(0)
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = u.SetReadDeadline(past) })
	defer func() { _ = u.Close() }()
	defer stop()
	return tftpGet(ctx, u, server, name)
}

// dhcp is the loader's: iPXE's class, and its list of features with HTTP in it.
func (l *life) dhcp(ctx context.Context) (string, error) {
	options := l.firmwareOptions()
	options[optUserClass] = []byte(l.userClass())
	options[optIPXE] = []byte{19, 1, 1, 23, 1, 1, 36, 1, 1} // http, bzimage or efi, menu
	unit := l.m.cfg.Timing.Retry
	ack, err := l.acquire(ctx, "loader", options, []time.Duration{unit, 2 * unit, 4 * unit})
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(ack.file, "http://") {
		return "", fmt.Errorf("the answer names %q, which is no URL", ack.file)
	}
	return ack.file, nil
}

func (l *life) load(ctx context.Context, url string, keep bool) ([]byte, error) {
	if keep {
		return l.nic.get(ctx, url, maxKept)
	}
	_, err := l.nic.discard(ctx, url)
	return nil, err
}

// wait is the script's sleep, in units of time.
func (l *life) wait(ctx context.Context, seconds int) error {
	return pause(ctx, time.Duration(seconds)*l.m.cfg.Timing.Retry)
}
