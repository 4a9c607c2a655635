// Command scale measures a cluster of real processes with many servers and a
// long log: restart, snapshot, restore, write latency meanwhile, memory.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"bmc/bench/cluster"
	"bmc/bench/measure"
	"bmc/bench/process"
	"bmc/bench/table"
)

type options struct {
	nodes, servers, writers, repeat, flips int
	entries                                uint64
	dir, program, rows                     string
	keep                                   bool
	budget                                 time.Duration
	recorded                               *recorded
	figures                                *figures
}

func main() {
	var o options
	flag.IntVar(&o.nodes, "nodes", 3, "control-plane nodes")
	flag.IntVar(&o.servers, "servers", 40000, "servers in the inventory")
	flag.Uint64Var(&o.entries, "entries", 100000, "log entries before the restart")
	flag.IntVar(&o.writers, "writers", 8, "clients that write while snapshots are taken; eight times as many fill the log")
	flag.IntVar(&o.repeat, "repeat", 3, "times that restart, save and restore are measured")
	flag.IntVar(&o.flips, "flips", 25, "places in a snapshot at which one bit is turned over")
	flag.StringVar(&o.dir, "dir", "build/bench", "where the data go: not on tmpfs")
	flag.StringVar(&o.program, "controlplane", "bin/bmc-controlplane", "program to measure")
	flag.StringVar(&o.rows, "rows", "", "file to which the rows of the table go")
	flag.BoolVar(&o.keep, "keep", false, "keep data and logs")
	flag.DurationVar(&o.budget, "budget", 30*time.Minute, "give up after this time")
	flag.Parse()
	o.recorded, o.figures = newRecorded(), &figures{servers: o.servers, load: process.Load()}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, o.budget)
	err := run(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	kind, err := process.Filesystem(o.dir)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "scale-*")
	if err != nil {
		return err
	}
	if !o.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	fmt.Printf("Machine: %s\nData on: %s\n%d nodes, %d servers, %d log entries\n", process.Machine(), kind, o.nodes, o.servers, o.entries)
	c, err := cluster.Start(ctx, cluster.Config{Dir: dir, Program: o.program, Nodes: o.nodes})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for _, part := range []func(context.Context, *cluster.Cluster) error{o.longLog, o.inventory,
		func(ctx context.Context, c *cluster.Cluster) error {
			return o.snapshots(ctx, c, filepath.Join(dir, "snapshot"))
		}} {
		if err := part(ctx, c); err != nil {
			return err
		}
	}
	if err := o.restarts(ctx, c, "with all of them"); err != nil {
		return err
	}
	return errors.Join(o.recorded.judge(ctx, c), table.Append(o.rows, o.figures.rows()...))
}

// longLog comes first: two minutes after its start a node may take a snapshot,
// and then has less to replay.
func (o options) longLog(ctx context.Context, c *cluster.Cluster) error {
	d, writes, err := fillLog(ctx, c, o.entries, 8*o.writers, o.recorded)
	if err != nil {
		return fmt.Errorf("fill the log: %w", err)
	}
	fmt.Printf("log: %d writes by %d clients in %.1f s, %.0f/s\n", writes, 8*o.writers, d.Seconds(), float64(writes)/d.Seconds())
	return o.restarts(ctx, c, fmt.Sprintf("before them, a log of %d entries", o.entries))
}

func (o options) restarts(ctx context.Context, c *cluster.Cluster, when string) error {
	for i := range o.repeat {
		r, err := restart(ctx, c, i)
		if err != nil {
			return fmt.Errorf("restart: %w", err)
		}
		o.figures.note("s", r.answers.Seconds(), "restart, %s", when)
		fmt.Printf("restart: serves %.2f s after exec (%d entries after its snapshot), %d MiB resident\n", r.answers.Seconds(), r.replay, r.rss>>20)
	}
	return nil
}

func (o options) inventory(ctx context.Context, c *cluster.Cluster) error {
	d, err := c.Fill(ctx, 0, o.servers)
	if err != nil {
		return err
	}
	fmt.Printf("inventory: %d servers in %.1f s, %.0f/s\n", o.servers, d.Seconds(), float64(o.servers)/d.Seconds())
	for _, n := range c.Nodes {
		now, peak := process.RSS(n.Child().PID())
		o.figures.note("MiB", float64(now>>20), "memory of a node")
		fmt.Printf("memory: %s has %d MiB resident, %d MiB at its peak\n", n.Name, now>>20, peak>>20)
	}
	return nil
}

func (o options) snapshots(ctx context.Context, c *cluster.Cluster, path string) error {
	if err := o.saveUnderLoad(ctx, c, path); err != nil {
		return err
	}
	for range o.repeat {
		if err := o.saveAndRestore(ctx, c, path); err != nil {
			return err
		}
	}
	if err := o.restoreUnderLoad(ctx, c, path); err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, _, _, err := agreed(ctx, c)
	if err != nil {
		return err
	}
	if err := flips(ctx, c.Client, data, o.flips); err != nil {
		return err
	}
	after, _, _, err := agreed(ctx, c)
	if err != nil {
		return err
	}
	fmt.Printf("flipped bit: %d of %d damaged snapshots refused by inspect, one by restore; revision %d before, %d after\n", o.flips, o.flips, before, after)
	return nil
}

// saveUnderLoad compares the latency of writes, and the time of Apply in all
// nodes, without and with snapshots.
func (o options) saveUnderLoad(ctx context.Context, c *cluster.Cluster, path string) error {
	w, err := o.recorded.start(ctx, c, o.writers, "snap", 0)
	if err != nil {
		return err
	}
	applies := applies{c: c}
	if err := applies.begin(ctx); err != nil {
		return errors.Join(err, w.stop())
	}
	t := time.NewTimer(5 * time.Second)
	select {
	case <-t.C:
	case <-ctx.Done():
		t.Stop()
	}
	fmt.Printf("writes, %d clients, alone: %s\n", o.writers, measure.Line(w.cut()))
	if err := applies.print(ctx, "alone"); err != nil {
		return errors.Join(err, w.stop())
	}
	for range o.repeat {
		size, d, err := save(ctx, c.Client, path)
		if err != nil {
			return errors.Join(fmt.Errorf("save: %w", err), w.stop())
		}
		fmt.Printf("save under load: %.2f MB in %.2f s; writes meanwhile: %s\n", float64(size)/1e6, d.Seconds(), measure.Line(w.cut()))
		if err := applies.print(ctx, "while a snapshot is saved"); err != nil {
			return errors.Join(err, w.stop())
		}
	}
	return w.stop()
}

// restoreUnderLoad restores what was just saved while clients write. A restore
// undoes what was acknowledged after the snapshot: their writes are timed, and in
// no history.
func (o options) restoreUnderLoad(ctx context.Context, c *cluster.Cluster, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	w, err := startWriters(ctx, c, o.writers, "undone", 0, nil)
	if err != nil {
		return err
	}
	applies := applies{c: c}
	restores, err := c.Histogram(ctx, "bmc_restore_seconds")
	if err = errors.Join(err, applies.begin(ctx)); err != nil {
		return errors.Join(err, w.stop())
	}
	for range o.repeat {
		began := time.Now()
		if _, err := restore(ctx, c.Client, data); err != nil {
			return errors.Join(fmt.Errorf("restore under load: %w", err), w.stop())
		}
		took := time.Since(began)
		fmt.Printf("restore under load: %.2f s; writes meanwhile: %s, %d without an acknowledgement\n", took.Seconds(), measure.Line(w.cut()), w.failures())
		if err := applies.print(ctx, "while a snapshot is restored"); err != nil {
			return errors.Join(err, w.stop())
		}
	}
	after, err := c.Histogram(ctx, "bmc_restore_seconds")
	fmt.Printf("a node's restore itself, in which it applies nothing: %s\n", after.Since(restores))
	return errors.Join(err, w.stop())
}

// applies reads the nodes' own measurement of Apply, phase by phase.
type applies struct {
	c   *cluster.Cluster
	was cluster.Histogram
}

func (a *applies) begin(ctx context.Context) (err error) {
	a.was, err = a.c.Histogram(ctx, "bmc_apply_seconds")
	return err
}

func (a *applies) print(ctx context.Context, when string) error {
	was := a.was
	if err := a.begin(ctx); err != nil {
		return err
	}
	fmt.Printf("Apply of a batch, %s: %s\n", when, a.was.Since(was))
	return nil
}

// saveAndRestore wants the hash of the state in the file, and of every node's
// after the restore.
func (o options) saveAndRestore(ctx context.Context, c *cluster.Cluster, path string) error {
	k, err := saveQuiet(ctx, c, path)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	began := time.Now()
	got, err := restore(ctx, c.Client, data)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	took := time.Since(began)
	_, _, spread, err := agreed(ctx, c)
	if err != nil {
		return err
	}
	o.figures.note("s", k.took.Seconds(), "snapshot saved")
	o.figures.note("s", (took + spread).Seconds(), "restored, all nodes equal")
	fmt.Printf("save: %.2f MB in %.2f s (hash %x, as the nodes'); inspect %.2f s; restore %.2f s, all nodes equal %.2f s later (generation %d)\n",
		float64(k.size)/1e6, k.took.Seconds(), k.hash[:6], k.inspected.Seconds(), took.Seconds(), spread.Seconds(), got.GetGeneration())
	return nil
}

// kept is a snapshot whose state the nodes had, too, when it was taken.
type kept struct {
	size            int64
	hash            []byte
	took, inspected time.Duration
}

// saveQuiet saves again when a deadline or the like has changed the state
// between the look at the nodes and the save.
func saveQuiet(ctx context.Context, c *cluster.Cluster, path string) (k kept, err error) {
	for range 20 {
		revision, hash, _, err := agreed(ctx, c)
		if err != nil {
			return k, err
		}
		if k.size, k.took, err = save(ctx, c.Client, path); err != nil {
			return k, fmt.Errorf("save: %w", err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return k, err
		}
		began := time.Now()
		info, err := inspect(ctx, c.Client, data)
		if err != nil {
			return k, fmt.Errorf("inspect: %w", err)
		}
		k.hash, k.inspected = hash, time.Since(began)
		if info.GetRevision() != revision {
			continue
		}
		if !bytes.Equal(info.GetStateHash(), hash) {
			return k, fmt.Errorf("at revision %d the snapshot has hash %x, the nodes %x", revision, info.GetStateHash(), hash)
		}
		return k, nil
	}
	return k, errors.New("the state was never quiet while it was saved")
}
