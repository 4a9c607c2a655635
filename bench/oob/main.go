// Oob measures how the agent reads the power of a rack's servers from their
// controllers, beside ipmitool as a user would call it. The controllers are
// OpenIPMI's ipmi_sim, a process each.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"bmc/agent/oob"
	"bmc/bench/process"
	"bmc/bench/table"
	"bmc/metal"
)

type settings struct {
	controllers int
	rounds      int
	sweeps      int
	rows        string
	servers     int    // of the agent whose memory is measured
	bin         string // where the daemons are
}

func main() {
	var s settings
	flag.IntVar(&s.controllers, "controllers", 40, "of the rack")
	flag.IntVar(&s.rounds, "rounds", 5, "runs of each, in turns")
	flag.IntVar(&s.sweeps, "sweeps", 50, "of ours, in a run")
	flag.StringVar(&s.rows, "rows", "", "file that the table's rows are added to")
	flag.IntVar(&s.servers, "memory", 0, "instead: the memory of an agent with so many servers")
	flag.StringVar(&s.bin, "bin", "bin", "directory of the daemons, for -memory")
	inside := flag.Bool("inside", false, "internal: already in a namespace")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := measure
	if s.servers > 0 {
		run = memory
		if !*inside {
			run = func(ctx context.Context, _ settings) error { return enter(ctx) }
		}
	}
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "oob:", err)
		os.Exit(1)
	}
}

// always is a lease that is held: sessions are opened as in the product.
type always struct{}

func (always) Held() (uint64, bool) { return 1, true }

// figures are readings a second, of each run.
type figures struct {
	steady, first, serial, parallel, limit []float64
	cpu                                    time.Duration // of ours, in the steady sweeps
	read                                   int           // in those
}

func measure(ctx context.Context, s settings) (err error) {
	sim, err := exec.LookPath("ipmi_sim")
	if err != nil {
		fmt.Println("ipmi_sim is not installed (package openipmi): nothing is measured")
		return table.Append(s.rows, table.Row{What: "power status of 40 BMCs", Unit: "readings/s", Note: "ipmi_sim is not installed: skipped"})
	}
	tool, err := exec.LookPath("ipmitool")
	if err != nil {
		fmt.Println("ipmitool is not installed: ours alone")
	}
	dir, err := os.MkdirTemp("", "bench-oob-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fmt.Println(process.Machine())
	load := process.Load()
	rack, err := startSims(ctx, sim, dir, s.controllers)
	defer func() { err = errors.Join(err, rack.close()) }()
	if err != nil {
		return err
	}
	var f figures
	for round := range s.rounds {
		if err := f.ours(ctx, s, rack); err != nil {
			return err
		}
		if err := f.floor(rack); err != nil {
			return err
		}
		if tool != "" {
			for width, runs := range map[int]*[]float64{1: &f.serial, s.controllers: &f.parallel} {
				if err := ipmitool(ctx, tool, rack, width, runs); err != nil {
					return err
				}
			}
		}
		fmt.Printf("round %d done\n", round+1)
	}
	rows := f.rows(s, tool)
	for i := range rows {
		rows[i].Load = load
	}
	fmt.Printf("processor of a steady reading, ours: %v\n", (f.cpu / time.Duration(f.read)).Round(100*time.Nanosecond))
	return errors.Join(table.Print(os.Stdout, rows), table.Append(s.rows, rows...))
}

// ours is a first sweep, which opens the sessions, and then those over sessions
// that stand, as the agent keeps them. The figure of a run is its median sweep's.
func (f *figures) ours(ctx context.Context, s settings, rack *sims) error {
	pool := oob.NewPool()
	defer pool.Close(context.WithoutCancel(ctx))
	var cfgs []oob.Config
	for i, port := range rack.ports {
		cfgs = append(cfgs, oob.Config{
			Server: "m" + strconv.Itoa(i), Address: "127.0.0.1:" + strconv.Itoa(port), Username: user, Password: password,
			CipherSuite: suite, Lease: always{},
		})
	}
	took, err := sweep(ctx, pool, cfgs)
	if err != nil {
		return fmt.Errorf("first sweep: %w", err)
	}
	f.first = append(f.first, rate(len(cfgs), took))
	before := processor()
	var all []time.Duration
	for range s.sweeps {
		took, err := sweep(ctx, pool, cfgs)
		if err != nil {
			return err
		}
		all = append(all, took)
	}
	f.cpu += processor() - before
	f.read += s.sweeps * len(cfgs)
	slices.Sort(all)
	f.steady = append(f.steady, rate(len(cfgs), all[len(all)/2]))
	return nil
}

func sweep(ctx context.Context, pool *oob.Pool, cfgs []oob.Config) (time.Duration, error) {
	began := time.Now()
	readings := pool.Status(ctx, cfgs)
	took := time.Since(began)
	for i, r := range readings {
		if r.Err != nil || r.Power != metal.PowerOff {
			return 0, fmt.Errorf("controller %d: %s, %w", i, r.Power, r.Err)
		}
	}
	return took, nil
}

// floor is what the controllers themselves need to answer anything at all.
func (f *figures) floor(rack *sims) error {
	var all []time.Duration
	for range 20 {
		took, err := rack.ping()
		if err != nil {
			return err
		}
		all = append(all, took)
	}
	slices.Sort(all)
	f.limit = append(f.limit, rate(len(rack.ports), all[len(all)/2]))
	return nil
}

// ipmitool asks every controller once, so many at a time.
func ipmitool(ctx context.Context, tool string, rack *sims, width int, runs *[]float64) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	began := time.Now()
	var g errgroup.Group
	g.SetLimit(width)
	for _, port := range rack.ports {
		g.Go(func() error {
			out, err := exec.CommandContext(ctx, tool, "-I", "lanplus", "-C", strconv.Itoa(suite), "-H", "127.0.0.1", "-p", strconv.Itoa(port),
				"-U", user, "-P", password, "chassis", "power", "status").CombinedOutput()
			if err != nil || string(out) != "Chassis Power is off\n" {
				return fmt.Errorf("ipmitool: %q, %w", out, err)
			}
			return nil
		})
	}
	err := g.Wait()
	*runs = append(*runs, rate(len(rack.ports), time.Since(began)))
	return err
}

func rate(n int, took time.Duration) float64 { return float64(n) / took.Seconds() }

// processor is what this process has used so far.
func processor() time.Duration {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func (f *figures) rows(s settings, tool string) []table.Row {
	row := func(what string, ours []float64, peer string, theirs []float64, aim string) table.Row {
		r := table.Row{What: what, Unit: "readings/s", Ours: table.Of(ours), Peer: peer, Them: table.Of(theirs), Ratio: table.InTurns(ours, theirs), Aim: aim}
		if tool == "" {
			r.Peer, r.Note = "", "ipmitool is not installed: skipped"
		}
		return r
	}
	power := fmt.Sprintf("power status of %d BMCs (ipmi_sim)", s.controllers)
	steady := row(power+", kept sessions", f.steady, "ipmitool, one after another", f.serial, "at least 400 x")
	steady.Limit = table.Of(f.limit)
	return []table.Row{
		steady,
		row(power+", kept sessions", f.steady, fmt.Sprintf("ipmitool, %d at once", s.controllers), f.parallel, ""),
		// Ours are opened at once, and so are those of this ipmitool.
		row(power+", sessions opened", f.first, fmt.Sprintf("ipmitool, %d at once", s.controllers), f.parallel, ""),
	}
}
