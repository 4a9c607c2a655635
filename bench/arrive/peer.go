package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"bmc/lab/machine"
	"bmc/lab/netns"
	"bmc/lab/vswitch"
)

const (
	peerMAC      = "52:54:00:77:09:64"
	bootsWithin  = 90 * time.Second
	answerWithin = 10 * time.Minute
	rackIface    = "rack0"
)

// peer is what one would do by hand: a guest in the machine's RAM fetches the raw
// image over HTTP and writes it with dd, resets the machine, and that boots from
// its disk. The image has an address and a host key already, so nothing needs to
// be configured; and nothing is verified.
type peer struct {
	machine *machine.Machine
	ns      *netns.Namespace
	sw      *vswitch.Switch
	server  *exec.Cmd
	said    *bufio.Reader
	disk    int64
}

func newPeer(ctx context.Context, o options, image string) (_ *peer, err error) {
	dir := filepath.Join(o.dir, "peer-"+filepath.Base(image))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p := &peer{disk: int64(o.diskGiB) << 30}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	raw := filepath.Join(dir, "image.raw")
	if err := configured(ctx, image, raw); err != nil {
		return nil, fmt.Errorf("give the image an address and a key: %w", err)
	}
	initrd := filepath.Join(dir, "initrd.img")
	if err := writeGuest(filepath.Join(o.ramdisk, "initrd.img"), initrd); err != nil {
		return nil, fmt.Errorf("the guest: %w", err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	p.sw = vswitch.New(log)
	if p.ns, err = netns.New("peer"); err != nil {
		return nil, err
	}
	if err := p.plugIn(); err != nil {
		return nil, err
	}
	if err := p.serve(filepath.Join(o.ramdisk, "vmlinuz"), initrd, raw); err != nil {
		return nil, err
	}
	p.machine, err = machine.New(machine.Config{Name: "peer", Dir: filepath.Join(dir, "machine"), Firmware: o.firmware, MemoryMiB: o.memory, CPUs: 1,
		DiskBytes: p.disk, MAC: peerMAC, UUID: "6b1f5a10-0000-4000-8000-525400770964", Serial: "PEER-1", Switch: p.sw, Start: p.ns.Start, Log: log})
	return p, err
}

func (p *peer) plugIn() error {
	var link netns.Frames
	if err := p.ns.Do(func() (err error) {
		link, err = netns.OpenFrames(rackIface, net.HardwareAddr{2, 0x4c, 0x42, 77, 9, 1}, 0)
		return err
	}); err != nil {
		return err
	}
	if _, err := p.sw.Attach("host", link); err != nil {
		return errors.Join(err, link.Close())
	}
	return p.ns.Do(func() error { return netns.AddAddress(rackIface, netip.MustParsePrefix(serverAddr+prefix)) })
}

// serve starts what boots the guest, in the machine's network.
func (p *peer) serve(kernel, initrd, raw string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p.server = exec.Command(self, "in-namespace-serve", rackIface, kernel, initrd, peerMAC, raw) //nolint:gosec,noctx // ourselves; ended by close
	p.server.Stderr = os.Stderr
	out, err := p.server.StdoutPipe()
	if err != nil {
		return err
	}
	if _, err := p.server.StdinPipe(); err != nil { // its end is the child's sign to leave
		return err
	}
	if err := p.ns.Start(p.server); err != nil {
		p.server = nil
		return err
	}
	p.said = bufio.NewReader(out)
	_, err = heard(p.said, "ready")
	return err
}

// arrive starts the guest on an empty disk, and returns how long it took from the
// start of dd to the first ssh answer.
func (p *peer) arrive(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, bootsWithin+answerWithin)
	defer cancel()
	disk := p.machine.Config()
	if err := errors.Join(os.Truncate(disk.DiskPath(), 0), os.Truncate(disk.DiskPath(), p.disk)); err != nil {
		return 0, err
	}
	if err := errors.Join(p.machine.SetBoot(ctx, machine.Override{Device: machine.Disk, Persistent: true}),
		p.machine.SetBoot(ctx, machine.Override{Device: machine.Network})); err != nil {
		return 0, err
	}
	if err := p.machine.PowerOn(ctx); err != nil {
		return 0, err
	}
	// A guest that never comes to fetch the image leaves the reader waiting until
	// the machine's server ends: so the context ends that.
	bootCtx, booted := context.WithTimeout(ctx, bootsWithin)
	stop := context.AfterFunc(bootCtx, func() { _ = p.server.Process.Kill() })
	began, err := heard(p.said, "get")
	stop()
	booted()
	if err != nil {
		return 0, errors.Join(err, p.machine.PowerOff(context.WithoutCancel(ctx)))
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	answered := make(chan probeResult, 1)
	if err := startProbe(ctx, []string{self, "in-namespace-probe", guestAddr}, p.ns.Start, answered); err != nil {
		return 0, err
	}
	answer := <-answered
	return answer.at.Sub(began), errors.Join(answer.err, p.machine.PowerOff(context.WithoutCancel(ctx)))
}

func (p *peer) close() error {
	var errs []error
	if p.machine != nil {
		errs = append(errs, p.machine.Close())
	}
	if p.server != nil {
		_ = p.server.Process.Kill()
		_ = p.server.Wait() // killed
	}
	if p.sw != nil {
		errs = append(errs, p.sw.Close())
	}
	if p.ns != nil {
		errs = append(errs, p.ns.Close())
	}
	return errors.Join(errs...)
}
