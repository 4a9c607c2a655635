package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"bmc/e2e/harness"
)

// serverName is the lab's one machine, rentalName what is created on it.
const (
	serverName = "r1-u01"
	rentalName = "arrival"
	probeAddr  = "10.77.1.250/24" // of the station that asks for ssh, on the rack's network
)

// ours is a lab with one server, and a user who creates and destroys.
type ours struct {
	lab     *harness.Lab
	key     string
	address string // of the server
	probe   []string
}

func newOurs(ctx context.Context, o options) (_ *ours, err error) {
	u := &ours{}
	u.lab, err = harness.Up(ctx, harness.Options{Bin: o.bin, Ramdisk: o.ramdisk, Dir: filepath.Join(o.dir, "ours"), Nodes: 1, Servers: 1, Firmware: o.firmware,
		Disk: fmt.Sprintf("%dGiB", o.diskGiB), Extra: []string{"--memory", fmt.Sprint(o.memory)}})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.close(context.WithoutCancel(ctx)))
		}
	}()
	u.lab.Keep = o.keep
	u.key = filepath.Join(u.lab.Home(), "id")
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", u.key).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ssh-keygen: %w: %s", err, out)
	}
	if _, err := u.lab.BMCTo(ctx, os.Stderr, "inventory", "apply", "-f", u.lab.Env("BMC_INVENTORY"), "--wait", "--timeout", "8m"); err != nil {
		return nil, err
	}
	var s struct {
		Address string `json:"address"`
	}
	if err := u.lab.JSON(ctx, &s, "get", serverName); err != nil {
		return nil, err
	}
	u.address = s.Address
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	enter := []string{"nsenter", "--net=" + u.lab.Env("BMC_RACK_R1_PROBE_NETNS")}
	add := append(enter[:len(enter):len(enter)], "ip", "address", "add", probeAddr, "dev", "rack0")
	if out, err := exec.CommandContext(ctx, add[0], add[1:]...).CombinedOutput(); err != nil { //nolint:gosec // the lab's namespace
		return nil, fmt.Errorf("address of the probe: %w: %s", err, out)
	}
	u.probe = append(enter[:len(enter):len(enter)], self, "in-namespace-probe")
	return u, nil
}

func (u *ours) push(ctx context.Context, image string) error {
	_, err := u.lab.BMC(ctx, "image", "push", image)
	return err
}

// arrive creates a server and returns how long it took from the command's start
// to the first ssh answer. It leaves the server available.
func (u *ours) arrive(ctx context.Context, image string, warm bool) (time.Duration, error) {
	if err := u.prepare(ctx, warm); err != nil {
		return 0, err
	}
	probed := make(chan probeResult, 1)
	probeCtx, stop := context.WithCancel(ctx)
	defer stop()
	if err := startProbe(probeCtx, append(u.probe, u.address), nil, probed); err != nil {
		return 0, err
	}
	var steps bytes.Buffer
	began := time.Now()
	_, err := u.lab.BMCTo(ctx, &steps, "create", "--name", rentalName, "--image", image, "--ssh-key", "@"+u.key+".pub", "--wait", "--timeout", "15m")
	if err != nil {
		return 0, err
	}
	whole := time.Since(began)
	answer := <-probed
	if answer.err != nil {
		return 0, answer.err
	}
	fmt.Printf("  %s; command returned after %.1f s\n", timeline(steps.String()), whole.Seconds())
	if _, err := u.lab.BMC(ctx, "destroy", rentalName, "--yes", "--wait", "--timeout", "15m"); err != nil {
		return 0, err
	}
	return answer.at.Sub(began), nil
}

// prepareFor bounds how long the server takes into the ramdisk, or to off.
const prepareFor = 5 * time.Minute

// prepare has the server wait in the ramdisk, or off.
func (u *ours) prepare(ctx context.Context, warm bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, prepareFor, errors.New("the server does not get there"))
	defer cancel()
	setting := map[bool]string{true: "all", false: "none"}[warm]
	if _, err := u.lab.BMC(ctx, "rack", "warm", "r1", setting); err != nil {
		return err
	}
	if warm {
		_, err := u.lab.Waits(ctx, serverName)
		return err
	}
	for {
		var s struct {
			Power struct {
				Observed string `json:"observed"`
			} `json:"power"`
			Warm struct {
				BootID string `json:"bootId"`
			} `json:"warm"`
			Operation string `json:"operationId"`
		}
		if err := u.lab.JSON(ctx, &s, "get", serverName); err != nil {
			return err
		}
		if s.Operation == "" && s.Warm.BootID == "" && s.Power.Observed == "off" {
			return nil
		}
		select {
		case <-time.After(time.Second / 2):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// timeline is the steps' seconds out of what the command said.
func timeline(said string) string {
	var out []string
	for line := range strings.Lines(said) {
		_, rest, _ := strings.Cut(line, rentalName+": ")
		name, done, ok := strings.Cut(strings.TrimSpace(rest), ": done (")
		if !ok {
			continue
		}
		if _, err := strconv.ParseFloat(strings.TrimSuffix(done, " s)"), 64); err == nil {
			out = append(out, name+" "+strings.TrimSuffix(done, ")"))
		}
	}
	return strings.Join(out, ", ")
}

func (u *ours) close(ctx context.Context) error {
	if u.lab == nil {
		return nil
	}
	return u.lab.Down(ctx)
}
