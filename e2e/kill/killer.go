package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/chaos/check"
	"bmc/chaos/history"
	"bmc/chaos/run"
	"bmc/lab"
	"bmc/metal"
)

// Bounds.
const (
	fireWait     = 6 * time.Minute // of one kill: a step that boots, twice
	operationFor = 15 * time.Minute
	takeoverWait = 45 * time.Second
)

// demanded are the checks that a QEMU machine's life has to feed: I10 has light
// machines' own record alone to go by.
var demanded = []string{"I1", "I2", "I3", "I4", "I5", "I6/DHCP answers", "I7", "I8", "I9", "I12", "I14", "I15", "twice/power commands", "twice/tasks"}

// killer goes through the passes and keeps what the end's report needs.
type killer struct {
	world *run.World
	image string

	rows   int
	silent int // kills that never happened
	wrong  int // that met somebody else than they were for
	bad    int // operations that did not succeed

	takeovers []takeover
}

// takeover is a kill of the acting agent whose work another one went on with.
type takeover struct {
	agents []string // that were killed, by name
	at     time.Time
	lease  time.Duration // until another agent had the lease
	act    time.Duration // until that one's first report was in the log, or a controller heard of it
}

// fired is a kill that happened.
type fired struct {
	kill
	at          time.Time
	dead        []string
	alive       time.Time // when all were last seen alive before it
	leaderAlive time.Time // of the leader, where it was killed after the agent
	wrong       string    // who it should have met; "" when it did
}

func header() {
	fmt.Printf("\n%-8s %-13s %-13s %-7s %-7s %-6s %-14s %-9s %9s  %s\n", "op", "step", "record", "victim", "when", "fired", "killed", "started", "went on", "controller was told")
}

func (k *killer) row(f *fired, went time.Duration, told string) {
	k.rows++
	started := "at once"
	if f.late {
		started = "later"
	}
	yes, killed, secs := "yes", strings.Join(f.dead, "+"), fmt.Sprintf("%.1f s", went.Seconds())
	if f.wrong != "" {
		k.wrong++
		yes, told = "WRONG", f.wrong+"; "+told
	}
	if f.at.IsZero() {
		k.silent++
		yes, killed, secs, started = "NO", "", "", ""
	}
	fmt.Printf("%-8s %-13s %-13s %-7s %-7s %-6s %-14s %-9s %9s  %s\n", f.op, f.step, f.record, f.victim, f.when, yes, killed, started, secs, told)
}

// pass walks a server through its life while its kills happen, then checks.
func (k *killer) pass(ctx context.Context, n int, p pass) ([]check.Violation, error) {
	name := fmt.Sprintf("web-%d", n+1)
	c, err := k.world.Client(n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }() // its calls are over
	began := time.Now()
	reads, stopReads := context.WithCancel(ctx)
	var reader sync.WaitGroup
	var readErr error
	reader.Go(func() { readErr = k.reads(reads, n, name) })
	defer reader.Wait()
	defer stopReads()
	ops := operations
	if p.warm {
		if err := k.warm(ctx, "all"); err != nil {
			return nil, err
		}
		ops = warmOperations
	}
	active := true
	for _, o := range ops {
		if o.op == "restart" && !active {
			fmt.Printf("%-8s not tried: there is no active server; %d kills are left out\n", o.op, len(p.kills[o.op]))
			k.silent += len(p.kills[o.op])
			continue
		}
		create := func() (history.Call, error) {
			return c.Create(ctx, &bmcv1.CreateServerRequest{Name: name, Image: k.image, SshKeys: []string{k.world.Key}})
		}
		ask := map[string]func() (history.Call, error){
			"create": create,
			opWarm:   create,
			"restart": func() (history.Call, error) {
				return c.Restart(ctx, &bmcv1.RestartServerRequest{Ref: name})
			},
			"destroy": func() (history.Call, error) {
				return c.Destroy(ctx, &bmcv1.DestroyServerRequest{Ref: name})
			},
		}[o.op]
		if active, err = k.operation(ctx, o.op, p.kills[o.op], ask); err != nil {
			return nil, fmt.Errorf("%s in %s: %w", o.op, p, err)
		}
		if o.op == opWarm {
			if err := k.warm(ctx, "none"); err != nil { // who is given back is not warmed again
				return nil, err
			}
		}
		for _, read := range []func() (history.Call, error){func() (history.Call, error) { return c.Get(ctx, name) }, func() (history.Call, error) { return c.List(ctx) }} {
			if _, err := read(); err != nil && metal.CodeOf(err) != metal.CodeNotFound {
				return nil, err
			}
		}
	}
	if err := k.world.Heal(ctx); err != nil {
		return nil, err
	}
	stopReads()
	if reader.Wait(); readErr != nil {
		return nil, readErr
	}
	e, err := k.world.Evidence(ctx)
	if err != nil {
		return nil, err
	}
	k.measure(e)
	report := check.Judge(e)
	fmt.Printf("-- %s: %.0f s\n", p, time.Since(began).Seconds())
	return report.Violations(), show(report, demanded...)
}

// operation starts one and has each of its kills happen in turn. It says whether
// the operation succeeded.
func (k *killer) operation(ctx context.Context, op string, kills []kill, ask func() (history.Call, error)) (bool, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, operationFor, fmt.Errorf("%s took longer than %s", op, operationFor))
	defer cancel()
	began := time.Now()
	points, err := k.arm(ctx, kills)
	if err != nil {
		return false, err
	}
	call, err := ask()
	if err != nil {
		return false, err
	}
	var last *fired
	since := func(f *fired) {
		if last != nil {
			k.row(last, time.Since(last.at), k.told(ctx, last.at))
		}
		last = f
	}
	for len(kills) > 0 {
		f, err := k.await(ctx, kills[0], call.Operation)
		if err != nil {
			return false, err
		}
		kills = kills[1:]
		if f.at.IsZero() {
			since(nil)
			k.row(f, 0, "")
		} else {
			since(f)
			if f.victim == victimBoth {
				if err := k.killLeader(ctx, f); err != nil {
					return false, err
				}
			}
			if err := k.verify(ctx, f); err != nil {
				return false, err
			}
		}
		if err := k.world.Lab.Heal(ctx, points[0].ID); err != nil {
			return false, err
		}
		if points = points[1:]; len(points) == 0 {
			if points, err = k.arm(ctx, kills); err != nil { // while the victim is still dead
				return false, err
			}
		}
		if err := k.revive(ctx, f); err != nil {
			return false, err
		}
	}
	ended, err := k.world.Wait(ctx, call.Operation)
	since(nil)
	if err != nil {
		return false, err
	}
	if ended.GetState() != string(metal.OperationSucceeded) {
		k.bad++
	}
	fmt.Printf("%-8s ended: %s after %.1f s %s\n", op, ended.GetState(), time.Since(began).Seconds(), ended.GetFailure().GetMessage())
	return ended.GetState() == string(metal.OperationSucceeded), nil
}

// arm makes the next kill's point fire at whoever hits it first, and at nobody
// else: a record of the log comes to the leader's first, then to the others'. Of
// leaders it arms all that are left, each by the one before: the next leader is there,
// and may have its record, before anybody could arm anything.
func (k *killer) arm(ctx context.Context, kills []kill) ([]lab.Fault, error) {
	if len(kills) > 0 && kills[0].victim != victimLeader {
		kills = kills[:1]
	}
	token := func(i int) string { return filepath.Join(k.world.Dir, fmt.Sprintf("token-%d", i)) }
	var out []lab.Fault
	for i, kl := range kills {
		point, nodes := kl.point()
		who, err := k.world.Agents(ctx, "r1")
		if nodes {
			who, err = k.world.Nodes(ctx)
		}
		if err != nil {
			return nil, err
		}
		name := token(i)
		if i+1 < len(kills) {
			name += ">" + token(i+1)
		}
		f, err := k.world.Lab.Fault(ctx, lab.FaultSpec{Kind: lab.FaultPoint, Targets: who, Point: point, Action: "token " + name + " kill", Seed: 1})
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, os.WriteFile(token(0), nil, 0o600)
}

// await returns when the armed kill has happened, or the operation has ended, or
// gone on to a later step, without it.
func (k *killer) await(ctx context.Context, want kill, operation string) (*fired, error) {
	f := &fired{kill: want, alive: time.Now()}
	limit, cancel := context.WithTimeout(ctx, fireWait)
	defer cancel()
	asked, passed := time.Now(), 0
	plan := metal.Plan(want.kind)
	err := run.Until(limit, "the kill at "+want.name(), func(ctx context.Context) (bool, error) {
		looked := time.Now()
		dead, err := k.world.Ended(ctx)
		if err != nil {
			return false, err
		}
		if len(dead) > 0 {
			f.at, f.dead = time.Now(), dead
			if want.victim == victimLeader && len(dead) > 1 { // its successor is the next kill's already
				leader, err := k.led(ctx, f.alive)
				if f.dead = []string{leader}; err != nil {
					return false, err
				}
			}
			return true, nil
		}
		f.alive = looked
		if time.Since(asked) < 2*time.Second {
			return false, nil
		}
		asked = time.Now()
		o, err := k.world.API.Operations.GetOperation(ctx, &bmcv1.GetOperationRequest{Id: operation})
		if err == nil && slices.Index(plan, metal.Step(o.GetStep())) > slices.Index(plan, want.step) {
			passed++ // twice: a kill at a step's end shows up after the step's
		}
		return passed > 1 || metal.OperationState(o.GetState()).Ended(), err
	})
	if err != nil && limit.Err() != nil && ctx.Err() == nil {
		return f, nil // never happened
	}
	return f, err
}

func (k *killer) killLeader(ctx context.Context, f *fired) error {
	leader, err := k.world.Leader(ctx)
	if err != nil {
		return err
	}
	f.leaderAlive = time.Now()
	if _, err := k.world.Lab.Fault(ctx, lab.FaultSpec{Kind: lab.FaultKill, Targets: []string{leader}, Seed: 1}); err != nil {
		return err
	}
	f.dead = append(f.dead, leader)
	return nil
}

// revive starts the dead again: at once, or when others do their work.
func (k *killer) revive(ctx context.Context, f *fired) error {
	if f.at.IsZero() {
		return nil
	}
	if f.late {
		if err := k.takenOver(ctx, f); err != nil {
			return err
		}
		if f.victim != victimLeader {
			k.takeovers = append(k.takeovers, takeover{agents: f.dead, at: f.at})
		}
	}
	var errs []error
	for _, d := range f.dead {
		errs = append(errs, k.world.Lab.StartDaemon(ctx, d))
	}
	return errors.Join(errs...)
}

// takenOver returns when others do the work of the dead, or the next kill, which
// is armed, has met those already: without the dead there may be no quorum.
func (k *killer) takenOver(ctx context.Context, f *fired) error {
	ctx, cancel := context.WithTimeout(ctx, takeoverWait)
	defer cancel()
	return run.Until(ctx, "a takeover", func(ctx context.Context) (bool, error) {
		ended, err := k.world.Ended(ctx)
		if err != nil || slices.ContainsFunc(ended, func(d string) bool { return !slices.Contains(f.dead, d) }) {
			return err == nil, err
		}
		holder, _, err := k.world.Holder(ctx, "r1") // by the word of a leader
		return holder != "" && !slices.Contains(f.dead, holder), err
	})
}

// told is what the machine's controller was told since then, in short.
func (k *killer) told(ctx context.Context, since time.Time) string {
	words, err := check.Told(k.world.Harness.Dir(), since)
	if err != nil {
		return err.Error()
	}
	return strings.Join(words, " ")
}

// measure finds in the audit and in the controllers' record how long each
// takeover took.
func (k *killer) measure(e *check.Evidence) {
	names := map[string]string{}
	for _, a := range e.Agents {
		names[a.ID] = a.Name
	}
	for i := range k.takeovers {
		t := &k.takeovers[i]
		if t.act > 0 {
			continue // of an earlier pass
		}
		for _, a := range e.Audit {
			if a.Outcome != "" || a.Time.Before(t.at) || slices.Contains(t.agents, names[a.AgentID]) {
				continue
			}
			if a.Command == "grant_lease" && t.lease == 0 {
				t.lease = a.Time.Sub(t.at)
			}
			if a.Command == "report_step" && t.act == 0 {
				t.act = a.Time.Sub(t.at)
			}
		}
		for _, c := range e.Commands {
			from, err := netip.ParseAddrPort(c.From)
			name := e.Sources[from.Addr()]
			if err != nil || c.Time.Before(t.at) || name == "" || slices.Contains(t.agents, name) {
				continue
			}
			if d := c.Time.Sub(t.at); t.act == 0 || d < t.act {
				t.act = d
			}
		}
	}
}

// report sums up.
func (k *killer) report() {
	fmt.Printf("\n%d kills, %d of them never happened, %d met another than who led or held the lease, %d operations did not end as promised\n", k.rows, k.silent, k.wrong, k.bad)
	var lease, act []time.Duration
	for _, t := range k.takeovers {
		if t.lease > 0 {
			lease = append(lease, t.lease)
		}
		if t.act > 0 {
			act = append(act, t.act)
		}
	}
	run.Percentiles("from the agent's death until another had the lease", lease)
	run.Percentiles("from the agent's death until another's first report or controller command", act)
}
