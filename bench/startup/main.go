// Startup measures how long a person waits for `bmc` before it says anything: its
// help, and one server read from a node over TLS, beside etcdctl's help and get
// (etcd over TLS, too) and beside a program that does nothing.
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
	"syscall"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
	"bmc/bench/etcd"
	"bmc/bench/process"
	"bmc/bench/table"
)

type settings struct {
	runs      int
	bin, etcd string
	rows      string
}

func main() {
	var s settings
	flag.IntVar(&s.runs, "runs", 50, "runs of each, in turns")
	flag.StringVar(&s.bin, "bin", "bin", "directory of bmc and bmc-controlplane")
	flag.StringVar(&s.etcd, "etcd", "build/etcd", "etcd server; where it is missing, etcdctl get is not measured")
	flag.StringVar(&s.rows, "rows", "", "file that the table's rows are added to")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "startup:", err)
		os.Exit(1)
	}
}

// subject is one command line.
type subject struct {
	program string // "": missing
	args    []string
	env     []string
	ms      []float64
}

func (c *subject) run(ctx context.Context) error {
	if c.program == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.program, c.args...)
	cmd.Env = append([]string{"HOME=/nonexistent", "PATH=" + os.Getenv("PATH"), "ETCDCTL_API=3"}, c.env...)
	var errText limited
	cmd.Stderr = &errText
	began := time.Now()
	err := cmd.Run()
	c.ms = append(c.ms, float64(time.Since(began).Microseconds())/1000)
	if err != nil {
		return fmt.Errorf("%s %v: %w: %s", filepath.Base(c.program), c.args, err, errText)
	}
	return nil
}

// limited keeps the beginning of what is written to it.
type limited []byte

func (l *limited) Write(p []byte) (int, error) {
	*l = append(*l, p[:min(len(p), max(0, 500-len(*l)))]...)
	return len(p), nil
}

func measure(ctx context.Context, s settings) (err error) {
	dir, err := os.MkdirTemp("", "bench-startup-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c, err := cluster.Start(ctx, cluster.Config{Dir: filepath.Join(dir, "bmc"), Program: filepath.Join(s.bin, "bmc-controlplane"), Nodes: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := oneServer(ctx, c); err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(dir, "bmc", "admin.token"))
	if err != nil {
		return err
	}
	bmc := filepath.Join(s.bin, "bmc")
	nothing := subject{program: look("true")}
	help := subject{program: bmc, args: []string{"--help"}}
	get := subject{program: bmc, args: []string{"get", "r1-u1"}, env: []string{
		"BMC_ADDR=" + c.Nodes[0].Address, "BMC_CACERT=" + c.CAFile(), "BMC_TOKEN=" + string(token[:len(token)-1])}}
	theirHelp, theirGet, closeEtcd, err := peer(ctx, s, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeEtcd()) }()
	fmt.Println(process.Machine())
	load := process.Load()
	all := []*subject{&nothing, &help, &theirHelp, &get, &theirGet}
	for range s.runs {
		for _, c := range all {
			if err := c.run(ctx); err != nil {
				return err
			}
		}
	}
	rows := []table.Row{
		row("bmc --help", &help, "etcdctl --help", &theirHelp, &nothing, "under 20 ms"),
		row("bmc get, one server over TLS", &get, "etcdctl get over TLS", &theirGet, &nothing, "under 50 ms"),
	}
	for i := range rows {
		rows[i].Load = load
	}
	return errors.Join(table.Print(os.Stdout, rows), table.Append(s.rows, rows...))
}

func row(what string, ours *subject, name string, theirs, nothing *subject, aim string) table.Row {
	r := table.Row{What: what, Unit: "ms", Ours: table.Of(ours.ms), Limit: table.Of(nothing.ms), Aim: aim}
	if len(theirs.ms) == 0 {
		r.Note = name + " is not installed: skipped"
		return r
	}
	r.Peer, r.Them, r.Ratio = name, table.Of(theirs.ms), table.InTurns(ours.ms, theirs.ms)
	return r
}

// look finds a program, "" if it is missing.
func look(name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

func oneServer(ctx context.Context, c *cluster.Cluster) error {
	_, err := c.Client.Inventory.ApplyInventory(ctx, &bmcv1.ApplyInventoryRequest{
		Sizes: []*bmcv1.SizeInput{{Name: "small", MinCpuThreads: 1}},
		Racks: []*bmcv1.RackInput{{Name: "r1", Subnet: "10.1.0.0/24", Gateway: "10.1.0.1", Dns: []string{"10.1.0.1"}, Domain: "example", RangeFrom: "10.1.0.10", RangeTo: "10.1.0.99"}},
		Servers: []*bmcv1.ServerInput{{Name: "r1-u1", Rack: "r1", Macs: []string{"52:54:00:00:00:01"}, Serial: "SN1",
			Oob: &bmcv1.OOBInput{Protocol: "ipmi", Address: "10.2.0.1", Username: "admin", Password: "secret"}}},
	})
	if err != nil {
		return fmt.Errorf("make a server: %w", err)
	}
	return nil
}

// peer is etcdctl, and an etcd for it.
func peer(ctx context.Context, s settings, dir string) (help, get subject, closer func() error, err error) {
	closer = func() error { return nil }
	ctl := look("etcdctl")
	if ctl == "" {
		return help, get, closer, nil
	}
	help = subject{program: ctl, args: []string{"--help"}}
	if _, err := os.Stat(s.etcd); err != nil {
		return help, get, closer, nil //nolint:nilerr // it is said in the row
	}
	e, err := etcd.Start(ctx, etcd.Config{Program: s.etcd, Dir: filepath.Join(dir, "etcd"), Members: 1, TLS: true})
	if err != nil {
		return help, get, closer, err
	}
	url, ca := e.Endpoint(e.Members[0])
	with := []string{"--endpoints", url, "--cacert", ca}
	put := subject{program: ctl, args: append([]string{"put", "r1-u1", "a value"}, with...)}
	if err := put.run(ctx); err != nil {
		return help, get, e.Close, errors.Join(err, e.Close())
	}
	get = subject{program: ctl, args: append([]string{"get", "r1-u1"}, with...)}
	return help, get, e.Close, nil
}
