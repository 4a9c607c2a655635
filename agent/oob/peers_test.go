package oob

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bmc/agent/oob/oobtest"
	"bmc/metal"
)

// bmclib's ipmitool driver against our controller for tests.
func TestIpmitoolDriver(t *testing.T) {
	if _, err := exec.LookPath("ipmitool"); err != nil {
		t.Skip("ipmitool is not installed")
	}
	b := oobtest.Start(t)
	cfg := config(b)
	cfg.Protocol, cfg.Timing, cfg.CipherSuite = ProtocolIpmitool, Timing{}, 17
	c := dial(t, cfg)
	if err := c.SetBootDevice(t.Context(), DevicePXE, false, true); err != nil {
		t.Error(err)
	}
	for _, want := range []metal.Power{metal.PowerOn, metal.PowerOff} {
		if err := c.SetPower(t.Context(), want); err != nil {
			t.Error(err)
		}
	}
	if got, want := b.Log(), []string{"boot pxe once efi", "on", "off"}; !slices.Equal(got, want) {
		t.Errorf("commands = %v, want %v", got, want)
	}
	cfg.Password = "wrong"
	if _, err := Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "refuses its user name and password") {
		t.Errorf("wrong password: %v", err)
	}
}

// Both IPMI drivers against OpenIPMI's simulator, which knows cipher suite 3
// and not 17, and keeps no persistent flag.
func TestIPMISim(t *testing.T) {
	sim := startIPMISim(t)
	for _, protocol := range []string{ProtocolIPMI, ProtocolIpmitool} {
		t.Run(protocol, func(t *testing.T) {
			if _, err := exec.LookPath("ipmitool"); err != nil && protocol == ProtocolIpmitool {
				t.Skip("ipmitool is not installed")
			}
			cfg := Config{Server: "r1-u01", Protocol: protocol, Address: sim.addr, Username: "admin", Password: "secret",
				Lease: &grant{epoch: 1, held: true}} // its sessions can be listed, not ended
			if protocol == ProtocolIpmitool {
				cfg.CipherSuite = 3
			}
			c := dial(t, cfg)
			if err := c.SetBootDevice(t.Context(), DevicePXE, false, false); err != nil {
				t.Error(err)
			}
			for _, want := range []metal.Power{metal.PowerOn, metal.PowerOff} {
				if err := c.SetPower(t.Context(), want); err != nil {
					t.Error(err)
				}
				if got, err := c.Power(t.Context()); got != want || err != nil {
					t.Errorf("power = %v, %v; want %v", got, err, want)
				}
			}
			if log := sim.log(t); !strings.Contains(log, "boot pxe") || !strings.Contains(log, "power 1") || !strings.Contains(log, "power 0") {
				t.Errorf("the machine saw %q", log)
			}
			if err := c.SetBootDevice(t.Context(), DeviceDisk, true, true); err != nil && metal.CodeOf(err) != metal.CodeOOBRefused {
				t.Errorf("persistent boot device: %v", err)
			}
			cfg.Password = "wrong"
			if _, err := Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "refuses its user name and password") {
				t.Errorf("wrong password: %v", err)
			}
		})
	}
}

type ipmiSim struct{ addr, dir string }

func (s ipmiSim) log(t *testing.T) string {
	data, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// chassisScript is the simulated machine: its power is a file.
const chassisScript = `#!/bin/sh
dir=$(dirname "$0")
op=$1; shift
case $op in
get) for p in "$@"; do case $p in
	power) if [ -f "$dir/on" ]; then echo power:1; else echo power:0; fi;;
	boot) echo boot:$(cat "$dir/boot" 2>/dev/null || echo default);;
	esac; done;;
set) while [ $# -gt 1 ]; do
	echo "$1 $2" >> "$dir/log"
	case $1$2 in
	power1) touch "$dir/on";;
	power0) rm -f "$dir/on";;
	boot*) echo "$2" > "$dir/boot";;
	esac
	shift 2
	done;;
esac
exit 0
`

func startIPMISim(t *testing.T) ipmiSim {
	t.Helper()
	program, err := exec.LookPath("ipmi_sim")
	if err != nil {
		t.Skip("ipmi_sim (package openipmi) is not installed")
	}
	dir := t.TempDir()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	port := socket.LocalAddr().(*net.UDPAddr).Port
	_ = socket.Close()
	script := filepath.Join(dir, "chassis.sh")
	lan := fmt.Sprintf("name %q\nset_working_mc 0x20\n  startlan 1\n    addr 127.0.0.1 %d\n    priv_limit admin\n"+
		"    allowed_auths_admin none md2 md5 straight\n    guid a123456789abcdefa123456789abcdef\n  endlan\n"+
		"  chassis_control %q\n  startnow false\n  user 1 true \"\" \"test\" user 10 none md2 md5 straight\n"+
		"  user 2 true \"admin\" \"secret\" admin 10 none md2 md5 straight\n", "m1", port, script)
	emu := "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n"
	for name, content := range map[string]string{"lan.conf": lan, "sim.emu": emu, "chassis.sh": chassisScript} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "-n", "-s", dir, "-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "sim.emu"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	sim := ipmiSim{addr: fmt.Sprintf("127.0.0.1:%d", port), dir: dir}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		c, err := Dial(ctx, Config{Server: "sim", Protocol: ProtocolIPMI, Address: sim.addr, Username: "admin", Password: "secret", Timing: Timing{Read: time.Second, Act: time.Second}})
		if err == nil {
			_ = c.Close(ctx)
			return sim
		}
		if ctx.Err() != nil {
			t.Fatalf("ipmi_sim does not answer: %v\n%s", err, out.String())
		}
	}
}
