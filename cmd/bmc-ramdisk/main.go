// Command bmc-ramdisk is the init of the system that servers boot into RAM: it
// inspects and wipes disks, writes images and configures them, as its rack's
// agent says. It never starts a shell and never exits: it reboots.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bmc/internal/bootseed"
	"bmc/internal/version"
	"bmc/ramdisk"
	"bmc/ramdisk/hardware"
	"bmc/ramdisk/kmod"
	"bmc/ramdisk/network"
	"bmc/ramdisk/session"
)

const (
	helloWithin  = 3 * time.Minute // from the start: then a reboot may help
	leaveAfter   = 10 * time.Second
	settleFor    = 3 * time.Second // without a new device: everything is there
	settleSoon   = 300 * time.Millisecond
	settleWithin = 30 * time.Second
)

func main() {
	if filepath.Base(os.Args[0]) == "modprobe" { // started by the kernel, see mountAll
		modprobe(os.Args[1:])
		return
	}
	if os.Args[0] == jumpName { // started by init, see jump
		jumpFor1()
		return
	}
	if os.Getpid() != 1 {
		fmt.Println("bmc-ramdisk", version.String())
		if len(os.Args) != 2 || os.Args[1] != "--version" {
			fmt.Fprintln(os.Stderr, "bmc-ramdisk runs as a ramdisk's init only")
			os.Exit(2)
		}
		return
	}
	fmt.Println("bmc-ramdisk", version.String())
	log := slog.New(newConsole(os.Stdout))
	end, err := boot(log)
	if err != nil {
		log.Error("ramdisk cannot go on", "err", err)
		log.Info("leaving soon", "how", how(end), "seconds", int(leaveAfter.Seconds()))
		time.Sleep(leaveAfter) // so that the console's record has the reason
	}
	leave(log, end)
}

// boot runs the machine until its agent, or an error, ends the session.
func boot(log *slog.Logger) (session.End, error) {
	if err := mountAll(); err != nil {
		return session.Reboot, err
	}
	quietKernel()
	seed, err := bootseed.Load(bootseed.Path)
	if err != nil {
		return session.Reboot, err
	}
	// Nothing else reads it, and the token is as good as spent.
	if err := os.Remove(bootseed.Path); err != nil {
		log.Warn("seed not removed", "err", err)
	}
	if err := setClock(seed.Now); err != nil {
		log.Warn("clock not set", "err", err)
	}
	mac, err := net.ParseMAC(seed.MAC)
	if err != nil {
		return session.Reboot, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), helloWithin)
	defer cancel()
	plugged := make(chan struct{})
	go func() { defer close(plugged); coldplug(ctx, log) }()
	log.Info("starting the network", "mac", seed.MAC)
	addr, err := network.Up(ctx, log, mac)
	if err != nil {
		return session.Reboot, err
	}
	log.Info("network is up", "addr", addr.String())
	<-plugged // disks and the other NICs belong to the identity
	if err := mountEFI(); err != nil {
		log.Warn("EFI variables not available", "err", err)
	}
	if err := network.LinksUp(); err != nil {
		log.Warn("not every link is up", "err", err)
	}
	if seed.Discover {
		return discover(ctx, log, seed)
	}
	return serve(ctx, log, seed)
}

// discover tells the agent what this machine is, and leaves. Nobody knows the
// machine: no disk of it is opened for writing, and no task is asked for.
func discover(ctx context.Context, log *slog.Logger, seed bootseed.Seed) (session.End, error) {
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return session.PowerOff, err
	}
	log.Info("nobody knows this machine: looking at its hardware")
	machine := ramdisk.NewMachine(log)
	machine.Prepare = loadController
	found := machine.Inspect(ctx)
	s := session.New(session.Config{Seed: seed, BootID: strings.TrimSpace(string(bootID)), Version: version.String(), Identity: found, Log: log})
	defer s.Close()
	log.Info("telling the agent", "addr", seed.Agent, "serial", found.GetSerial())
	return s.Discover(ctx)
}

func serve(ctx context.Context, log *slog.Logger, seed bootseed.Seed) (session.End, error) {
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return session.Reboot, err
	}
	machine := ramdisk.NewMachine(log)
	machine.Prepare = loadController
	s := session.New(session.Config{
		Seed: seed, BootID: strings.TrimSpace(string(bootID)), Version: version.String(),
		Identity: hardware.Inspect("/"), Log: log, SetClock: setClock,
		Run: machine.Run, ChunkURL: machine.MoveChunks,
	})
	defer s.Close()
	log.Info("calling the agent", "addr", seed.Agent, "server", seed.ServerID)
	if err := s.Hello(ctx); err != nil {
		return session.Reboot, err
	}
	log.Info("agent said hello, waiting for tasks")
	end, err := s.Serve(context.Background()) // bounded by the certificate's life
	if err != nil {
		// What is on the disks may be half an image: not to be started unasked.
		return session.PowerOff, err
	}
	return end, nil
}

// coldplug loads drivers until the buses have been quiet for a while: disks
// and NICs appear behind controllers, and late.
func coldplug(ctx context.Context, log *slog.Logger) {
	index, err := kmod.Open(modulesDir())
	if err != nil {
		log.Error("no kernel modules", "err", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	loader := kmod.NewLoader(index)
	for quietSince := time.Now(); ctx.Err() == nil; {
		fresh, err := loader.Coldplug("/sys")
		if err != nil {
			log.Warn("some modules were not loaded", "err", err)
		}
		// The last look comes after the wait: a busy machine may have slept through it.
		if fresh > 0 || starting("/sys") {
			quietSince = time.Now()
		} else if time.Since(quietSince) >= settleTime("/sys") {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	// Whoever writes an image waits for it otherwise, half a second where a CPU is slow.
	if err := loader.Load("ext4"); err != nil {
		log.Warn("no driver for the images' file system yet", "err", err)
	}
	log.Info("devices are settled", "disks", len(hardware.Disks("/")), "nics", len(hardware.NICs("/")))
}

// starting says whether an NVMe controller is not ready yet: its driver is loaded
// before it is.
func starting(sys string) bool {
	states, err := filepath.Glob(filepath.Join(sys, "class/nvme/*/state"))
	if err != nil {
		return false
	}
	for _, file := range states {
		b, err := os.ReadFile(file)
		if state := strings.TrimSpace(string(b)); err == nil && state != "live" && state != "dead" {
			return true
		}
	}
	return false
}

// controllerModules make /dev/ipmi0, where the machine has a management controller.
// Only an inspection wants them, and looking for one takes time.
var controllerModules = []string{"ipmi_devintf", "ipmi_si"}

func loadController(log *slog.Logger) {
	index, err := kmod.Open(modulesDir())
	if err != nil {
		log.Warn("no kernel modules", "err", err)
		return
	}
	loader := kmod.NewLoader(index)
	for _, name := range controllerModules {
		if err := loader.Load(name); err != nil { // ENODEV where there is none
			log.Debug("module not loaded", "module", name, "err", err)
		}
	}
}

// settleTime is short where every controller's disks are there when its driver is
// loaded. Controllers that scan behind the kernel's back (some RAID, Fibre
// Channel) need their time.
func settleTime(sys string) time.Duration {
	hosts, err := filepath.Glob(filepath.Join(sys, "class/scsi_host/*/proc_name"))
	if err != nil {
		return settleFor
	}
	for _, h := range hosts {
		b, err := os.ReadFile(h)
		if driver := strings.TrimSpace(string(b)); err != nil || !scansWhenLoaded(driver) {
			return settleFor
		}
	}
	return settleSoon
}

// scansWhenLoaded says whether a SCSI host's driver has found its disks when
// finit_module returns: the kernel waits there for what was scheduled by async,
// which is how libata probes its ports. SAS controllers may scan so, too, and
// discover for longer.
func scansWhenLoaded(driver string) bool {
	switch driver {
	case "ahci", "ata_piix", "virtio_scsi":
		return true
	}
	return strings.HasPrefix(driver, "sata_") || strings.HasPrefix(driver, "pata_")
}

func modprobe(args []string) {
	index, err := kmod.Open(modulesDir())
	if err != nil {
		os.Exit(1)
	}
	var errs []error
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			errs = append(errs, kmod.NewLoader(index).Load(a))
		}
	}
	if errors.Join(errs...) != nil {
		os.Exit(1)
	}
}
