// All runs every measurement in a short form and prints one table: ours, the peer,
// the limit, the ratio. Each is a target of the Makefile, given its arguments in
// BENCH, that adds its rows to a file; one that fails, or that this tree does not
// have, is said and the others go on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"bmc/bench/process"
	"bmc/bench/table"
)

// measurement is one call of `make bench-<target>`.
type measurement struct {
	target      string
	short, full string        // arguments; full is empty where the defaults are meant
	limit       time.Duration // of the short form
}

// measurements in the order of the table. Together the short ones take about 35
// minutes on two cores.
var measurements = []measurement{
	{"arrive", "-short", "", 16 * time.Minute},
	{"netboot", "-rounds 3 -length 400ms", "", 4 * time.Minute},
	{"image", "-rounds 2", "", 4 * time.Minute},
	{"commit", "-turns 3 -length 2s", "", 6 * time.Minute},
	{"reads", "-turns 3 -length 1s", "", 6 * time.Minute},
	{"growth", "-turns 2 -length 1s", "", 4 * time.Minute},
	{"oob", "-rounds 3", "-rounds 9", 2 * time.Minute},
	{"oob", "-memory 1000", "-memory 1000", 3 * time.Minute},
	{"failover", "-kills 10 -budget 3m", "", 5 * time.Minute},
	{"startup", "-runs 20", "", 2 * time.Minute},
	{"scale", "-servers 10000 -entries 5000 -repeat 1 -flips 3 -budget 4m", "", 5 * time.Minute},
}

const fullLimit = time.Hour // of one in its full form

func main() {
	rows := flag.String("rows", "build/bench.jsonl", "file for the rows; what is in it before is lost")
	only := flag.String("only", "", "targets to measure, by comma; empty: all")
	full := flag.Bool("full", os.Getenv("BENCH_FULL") != "", "the long forms, an hour and more (BENCH_FULL=1)")
	budget := flag.Duration("budget", 40*time.Minute, "of the short forms: what has not begun by then is left out")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *rows, *only, *full, *budget); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, file, only string, full bool, budget time.Duration) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)); err != nil { //nolint:gosec // for people to read
		return err
	}
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		return fmt.Errorf("run it where the Makefile is: %w", err)
	}
	machine := process.Machine()
	began := time.Now()
	var failed []error
	for _, m := range measurements {
		if only != "" && !slices.Contains(strings.Split(only, ","), m.target) {
			continue
		}
		note := ""
		switch {
		case ctx.Err() != nil:
			note = "interrupted"
		case !strings.Contains(string(makefile), "\nbench-"+m.target+":"):
			note = "not in this tree: skipped"
		case !full && time.Since(began) > budget:
			note = fmt.Sprintf("no time left of %v: skipped", budget)
		default:
			if err := m.run(ctx, file, full); err != nil {
				failed = append(failed, err)
				note = "failed: " + err.Error()
			}
		}
		if note != "" {
			if err := table.Append(file, table.Row{What: m.target, Note: note}); err != nil {
				return err
			}
		}
	}
	all, err := table.Read(file)
	if err != nil {
		return err
	}
	fmt.Printf("\n%s\n%d minutes; rows in %s\n\n", machine, int(time.Since(began).Minutes()+0.5), file)
	return errors.Join(append(failed, table.Print(os.Stdout, all))...)
}

// run makes the target, and ends whatever it has started when its time is over.
func (m measurement) run(parent context.Context, file string, full bool) error {
	args, limit := m.short, m.limit
	if full {
		args, limit = m.full, fullLimit
	}
	fmt.Printf("\n== bench-%s %s\n", m.target, args)
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "make", "--no-print-directory", "bench-"+m.target, "BENCH="+strings.TrimSpace(args+" -rows "+file))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) } // all of its group
	cmd.WaitDelay = 20 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what is left of it
		if parent.Err() != nil {
			return fmt.Errorf("bench-%s: interrupted", m.target)
		}
		return fmt.Errorf("bench-%s: not done in %v", m.target, limit)
	}
	if err != nil {
		return fmt.Errorf("bench-%s: %w", m.target, err)
	}
	return nil
}
