// Plane measures the control plane's commits and reads beside etcd and PostgreSQL:
// real processes on loopback, the same disk, in turns.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"bmc/bench/process"
	"bmc/bench/table"
)

type options struct {
	only     []string
	clients  []int
	growth   []int
	servers  int
	turns    int
	length   time.Duration // of one run
	dir      string
	keep     bool
	program  string
	etcd     string
	logStore string
	rows     string
	load     float64
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "echo" { // the limit's server: limit.go
		fmt.Fprintln(os.Stderr, "Error:", serveEcho(os.Args[2:]))
		os.Exit(1)
	}
	process.Main(parse, run)
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("plane", flag.ContinueOnError)
	only := f.String("only", "commit,reads,list", "what to measure: commit, reads, list, growth")
	clients := f.String("clients", "1,64,256", "commit, reads: clients, each with a connection of its own and one call at a time")
	growth := f.String("growth", "100,1000,10000,40000", "growth: servers at which costs are measured, ascending")
	f.IntVar(&o.servers, "servers", 40000, "list: how many servers")
	f.IntVar(&o.turns, "turns", 5, "runs of each system for each figure, in turns")
	f.DurationVar(&o.length, "length", 3*time.Second, "of one run")
	f.StringVar(&o.dir, "dir", "build/bench", "where the data go: not on tmpfs")
	f.BoolVar(&o.keep, "keep", false, "keep data and logs")
	f.StringVar(&o.program, "controlplane", "bin/bmc-controlplane", "program to measure")
	f.StringVar(&o.etcd, "etcd", "build/etcd", "commit, reads, list: etcd server; empty: measure without it")
	f.StringVar(&o.logStore, "log-store", "", "reads, list, growth: log store of our nodes: boltdb or wal; empty: the product's default (commit measures both)")
	f.StringVar(&o.rows, "rows", "", "file to which the rows of the table go")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.only = strings.Split(*only, ",")
	if err := o.fits(f); err != nil {
		return o, err
	}
	if o.clients, err = numbers(*clients); err != nil {
		return o, fmt.Errorf("-clients: %w", err)
	}
	if o.growth, err = numbers(*growth); err != nil {
		return o, fmt.Errorf("-growth: %w", err)
	}
	if !slices.IsSorted(o.growth) {
		return o, errors.New("-growth: servers are only added: give ascending numbers")
	}
	if o.turns < 1 || o.length < 100*time.Millisecond || o.servers < 1 {
		return o, errors.New("-turns and -servers must be positive, -length 100ms or more")
	}
	return o, nil
}

// parts are what can be measured, and the flags that only some of them heed.
var parts = map[string][]string{
	"commit": {"clients", "etcd"}, "reads": {"clients", "etcd", "log-store"},
	"list": {"servers", "etcd", "log-store"}, "growth": {"growth", "log-store"},
}

// fits refuses an unknown part, and a flag that no part asked for would heed.
func (o options) fits(f *flag.FlagSet) (err error) {
	heeded := map[string]bool{"only": true, "turns": true, "length": true, "dir": true, "keep": true, "controlplane": true, "rows": true}
	for _, p := range o.only {
		flags, ok := parts[p]
		if !ok {
			return fmt.Errorf("-only: there is no %q: commit, reads, list, growth", p)
		}
		for _, name := range flags {
			heeded[name] = true
		}
	}
	f.Visit(func(f *flag.Flag) {
		if !heeded[f.Name] {
			err = errors.Join(err, fmt.Errorf("-%s does nothing with -only %s", f.Name, strings.Join(o.only, ",")))
		}
	})
	return err
}

func numbers(s string) (out []int, err error) {
	for _, t := range strings.Split(s, ",") {
		n, err := strconv.Atoi(t)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is not a positive number", t)
		}
		out = append(out, n)
	}
	return out, nil
}

func run(ctx context.Context, o options) error {
	return process.In(o.dir, "plane", o.keep, func(dir string) error {
		o.load = process.Load()
		for _, part := range []struct {
			name string
			run  func(context.Context, string) ([]table.Row, error)
		}{{"commit", o.commits}, {"reads", o.reads}, {"list", o.lists}, {"growth", o.costs}} {
			if !slices.Contains(o.only, part.name) {
				continue
			}
			rows, err := part.run(ctx, filepath.Join(dir, part.name))
			for i := range rows {
				rows[i].Load = o.load
			}
			if err = errors.Join(err, table.Append(o.rows, rows...)); err != nil {
				return fmt.Errorf("%s: %w", part.name, err)
			}
		}
		return nil
	})
}
