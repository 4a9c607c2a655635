package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"bmc/e2e/harness"
)

// journey is one run. Machines are r1-u01…; their rentals are web-1….
type journey struct {
	opts  harness.Options
	image string
	warm  bool // the machines wait in the ramdisk
	lab   *harness.Lab

	mu     sync.Mutex
	phases []phaseTime
	failed string // the phase that failed
	key    string
}

type phaseTime struct {
	name    string
	seconds float64
}

// phase runs f, says so, and keeps its seconds for the table.
func (j *journey) phase(name string, f func() error) error {
	fmt.Printf("\n== %s\n", name)
	started := time.Now()
	err := f()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.phases = append(j.phases, phaseTime{name, time.Since(started).Seconds()})
	if err != nil {
		if j.failed == "" {
			j.failed = name
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

const waitFor = 4 * time.Minute // for QEMU to boot the ramdisk

type step struct {
	name string
	do   func(context.Context) error
}

// life is the whole of it, phase by phase.
func (j *journey) life() []step {
	steps := []step{
		{fmt.Sprintf("lab up: %d control-plane node(s), one rack, one agent, %d machine(s) (%s)", j.opts.Nodes, j.opts.Servers, j.opts.Firmware), j.up},
		{"every node answers, one leads", j.peers},
		{"sign and push the image", j.push},
		{"enrol from a file: prove, inspect, wipe", j.enroll},
	}
	if j.warm {
		steps = append(steps, step{"have the machines wait in the ramdisk", j.wait})
	}
	return append(steps,
		step{"create", j.create},
		step{"log in", j.login},
		step{"restart from disk", j.restart},
		step{"leave a marker in files and over free space", j.mark},
		step{"destroy: off, wipe, read back", j.destroy},
		step{"scan the disks from outside for the marker", j.scan})
}

func (j *journey) travel(ctx context.Context) error {
	for _, s := range j.life() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := j.phase(s.name, func() error { return s.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

func (j *journey) up(ctx context.Context) (err error) {
	j.lab, err = harness.Up(ctx, j.opts)
	return err
}

func (j *journey) peers(ctx context.Context) error {
	var peers []struct {
		Name   string `json:"name"`
		Alive  bool   `json:"alive"`
		Leader bool   `json:"leader"`
	}
	if err := j.lab.JSON(ctx, &peers, "cluster", "peers"); err != nil {
		return err
	}
	leaders := 0
	for _, p := range peers {
		if !p.Alive {
			return fmt.Errorf("node %s does not answer", p.Name)
		}
		if p.Leader {
			leaders++
		}
	}
	if len(peers) != j.opts.Nodes || leaders != 1 {
		return fmt.Errorf("found %d nodes and %d leaders", len(peers), leaders)
	}
	for _, addr := range strings.Split(j.lab.Env("BMC_ADDR"), ",") { // each node by itself
		if _, err := j.lab.BMC(ctx, "status", "--addr", addr); err != nil {
			return err
		}
	}
	return j.show(ctx, "cluster", "peers")
}

func (j *journey) push(ctx context.Context) error {
	if err := j.showErr(ctx, "image", "push", j.image); err != nil {
		return err
	}
	return nil
}

func (j *journey) enroll(ctx context.Context) error {
	if err := j.showErr(ctx, "inventory", "apply", "-f", j.lab.Env("BMC_INVENTORY"), "--wait", "--timeout", "5m"); err != nil {
		return err
	}
	if err := j.each(func(n int) error {
		return j.wants(ctx, machine(n), "available")
	}); err != nil {
		return err
	}
	return j.show(ctx, "inventory", "list", "-o", "wide")
}

func (j *journey) wait(ctx context.Context) error {
	if err := j.showErr(ctx, "rack", "warm", "r1", "all"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, waitFor)
	defer cancel()
	if err := j.each(func(n int) error {
		_, err := j.lab.Waits(ctx, machine(n))
		return err
	}); err != nil {
		return err
	}
	return j.show(ctx, "rack", "list")
}

func (j *journey) create(ctx context.Context) error {
	j.key = filepath.Join(j.lab.Home(), "id_demo")
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "demo", "-f", j.key).CombinedOutput(); err != nil {
		return fmt.Errorf("ssh-keygen: %w: %s", err, out)
	}
	if err := j.each(func(n int) error {
		return j.showErr(ctx, "create", "--name", rental(n), "--image", imageName(j.image), "--ssh-key", "@"+j.key+".pub", "--wait", "--timeout", "6m")
	}); err != nil {
		return err
	}
	return j.show(ctx, "list")
}

// ssh runs a command on a server and returns what it printed.
func (j *journey) ssh(ctx context.Context, n int, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	return j.lab.BMC(ctx, "login", "-i", j.key, rental(n), "--", command)
}

func (j *journey) login(ctx context.Context) error {
	return j.each(func(n int) error {
		out, err := j.ssh(ctx, n, "cat /etc/os-release; hostname")
		if err != nil {
			return err
		}
		if !strings.Contains(out, "PRETTY_NAME=") || !strings.Contains(out, rental(n)) {
			return fmt.Errorf("%s answered %q", rental(n), out)
		}
		fmt.Printf("%s$ cat /etc/os-release; hostname\n%s", rental(n), out)
		return nil
	})
}

func (j *journey) restart(ctx context.Context) error {
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	return j.each(func(n int) error {
		before, err := j.ssh(ctx, n, bootID)
		if err != nil {
			return err
		}
		if err := j.showErr(ctx, "restart", rental(n), "--wait", "--timeout", "4m"); err != nil {
			return err
		}
		after, err := j.ssh(ctx, n, bootID)
		if err != nil {
			return err
		}
		if before == after {
			return fmt.Errorf("%s says that it did not restart (boot ID %s)", rental(n), strings.TrimSpace(after))
		}
		fmt.Printf("%s: boot ID %s, was %s\n", rental(n), strings.TrimSpace(after), strings.TrimSpace(before))
		return nil
	})
}

func marker(n int) string { return fmt.Sprintf("BMC-DEMO-MARKER-%d-of-a-former-tenant", n) }

func (j *journey) mark(ctx context.Context) error {
	if err := j.each(func(n int) error {
		// 64 MiB at most of the marker, then what is left of it removed: free space holds it too.
		script := fmt.Sprintf(`m=%s; echo $m > keep.txt; yes $m | head -c 67108864 > fill.bin || true; sync; rm -f fill.bin; sync; cat keep.txt`, marker(n))
		out, err := j.ssh(ctx, n, script)
		if err != nil {
			return err
		}
		if strings.TrimSpace(out) != marker(n) {
			return fmt.Errorf("%s answered %q", rental(n), out)
		}
		return nil
	}); err != nil {
		return err
	}
	return j.each(func(n int) error { // any rental may be on any machine
		found, err := j.onDisk(ctx, n)
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("the marker is not on the disk of %s: the scan after the wipe would prove nothing", machine(n))
		}
		fmt.Printf("%s: a marker is on its disk, seen from outside\n", machine(n))
		return nil
	})
}

func (j *journey) destroy(ctx context.Context) error {
	if err := j.each(func(n int) error {
		return j.showErr(ctx, "destroy", rental(n), "--yes", "--wait", "--timeout", "5m")
	}); err != nil {
		return err
	}
	return j.each(func(n int) error { return j.wants(ctx, machine(n), "available") })
}

func (j *journey) scan(ctx context.Context) error {
	return j.each(func(n int) error {
		found, err := j.onDisk(ctx, n)
		if err != nil {
			return err
		}
		if found {
			return fmt.Errorf("the marker is still on the disk of %s", machine(n))
		}
		fmt.Printf("%s: no marker anywhere on its disk\n", machine(n))
		return nil
	})
}

// onDisk says whether any rental's marker is on machine n's disk.
func (j *journey) onDisk(_ context.Context, n int) (bool, error) {
	disk, err := j.lab.Disk(machine(n))
	if err != nil {
		return false, err
	}
	return harness.Contains(disk, "BMC-DEMO-MARKER-")
}

func machine(n int) string { return fmt.Sprintf("r1-u%02d", n) }
func rental(n int) string  { return fmt.Sprintf("web-%d", n) }

// each runs f for every machine at once.
func (j *journey) each(f func(n int) error) error {
	errs := make([]error, j.opts.Servers)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = f(i + 1) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (j *journey) wants(ctx context.Context, server, state string) error {
	var s struct {
		State string `json:"state"`
	}
	if err := j.lab.JSON(ctx, &s, "get", server); err != nil {
		return err
	}
	if s.State != state {
		return fmt.Errorf("%s is %s, not %s", server, s.State, state)
	}
	return nil
}

// show prints a command and what it says.
func (j *journey) show(ctx context.Context, args ...string) error {
	out, err := j.lab.BMC(ctx, args...)
	fmt.Printf("$ bmc %s\n%s", strings.Join(args, " "), out)
	return err
}

// showErr is show with the progress as it comes.
func (j *journey) showErr(ctx context.Context, args ...string) error {
	fmt.Printf("$ bmc %s\n", strings.Join(args, " "))
	out, err := j.lab.BMCTo(ctx, os.Stdout, args...)
	fmt.Print(out)
	return err
}

// explain says what the cluster and the consoles know of a failure.
func (j *journey) explain(ctx context.Context) {
	if j.lab == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	fmt.Printf("\n== failed at: %s\n", j.failed)
	for n := 1; n <= j.opts.Servers; n++ {
		if out, err := j.lab.BMC(ctx, "explain", machine(n)); err == nil {
			fmt.Print(out)
		}
		fmt.Printf("-- the end of %s's console\n%s\n", machine(n), j.lab.Console(ctx, machine(n), 30))
	}
}

func (j *journey) table() {
	fmt.Printf("\n%-70s %8s\n", "PHASE", "SECONDS")
	total := 0.0
	for _, p := range j.phases {
		fmt.Printf("%-70s %8.1f\n", p.name, p.seconds)
		total += p.seconds
	}
	fmt.Printf("%-70s %8.1f\n", "all", total)
	fmt.Println("\nDone; nothing is left running.")
}
