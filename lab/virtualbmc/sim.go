package virtualbmc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/bougou/go-ipmi/pkg/types"

	"bmc/lab/machine"
)

// SimConfig describes one ipmi_sim process, OpenIPMI's BMC. It knows cipher
// suites 0 to 3 and 6, and neither the persistent nor the EFI boot flag.
type SimConfig struct {
	Name     string
	Dir      string // its own: configuration, state and log
	Addr     netip.AddrPort
	User     string
	Password string // at most 16 bytes
	// Control is the command that ipmi_sim runs in Dir, with "get power" and the
	// like appended, through a shell: see Chassis.
	Control string
	Env     []string // nil: this process's
	Start   func(*exec.Cmd) error
}

// Sim is a running ipmi_sim.
type Sim struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

var lanConf = template.Must(template.New("lan.conf").Parse(`name "{{.Name}}"
set_working_mc 0x20
  startlan 1
    addr {{.Addr.Addr}} {{.Addr.Port}}
    priv_limit admin
    allowed_auths_callback md5
    allowed_auths_user md5
    allowed_auths_operator md5
    allowed_auths_admin md5
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{{.Control}}"
  startnow false
  user 1 false "" "" user 10 md5
  user 2 true "{{.User}}" "{{.Password}}" admin 10 md5
`))

const simCommands = `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
`

// plainWord is what needs no quoting in ipmi_sim's configuration.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

func (c *SimConfig) render() ([]byte, error) {
	for _, w := range []string{c.Name, c.User, c.Password} {
		if !plainWord.MatchString(w) || len(w) > 16 {
			return nil, fmt.Errorf("ipmi_sim of %s: name, user and password are up to 16 letters, digits, dots and dashes", c.Name)
		}
	}
	if strings.ContainsAny(c.Control, "\"\\\n") {
		return nil, fmt.Errorf("ipmi_sim of %s: bad control command", c.Name)
	}
	var b bytes.Buffer
	err := lanConf.Execute(&b, c)
	return b.Bytes(), err
}

// StartSim starts ipmi_sim; Wait tells when it answers.
func StartSim(cfg SimConfig) (*Sim, error) {
	conf, err := cfg.render()
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("ipmi_sim"); err != nil {
		return nil, errors.New("ipmi_sim is missing: apt install openipmi")
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "state"), 0o700); err != nil {
		return nil, err
	}
	for name, raw := range map[string][]byte{"lan.conf": conf, "sim.emu": []byte(simCommands)} {
		if err := os.WriteFile(filepath.Join(cfg.Dir, name), raw, 0o600); err != nil {
			return nil, err
		}
	}
	out, err := os.OpenFile(filepath.Join(cfg.Dir, "ipmi_sim.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command("ipmi_sim", "-c", "lan.conf", "-f", "sim.emu", "-s", "state", "-n")
	cmd.Dir, cmd.Env = cfg.Dir, cfg.Env
	cmd.Stdout, cmd.Stderr = out, out
	start := cfg.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("ipmi_sim of %s: %w", cfg.Name, err)
	}
	s := &Sim{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.err = cmd.Wait()
	}()
	return s, nil
}

// Wait asks over conn, a UDP socket connected to the simulator, until it answers.
func (s *Sim) Wait(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	// ASF presence ping (DMTF DSP0136, 3.2.4.2).
	ping := []byte{0x06, 0x00, 0xff, 0x06, 0x00, 0x00, 0x11, 0xbe, 0x80, 0x00, 0x00, 0x00}
	buf := make([]byte, 64)
	for {
		// A write to a port that nobody has is refused after the fact: go on.
		_, _ = conn.Write(ping)
		if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return err
		}
		if n, err := conn.Read(buf); err == nil && n >= 12 {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("ipmi_sim ended: %w", s.err)
		case <-ctx.Done():
			return fmt.Errorf("ipmi_sim does not answer: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// PID of the process.
func (s *Sim) PID() int { return s.cmd.Process.Pid }

// Close kills the process and reaps it.
func (s *Sim) Close() error {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.done
	return nil
}

// Chassis answers one call of ipmi_sim's chassis_control program (ipmi_lan(5)):
// "get power", "set power 1 boot pxe" and so on, several pairs a call.
func Chassis(ctx context.Context, m Machine, args []string, out io.Writer) error {
	if len(args) < 2 {
		return errors.New("chassis: want get or set, and what")
	}
	switch verb, args := args[0], args[1:]; verb {
	case "get":
		for _, what := range args {
			v, err := chassisGet(m, what)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(out, "%s:%s\n", what, v); err != nil {
				return err
			}
		}
		return nil
	case "set":
		for len(args) > 0 {
			if len(args) < 2 {
				return fmt.Errorf("chassis: no value for %q", args[0])
			}
			if err := chassisSet(ctx, m, args[0], args[1]); err != nil {
				return err
			}
			args = args[2:]
		}
		return nil
	default:
		return fmt.Errorf("chassis: unknown verb %q", verb)
	}
}

func chassisGet(m Machine, what string) (string, error) {
	s := m.State()
	switch what {
	case "power":
		if s.On {
			return "1", nil
		}
		return "0", nil
	case "boot":
		switch s.Boot.Device {
		case machine.Network:
			return "pxe", nil
		case machine.Disk:
			return "default", nil
		}
		return "none", nil
	}
	return "", fmt.Errorf("chassis: unknown parameter %q", what)
}

// chassisSet: ipmi_sim calls the hard disk "default" and passes no persistent
// flag on. A disk is meant to stay, the network to be tried once: that is how an
// operator uses them.
func chassisSet(ctx context.Context, m Machine, what, value string) error {
	switch what {
	case "power":
		if value == "1" {
			return m.PowerOn(ctx)
		}
		return m.PowerOff(ctx)
	case "reset":
		return m.Reset(ctx)
	case "shutdown":
		return m.SoftOff(ctx)
	case "identify":
		return nil
	case "boot":
		switch value {
		case "pxe":
			return m.SetBoot(ctx, machine.Override{Device: machine.Network})
		case "default":
			return m.SetBoot(ctx, machine.Override{Device: machine.Disk, Persistent: true})
		case "none":
			return m.SetBoot(ctx, machine.Override{})
		}
	}
	return fmt.Errorf("chassis: cannot set %s to %q", what, value)
}

// SimCommands are the commands that one call of ipmi_sim's control program stands
// for, as the Go controller would have recorded them. ipmi_sim does not tell who
// asked: there is no source, session or user. on is the machine's power before.
func SimCommands(server string, args []string, on bool) []Command {
	if len(args) < 2 {
		return nil
	}
	command := func(c types.Command, data, answer string) Command {
		return Command{Server: server, Name: c.Name, NetFn: uint8(c.NetFn), Cmd: c.ID, Data: data, Answer: answer, On: on, Sim: true}
	}
	verb, args := args[0], args[1:]
	if verb == "get" {
		if !slices.Contains(args, "power") {
			return nil
		}
		answer := "000000"
		if on {
			answer = "010000"
		}
		return []Command{command(types.CommandGetChassisStatus, "", answer)}
	}
	var all []Command
	for ; len(args) >= 2; args = args[2:] {
		switch what, value := args[0], args[1]; what {
		case "boot": // IPMI 2.0, table 28-14, parameter 5
			data := map[string]string{"pxe": "058004000000", "default": "05c008000000", "none": "050000000000"}[value]
			all = append(all, command(types.CommandSetSystemBootOptions, data, ""))
		default: // table 28-4
			data := map[string]string{"power0": "00", "power1": "01", "reset1": "03", "shutdown1": "05"}[what+value]
			if data != "" {
				all = append(all, command(types.CommandChassisControl, data, ""))
			}
		}
	}
	return all
}
