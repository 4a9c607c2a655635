// Package harness runs the real binaries against a lab: what the demo, the
// smoke test and the end-to-end tests have in common.
package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Options say which lab to bring up.
type Options struct {
	Bin      string // folder of the binaries
	Ramdisk  string // folder of vmlinuz and initrd.img
	Dir      string // a folder for the lab and for the home of who uses it
	Nodes    int
	Servers  int
	Firmware string // "bios", "uefi" or "bios,uefi"
	OOB      string // "go" or "ipmi_sim"; empty: go
	Disk     string // size of each machine's disk, "4GiB"
	Extra    []string
	Log      io.Writer // what bmc-lab says; nil: nowhere
}

// Lab is a running lab.
type Lab struct {
	Keep bool // Down leaves the lab's files

	opts Options
	env  map[string]string
}

// Up brings a lab up, bounded by three minutes.
func Up(ctx context.Context, o Options) (*Lab, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if o.OOB == "" {
		o.OOB = "go"
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	l := &Lab{opts: o}
	if err := os.MkdirAll(l.Home(), 0o700); err != nil {
		return nil, err
	}
	args := []string{"up", "--dir", l.Dir(), "--bin", o.Bin, "--ramdisk", o.Ramdisk,
		"--nodes", fmt.Sprint(o.Nodes), "--servers", fmt.Sprint(o.Servers), "--firmware", o.Firmware, "--bmc", o.OOB}
	if o.Disk != "" {
		args = append(args, "--disk", o.Disk)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(o.Bin, "bmc-lab"), append(args, o.Extra...)...) //nolint:gosec // our own binary
	cmd.Stdout, cmd.Stderr = o.Log, o.Log
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil {
		// It cleans up behind itself, unless it was too slow for WaitDelay.
		return nil, errors.Join(fmt.Errorf("bring the lab up: %w", err), l.Down(context.WithoutCancel(ctx)))
	}
	out, err := l.lab(ctx, "env")
	if err != nil {
		return nil, errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}
	l.env = parseEnv(out)
	return l, nil
}

// parseEnv reads `export NAME=value` lines, the value quoted for a shell or bare.
func parseEnv(text string) map[string]string {
	env := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if !ok {
			continue
		}
		if len(value) >= 2 && (value[0] == '\'' || value[0] == '"') {
			value = strings.ReplaceAll(value[1:len(value)-1], `'\''`, `'`)
		}
		env[name] = value
	}
	return env
}

// Env is what `bmc-lab env` says.
func (l *Lab) Env(name string) string { return l.env[name] }

// Environ is the process environment for commands against this lab.
func (l *Lab) Environ() []string {
	env := append(os.Environ(), "HOME="+l.Home(), "XDG_CONFIG_HOME="+filepath.Join(l.Home(), ".config"))
	for k, v := range l.env {
		env = append(env, k+"="+v)
	}
	return env
}

// Failure is a command that ended badly.
type Failure struct {
	Command string
	Code    int
	Stderr  string
}

func (f *Failure) Error() string {
	return fmt.Sprintf("%s: exit code %d\n%s", f.Command, f.Code, strings.TrimSpace(f.Stderr))
}

// BMC runs the command and returns its standard output. A non-zero exit is a
// *Failure.
func (l *Lab) BMC(ctx context.Context, args ...string) (string, error) {
	return l.run(ctx, "bmc", l.Environ(), nil, args...)
}

// BMCWith is BMC with more environment.
func (l *Lab) BMCWith(ctx context.Context, env []string, args ...string) (string, error) {
	return l.run(ctx, "bmc", append(l.Environ(), env...), nil, args...)
}

// Dir is the lab's folder.
func (l *Lab) Dir() string { return filepath.Join(l.opts.Dir, "lab") }

// Home is the folder of who runs the commands.
func (l *Lab) Home() string { return filepath.Join(l.opts.Dir, "home") }

// BMCTo is BMC that shows standard error on w as it comes.
func (l *Lab) BMCTo(ctx context.Context, w io.Writer, args ...string) (string, error) {
	return l.run(ctx, "bmc", l.Environ(), w, args...)
}

func (l *Lab) lab(ctx context.Context, args ...string) (string, error) {
	return l.run(ctx, "bmc-lab", os.Environ(), nil, append(args, "--dir", l.Dir())...)
}

func (l *Lab) run(ctx context.Context, program string, env []string, show io.Writer, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(l.opts.Bin, program), args...) //nolint:gosec // our own binary
	var out, errText bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errText
	if show != nil {
		cmd.Stderr = io.MultiWriter(&errText, show)
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out.String(), &Failure{Command: program + " " + strings.Join(args, " "), Code: exit.ExitCode(), Stderr: errText.String()}
	}
	return out.String(), err
}

// JSON runs the command with -o json and decodes its answer into v.
func (l *Lab) JSON(ctx context.Context, v any, args ...string) error {
	out, err := l.BMC(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("bmc %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Waits looks until a server waits in the ramdisk, and returns which boot that is.
// It ends with ctx.
func (l *Lab) Waits(ctx context.Context, server string) (boot string, err error) {
	for {
		var s struct {
			Operation string `json:"operationId"`
			Warm      struct {
				BootID string `json:"bootId"`
			} `json:"warm"`
		}
		if err := l.JSON(ctx, &s, "get", server); err != nil {
			return "", err
		}
		if s.Operation == "" && s.Warm.BootID != "" {
			return s.Warm.BootID, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s does not wait in the ramdisk: %w", server, context.Cause(ctx))
		case <-time.After(time.Second / 2):
		}
	}
}

// Console returns the last lines of a machine's serial console.
func (l *Lab) Console(ctx context.Context, server string, lines int) string {
	out, err := l.lab(ctx, "console", server, "--tail", fmt.Sprint(lines))
	if err != nil {
		return err.Error()
	}
	return out
}

// Lab runs a bmc-lab command on this lab.
func (l *Lab) Lab(ctx context.Context, args ...string) (string, error) { return l.lab(ctx, args...) }

// Disk is the path of a machine's disk image on the host.
func (l *Lab) Disk(server string) (string, error) {
	found, err := filepath.Glob(filepath.Join(l.Dir(), "machines", server, "disk*"))
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("found %d disk images of %s", len(found), server)
	}
	return found[0], nil
}

// Down takes the lab away and says whether anything was left.
func (l *Lab) Down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	args := []string{"down"}
	if l.Keep {
		args = append(args, "--keep")
	}
	if _, err := l.lab(ctx, args...); err != nil {
		return fmt.Errorf("take the lab down: %w", err)
	}
	left, err := leftovers(l.opts.Dir)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("the lab left processes behind: %s", strings.Join(left, "; "))
	}
	return nil
}

// leftovers lists processes whose command line names the lab's folder.
func leftovers(dir string) ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var left []string
	for _, e := range entries {
		if e.Name() == fmt.Sprint(os.Getpid()) {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || e.Name() == fmt.Sprint(os.Getppid()) {
			continue // not a process, or just gone
		}
		line := string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		if strings.Contains(line, dir) && strings.Contains(line, "bmc") && !strings.Contains(line, "journey") {
			left = append(left, e.Name()+" "+strings.TrimSpace(line))
		}
	}
	return left, nil
}

// Contains says whether a file holds a text.
func Contains(path, text string) (bool, error) {
	f, err := os.Open(path) //nolint:gosec // a lab's disk image
	if err != nil {
		return false, err
	}
	defer f.Close()
	const piece = 4 << 20
	want := []byte(text)
	buf := make([]byte, piece+len(want))
	var keep int
	for {
		n, err := io.ReadFull(f, buf[keep:])
		data := buf[:keep+n]
		if bytes.Contains(data, want) {
			return true, nil
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		keep = copy(buf, data[len(data)-len(want)+1:])
	}
}
