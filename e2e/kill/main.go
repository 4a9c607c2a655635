// Command kill kills the leader, the acting agent and both, with SIGKILL, at
// every journalled step of create, restart and destroy, before and after the
// record's fsync, on a QEMU machine; then it holds what is left to the
// invariants. `make e2e-kill` is this program; its exit code tells.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"bmc/chaos/check"
	"bmc/chaos/run"
	"bmc/e2e/harness"
)

type options struct {
	bin, ramdisk, image, dir string
	only                     string
	passes                   int
	pauses, pauseRacks       int
	takeovers, takeoverRacks int
	seed                     uint64
	keep                     bool
}

func main() { harness.Main(start) }

func start(ctx context.Context) (err error) {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "folder of the binaries; its folder failpoints has the daemons")
	flag.StringVar(&o.ramdisk, "ramdisk", "build/ramdisk", "folder of the ramdisk")
	flag.StringVar(&o.image, "image", "build/images/tiny.img", "disk image to deploy")
	flag.StringVar(&o.dir, "dir", "", "folder of the lab; a temporary one when left out, kept on failure")
	flag.StringVar(&o.only, "only", "", "rows to run: OP/STEP/VICTIM/WHEN or OP/STEP/RECORD/VICTIM/WHEN, with * for any")
	flag.IntVar(&o.passes, "passes", 0, "end after so many passes; 0: all eight")
	flag.IntVar(&o.pauses, "pauses", 50, "how often an agent is stopped in the middle of a controller's call; 0: not")
	flag.IntVar(&o.pauseRacks, "pause-racks", 5, "racks whose agents are stopped side by side")
	flag.IntVar(&o.takeovers, "takeovers", 0, "do nothing but this: kill the holder of a rack's lease so often and measure until another agent has it")
	flag.IntVar(&o.takeoverRacks, "takeover-racks", 10, "racks whose holders are killed side by side")
	flag.Uint64Var(&o.seed, "seed", 1, "of the moments of the pauses")
	flag.BoolVar(&o.keep, "keep", false, "keep the folder")
	flag.Parse()
	if err := harness.Absolute(&o.bin, &o.ramdisk, &o.image); err != nil {
		return err
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "bmc-kill-"); err != nil {
			return err
		}
	}
	began := time.Now()
	if o.takeovers > 0 {
		err, o.pauses = taking(ctx, &o), 0
	} else if passes := plan(o.only); len(passes) > 0 {
		err = killing(ctx, &o, passes)
	} else if o.only != "pauses" {
		return fmt.Errorf("no row matches %q", o.only)
	}
	if err == nil && o.pauses > 0 && (o.only == "" || o.only == "pauses") {
		err = pausing(ctx, &o)
	}
	fmt.Printf("\n%.0f s in all\n", time.Since(began).Seconds())
	if err != nil || o.keep {
		fmt.Println("evidence is in", o.dir)
		return err
	}
	return os.RemoveAll(o.dir)
}

// killing runs the passes in one lab.
func killing(ctx context.Context, o *options, passes []pass) (err error) {
	dir := filepath.Join(o.dir, "kill")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fmt.Println("== lab up: 3 nodes, 1 rack, 2 agents with failpoints, 1 machine (bios)")
	w, err := run.Up(ctx, harness.Options{Bin: o.bin, Ramdisk: o.ramdisk, Dir: dir, Nodes: 3, Servers: 1, Firmware: "bios", Disk: "1GiB",
		Extra: []string{"--agents", "2", "--agent-log", "debug", "--bin", filepath.Join(o.bin, "failpoints")}}, o.seed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Down(context.WithoutCancel(ctx))) }()
	if _, err := w.Harness.BMCTo(ctx, os.Stderr, "image", "push", o.image); err != nil {
		return err
	}
	if err := w.Enrol(ctx); err != nil {
		return err
	}
	k := &killer{world: w, image: imageName(o.image)}
	header()
	failed := 0
	for i, p := range passes {
		if o.passes > 0 && i == o.passes {
			break
		}
		violations, err := k.pass(ctx, i, p)
		if err != nil {
			k.report()
			return err
		}
		failed += len(violations)
	}
	k.report()
	if k.silent > 0 || k.wrong > 0 || k.bad > 0 || failed > 0 {
		return fmt.Errorf("%d kills never happened, %d met somebody else, %d operations did not end as promised, %d violations", k.silent, k.wrong, k.bad, failed)
	}
	return nil
}

func imageName(file string) string {
	base := filepath.Base(file)
	return base[:len(base)-len(filepath.Ext(base))]
}

// show prints a report's violations and then how much each verdict rests on, and
// fails when one that is wanted rests on nothing.
func show(r check.Report, wanted ...string) error {
	for _, v := range r.Violations() {
		fmt.Println("  " + v.String())
	}
	fmt.Print(r)
	return r.Demand(wanted...)
}
