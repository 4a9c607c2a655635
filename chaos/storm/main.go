// Command storm creates and destroys hundreds of light servers at once, through
// different nodes, while nodes and agents are killed, paused and cut off by a
// schedule that follows from a seed; then it heals, waits for the end of all
// operations and holds what is left to the invariants. `make chaos` is this
// program; its exit code tells.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/chaos/check"
	"bmc/chaos/run"
	"bmc/e2e/harness"
)

type options struct {
	bin, ramdisk, image, dir             string
	nodes, racks, agents, light, clients int
	seed                                 uint64
	duration, settle                     time.Duration
	calm, keep                           bool
	warm                                 string
}

func main() { harness.Main(start) }

func start(ctx context.Context) (err error) {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "folder of the binaries")
	flag.StringVar(&o.ramdisk, "ramdisk", "build/ramdisk", "folder of the ramdisk")
	flag.StringVar(&o.image, "image", "build/images/tiny.img", "disk image to deploy")
	flag.StringVar(&o.dir, "dir", "", "folder of the lab; a temporary one when left out, kept on failure")
	flag.IntVar(&o.nodes, "nodes", 3, "control-plane nodes")
	flag.IntVar(&o.racks, "racks", 3, "racks")
	flag.IntVar(&o.agents, "agents", 2, "agents a rack")
	flag.IntVar(&o.light, "light", 200, "light machines, over all racks")
	flag.IntVar(&o.clients, "clients", 8, "clients, each beginning at another node")
	flag.Uint64Var(&o.seed, "seed", 1, "of the faults and of what clients do")
	flag.DurationVar(&o.duration, "duration", 3*time.Minute, "how long clients begin new rentals")
	flag.DurationVar(&o.settle, "settle", 20*time.Minute, "how long operations may take to end after all is healed")
	flag.StringVar(&o.warm, "warm", "all", "available servers of the last rack that wait in the ramdisk: all, none or a number")
	flag.BoolVar(&o.calm, "calm", false, "no faults")
	flag.BoolVar(&o.keep, "keep", false, "keep the folder")
	flag.Parse()
	if err := harness.Absolute(&o.bin, &o.ramdisk, &o.image); err != nil {
		return err
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "bmc-storm-"); err != nil {
			return err
		}
	}
	err = storm(ctx, &o)
	if err != nil || o.keep {
		fmt.Println("evidence is in", o.dir)
		return err
	}
	return os.RemoveAll(o.dir)
}

// phase runs f and says how long it took.
func phase(name string, f func() error) error {
	fmt.Printf("== %s\n", name)
	began := time.Now()
	err := f()
	fmt.Printf("   %.1f s\n", time.Since(began).Seconds())
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func storm(ctx context.Context, o *options) (err error) {
	var w *run.World
	perRack := (o.light + o.racks - 1) / o.racks
	if err := phase(fmt.Sprintf("lab up: %d nodes, %d racks, %d agents each, %d light machines (seed %d)", o.nodes, o.racks, o.agents, perRack*o.racks, o.seed), func() (err error) {
		w, err = run.Up(ctx, harness.Options{Bin: o.bin, Ramdisk: o.ramdisk, Dir: o.dir, Nodes: o.nodes, Servers: 0, Firmware: "bios,uefi", Disk: "256MiB",
			Extra: []string{"--racks", fmt.Sprint(o.racks), "--agents", fmt.Sprint(o.agents), "--light", fmt.Sprint(perRack), "--light-seed", fmt.Sprint(o.seed)}}, o.seed)
		return err
	}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Down(context.WithoutCancel(ctx))) }()
	if _, err := w.Harness.BMCTo(ctx, os.Stderr, "image", "push", o.image); err != nil {
		return err
	}
	if err := phase("enrol all at once: prove, inspect, wipe", func() error { return enrol(ctx, w) }); err != nil {
		return err
	}
	if _, err := w.API.Inventory.SetRackWarm(ctx, &bmcv1.SetRackWarmRequest{Ref: fmt.Sprintf("r%d", o.racks), Warm: o.warm}); err != nil {
		return err
	}
	before, err := usage(ctx, w)
	if err != nil {
		return err
	}
	t := newTraffic(w, o)
	if err := phase(fmt.Sprintf("create and destroy by %d clients, under faults", o.clients), func() error { return t.under(ctx, newFaults(w, o)) }); err != nil {
		return err
	}
	if err := phase("heal", func() error { return w.Heal(ctx) }); err != nil {
		return err
	}
	if err := phase("every operation ends", func() error { return t.settle(ctx, o.settle) }); err != nil {
		fmt.Println("  ", err) // I15 names what is open
	}
	e, err := w.Evidence(ctx)
	if err != nil {
		return err
	}
	report := check.Judge(e)
	t.report(e)
	after, err := usage(ctx, w)
	if err != nil {
		return err
	}
	after.print(before)
	violations := report.Violations()
	for _, v := range violations {
		fmt.Println(v)
	}
	fmt.Print(report)
	err = report.Demand(demanded()...)
	if len(violations) > 0 {
		err = errors.Join(err, fmt.Errorf("%d violations under seed %d", len(violations), o.seed))
	}
	return err
}

// demanded: a storm feeds every check, or it shows nothing.
func demanded() []string {
	out := []string{"I6/DHCP answers", "I6/questions of strangers", "I5/ramdisks' hellos and tasks", "I9/changes of tenant", "twice/tasks"}
	for _, c := range check.Checks {
		out = append(out, c.Name)
	}
	return out
}
