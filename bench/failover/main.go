// Command failover measures how long acknowledged writes stop when the leader
// is killed, beside etcd with like election settings on the same disk. It
// prints what it has when it is interrupted or its time is over.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bmc/bench/process"
	"bmc/bench/table"
	"bmc/chaos/history"
	"bmc/metal"
)

type options struct {
	kills    int
	writers  int
	election []time.Duration
	pause    time.Duration
	budget   time.Duration
	attempt  time.Duration
	dir      string
	keep     bool
	ours     string
	etcd     string
	rows     string
}

func main() { process.Main(parse, run) }

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("failover", flag.ContinueOnError)
	f.IntVar(&o.kills, "kills", 100, "leader kills of each system and setting")
	f.IntVar(&o.writers, "writers", 8, "clients, each with one write under way")
	elections := f.String("election", "1s,250ms", "election timeouts to measure; heartbeats are a tenth")
	f.DurationVar(&o.pause, "pause", 5*time.Millisecond, "between two writes of one writer")
	f.DurationVar(&o.budget, "budget", 0, "stop after this time and print what there is; 0: no bound")
	f.DurationVar(&o.attempt, "etcd-attempt", 200*time.Millisecond, "how long etcd's client waits for one node")
	f.StringVar(&o.dir, "dir", "build/bench", "where the data go: not on tmpfs")
	f.BoolVar(&o.keep, "keep", false, "keep data and logs")
	f.StringVar(&o.ours, "controlplane", "bin/bmc-controlplane", "program to measure")
	f.StringVar(&o.etcd, "etcd", "build/etcd", "etcd server; empty: measure without it")
	f.StringVar(&o.rows, "rows", "", "file to which the rows of the table go")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	for _, s := range strings.Split(*elections, ",") {
		d, err := time.ParseDuration(s)
		if err != nil || d < 50*time.Millisecond {
			return o, fmt.Errorf("-election: %q is not a duration of 50ms or more", s)
		}
		o.election = append(o.election, d)
	}
	if o.kills < 1 || o.writers < 1 || o.writers > 25 {
		return o, errors.New("-kills must be positive, -writers 1 to 25")
	}
	return o, nil
}

// run measures every setting and prints one table each.
func run(ctx context.Context, o options) error {
	if o.budget > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.budget)
		defer cancel()
	}
	return process.In(o.dir, "failover", o.keep, func(dir string) error {
		defects := 0
		for i, election := range o.election {
			if ctx.Err() != nil {
				break
			}
			share := ctx
			if end, ok := ctx.Deadline(); ok { // an equal share of what is left for each setting
				var cancel context.CancelFunc
				share, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(len(o.election)-i))
				defer cancel()
			}
			d, err := o.setting(share, filepath.Join(dir, election.String()), election)
			defects += d
			if err != nil {
				return err
			}
		}
		if defects > 0 {
			return fmt.Errorf("%d acknowledged writes are not as acknowledged, or invariants are violated", defects)
		}
		return nil
	})
}

// setting measures all systems with one election timeout, kill by kill in turn; it
// returns how many acknowledged writes were found missing, and invariants violated.
func (o options) setting(ctx context.Context, dir string, election time.Duration) (defects int, err error) {
	fmt.Printf("\n== election timeout %v, %d writers, %d kills each, in turn\n", election, o.writers, o.kills)
	systems, err := o.start(ctx, dir, election)
	if err != nil {
		return 0, err
	}
	defer func() {
		for _, s := range systems {
			err = errors.Join(err, s.sys.close())
		}
	}()
	for _, s := range systems {
		fmt.Printf("%-5s %s\n", s.sys.name(), strings.Join(s.sys.settings(), "; "))
	}
	var broken error
	for k := 0; k < o.kills && broken == nil; k++ {
		for _, s := range systems {
			if broken = s.kill(ctx, k); broken != nil {
				break
			}
			if j, ok := s.sys.(judged); ok {
				if broken = j.sample(ctx); broken != nil {
					break
				}
			}
		}
	}
	if broken != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "Stopped early:", broken)
	}
	// What is printed from here on is due even when ctx has ended.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	printed(os.Stdout, systems)
	if err := table.Append(o.rows, rowsOf(election, systems)...); err != nil {
		return defects, err
	}
	for _, s := range systems {
		defects += s.check(last, os.Stdout)
		defects += s.judge(last, os.Stdout, dir)
	}
	if broken != nil && ctx.Err() == nil {
		return defects, broken
	}
	return defects, nil
}

func (o options) start(ctx context.Context, dir string, election time.Duration) (out []*measured, err error) {
	our, err := startOurs(ctx, o.ours, filepath.Join(dir, "bmc"), election)
	if err != nil {
		return nil, err
	}
	systems := []system{our}
	if o.etcd != "" {
		other, err := startEtcd(ctx, o.etcd, filepath.Join(dir, "etcd"), election, o.attempt)
		if err != nil {
			return nil, errors.Join(err, our.close())
		}
		systems = append(systems, other)
	}
	file, err := os.Create(filepath.Join(dir, "history.jsonl"))
	if err != nil {
		return nil, errors.Join(err, our.close())
	}
	rec := history.NewRecorder(file, 0)
	for i, s := range systems {
		if i > 0 {
			rec = nil // a Put has no request ID: a history cannot tell a retry from a second one
		}
		l, loadErr := startLoad(context.WithoutCancel(ctx), s, o.writers, o.pause, rec)
		err = errors.Join(err, loadErr)
		out = append(out, &measured{sys: s, load: l, file: file})
	}
	if err != nil {
		for _, m := range out {
			err = errors.Join(err, m.sys.close())
		}
		return nil, err
	}
	return out, nil
}

// refusal says whether an answer is neither an acknowledgement nor a failure to
// get one: after a lost write the next one is refused.
func refusal(err error) bool {
	return slices.Contains([]metal.Code{metal.CodeNotFound, metal.CodeNameTaken, metal.CodeInvalid,
		metal.CodeRequestReused, metal.CodeDenied, metal.CodeUnauthenticated}, metal.CodeOf(err))
}
