package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bmc/ramdisk/kexec"
	"bmc/ramdisk/network"
	"bmc/ramdisk/session"
)

// mountAll makes the kernel's file systems and the places to mount others.
func mountAll() error {
	for _, m := range []struct {
		kind, target string
		flags        uintptr
		data         string
	}{
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// A dead init is a panic; a panic must not leave the machine hanging. The
	// kernel starts /sbin/modprobe, a link to this program, for what it finds
	// missing on the way: a file system, a checksum.
	return errors.Join(
		os.WriteFile("/proc/sys/kernel/panic", []byte("30"), 0),
		os.WriteFile("/proc/sys/kernel/modprobe", []byte("/sbin/modprobe"), 0),
	)
}

// mountEFI makes the firmware's variables writable. On BIOS there are none.
func mountEFI() error {
	const dir = "/sys/firmware/efi/efivars"
	if _, err := os.Stat("/sys/firmware/efi"); err != nil {
		return nil
	}
	if err := unix.Mount("efivarfs", dir, "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// quietKernel keeps the console for our own sentences and the kernel's errors.
func quietKernel() {
	const setLevel, errorsAndWorse = 8, 4 // SYSLOG_ACTION_CONSOLE_LEVEL
	_, _, _ = unix.Syscall(unix.SYS_SYSLOG, setLevel, 0, errorsAndWorse)
}

func setClock(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	return unix.Settimeofday(&tv)
}

func modulesDir() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail with a valid pointer
	return "/lib/modules/" + unix.ByteSliceToString(u.Release[:])
}

func how(end session.End) string { return strings.ReplaceAll(string(end), "-", " ") }

// leave never returns. A jump that the kernel refuses ends as a reboot, for
// which the agent has set the boot device.
func leave(log *slog.Logger, end session.End) {
	unix.Sync()
	log.Info("leaving", "how", how(end))
	if end == session.Kexec {
		if err := network.LinksDown(); err != nil {
			log.Warn("not every link is down", "err", err)
		}
		log.Error("no kexec, rebooting", "err", jump(log))
	}
	command := unix.LINUX_REBOOT_CMD_RESTART
	if end == session.PowerOff {
		command = unix.LINUX_REBOOT_CMD_POWER_OFF
	}
	if err := unix.Reboot(command); err != nil {
		log.Error("kernel refuses to leave", "err", err)
	}
	panic("still here") // makes the kernel panic, which reboots
}

const jumpName = "bmc-jump"

// jump leaves for the loaded kernel by way of another process, which overwrites
// this one's memory first. Where that cannot stop us, we jump as we are.
func jump(log *slog.Logger) error {
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{jumpName}, Stdout: os.Stdout, Stderr: os.Stderr}
	if err := cmd.Run(); err != nil {
		log.Warn("memory not overwritten before the jump", "err", err)
	}
	return kexec.Jump()
}

// jumpFor1 returns only when process 1 lives. Once that is stopped nobody else can
// reset the machine.
func jumpFor1() {
	log := slog.New(newConsole(os.Stdout))
	err := kexec.Forget()
	if err != nil {
		log.Warn("memory not overwritten", "err", err)
		if !kexec.Frozen(err) {
			os.Exit(1)
		}
	}
	log.Error("no kexec, rebooting", "err", kexec.Jump())
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		log.Error("kernel refuses to leave", "err", err)
	}
	os.Exit(1)
}
