package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"bmc/lab/virtualbmc"
	"bmc/lab/vswitch"
)

// faultPoll is how often a fault is looked at for whether it has fired.
const faultPoll = 100 * time.Millisecond

// faults are the ones of a lab, and their log.
type faults struct {
	lab  *Lab
	quit chan struct{}
	wg   sync.WaitGroup

	mu     sync.Mutex
	log    *os.File
	n      int
	all    []*activeFault
	closed bool
}

type activeFault struct {
	Fault
	heal  []func() error
	count []func() uint64
	fired bool // said so in the log
	timer *time.Timer
}

func openFaults(l *Lab) (*faults, error) {
	log, err := os.OpenFile(l.cfg.path("faults.jsonl"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	f := &faults{lab: l, log: log, quit: make(chan struct{})}
	f.wg.Go(f.watch)
	return f, nil
}

// close ends all faults that are undone by the lab's end anyway: their log ends
// in order.
func (f *faults) close() error {
	close(f.quit)
	f.wg.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, a := range f.all {
		if a.timer != nil {
			a.timer.Stop()
		}
	}
	return f.log.Close()
}

func (f *faults) watch() {
	t := time.NewTicker(faultPoll)
	defer t.Stop()
	for {
		select {
		case <-f.quit:
			return
		case <-t.C:
		}
		f.mu.Lock()
		for _, a := range f.all {
			if a.Healed == nil {
				f.look(a)
			}
		}
		f.mu.Unlock()
	}
}

// look counts how often a fault has fired. The lock is held.
func (f *faults) look(a *activeFault) {
	a.Fired = 0
	for _, c := range a.count {
		a.Fired += c()
	}
	if a.Fired > 0 && !a.fired {
		a.fired = true
		f.write(a, "fired")
	}
}

func (f *faults) write(a *activeFault, event string) {
	line, err := faultEvent{time.Now().UTC(), a.ID, a.Kind, strings.Join(a.Targets, " "), a.Seed, event, a.Fired}.line()
	if err == nil {
		_, err = f.log.Write(line)
	}
	if err != nil {
		f.lab.log.Error("fault not logged", "fault", a.ID, "err", err)
	}
}

// Fault does harm until it is healed.
func (l *Lab) Fault(ctx context.Context, spec FaultSpec) (Fault, error) {
	if err := spec.validate(); err != nil {
		return Fault{}, err
	}
	f := l.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return Fault{}, os.ErrClosed
	}
	f.n++
	a := &activeFault{Fault: Fault{ID: fmt.Sprintf("f%d", f.n), FaultSpec: spec, Applied: time.Now().UTC()}}
	if err := l.apply(ctx, a); err != nil {
		return Fault{}, errors.Join(err, a.undo())
	}
	f.all = append(f.all, a)
	f.write(a, "applied")
	f.look(a)
	if spec.For > 0 {
		a.timer = time.AfterFunc(time.Duration(spec.For), func() {
			if err := l.Heal(a.ID); err != nil {
				l.log.Error("fault not healed", "fault", a.ID, "err", err)
			}
		})
	}
	return a.Fault, nil
}

func (a *activeFault) undo() error {
	var errs []error
	for _, h := range a.heal {
		errs = append(errs, h())
	}
	return errors.Join(errs...)
}

// Heal undoes a fault, or "all" of them, newest first. A killed daemon is started
// again by Start, not by Heal.
func (l *Lab) Heal(id string) error {
	f := l.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	found := false
	var errs []error
	for _, a := range slices.Backward(f.all) {
		if a.ID != id && id != "all" {
			continue
		}
		found = true
		if a.Healed != nil || f.closed {
			continue
		}
		f.look(a)
		errs = append(errs, a.undo())
		now := time.Now().UTC()
		a.Healed = &now
		if a.timer != nil {
			a.timer.Stop()
		}
		f.write(a, "healed")
	}
	if !found && id != "all" {
		return fmt.Errorf("there is no fault %s: bmc-lab faults lists them", id)
	}
	return errors.Join(errs...)
}

// Faults lists all faults since the lab came up, oldest first.
func (l *Lab) Faults() []Fault {
	f := l.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Fault, 0, len(f.all))
	for _, a := range f.all {
		if a.Healed == nil {
			f.look(a)
		}
		out = append(out, a.Fault)
	}
	return out
}

func (l *Lab) apply(ctx context.Context, a *activeFault) error {
	kind, isBMC := strings.CutPrefix(a.Kind, bmcPrefix)
	switch {
	case a.Kind == FaultPartition:
		return l.partition(a)
	case slices.Contains(networkFaults, a.Kind):
		return l.impair(a)
	case slices.Contains(daemonFaults, a.Kind):
		for _, name := range a.Targets {
			if err := l.harm(a, name); err != nil {
				return err
			}
		}
		return nil
	case isBMC:
		return l.injectAll(a, kind)
	}
	return l.rogueDHCP(ctx, a)
}

// networks are the switches that a target is plugged into, by its name.
func (l *Lab) networks(target string) []string {
	var out []string
	is := func(r rackPlan) {
		for _, s := range r.servers {
			if s.name == target {
				out = append(out, r.name)
			}
		}
		for _, g := range r.agents {
			if g.name == target {
				out = append(out, mgmtName, r.name, oobName(r.name))
			}
		}
		switch target {
		case r.name:
			out = append(out, oobName(r.name))
		case probeName(r.name):
			out = append(out, r.name)
		}
	}
	for _, r := range l.plan.racks {
		is(r)
	}
	for _, n := range l.plan.nodes {
		if n.name == target {
			out = append(out, mgmtName)
		}
	}
	if target == mgmtName || target == storeName {
		out = append(out, mgmtName)
	}
	return out
}

func (l *Lab) checkTargets(a *activeFault, targets []string) error {
	if _, ok := l.net.switches[a.Network]; a.Network != "" && !ok {
		return fmt.Errorf("no network %q: %s, a rack, or a rack with -oob", a.Network, mgmtName)
	}
	for _, t := range targets {
		on := l.networks(t)
		if len(on) == 0 {
			return fmt.Errorf("no %q on any network: bmc-lab status lists what there is", t)
		}
		if a.Network != "" && !slices.Contains(on, a.Network) {
			return fmt.Errorf("%s is not on the network %s, but on: %s", t, a.Network, strings.Join(on, " "))
		}
	}
	return nil
}

func (a *activeFault) rule(sw *vswitch.Switch, r vswitch.Rule) {
	applied := sw.Apply(r)
	a.heal = append(a.heal, func() error { applied.Remove(); return nil })
	a.count = append(a.count, applied.Hits)
}

// partition cuts the first target off from the others; a target may be a list.
func (l *Lab) partition(a *activeFault) error {
	one := strings.Split(a.Targets[0], ",")
	var others []string
	for _, t := range a.Targets[1:] {
		others = append(others, strings.Split(t, ",")...)
	}
	if err := l.checkTargets(a, append(slices.Clone(one), others...)); err != nil {
		return err
	}
	cut := vswitch.Impairment{Loss: 1}
	for _, x := range one {
		for _, y := range others {
			shared := false
			for _, n := range l.networks(x) {
				if a.Network != "" && n != a.Network || !slices.Contains(l.networks(y), n) {
					continue
				}
				shared = true
				a.rule(l.net.switches[n], vswitch.Rule{From: x, To: y, Impairment: cut, Seed: a.Seed})
				if !a.OneWay {
					a.rule(l.net.switches[n], vswitch.Rule{From: y, To: x, Impairment: cut, Seed: a.Seed})
				}
			}
			if !shared {
				return fmt.Errorf("%s and %s share no network", x, y)
			}
		}
	}
	return nil
}

// impair makes the cables of the targets bad, in both ways.
func (l *Lab) impair(a *activeFault) error {
	if err := l.checkTargets(a, a.Targets); err != nil {
		return err
	}
	bad := vswitch.Impairment{}
	switch a.Kind {
	case FaultLoss:
		bad.Loss = a.Fraction
	case FaultDelay:
		bad.Delay, bad.Jitter = time.Duration(a.Delay), time.Duration(a.Jitter)
	case FaultReorder:
		bad.Reorder = a.Fraction
	case FaultDuplicate:
		bad.Duplicate = a.Fraction
	case FaultBlock:
		bad.BlockFor = time.Duration(a.Delay)
	}
	for i, t := range a.Targets {
		for _, n := range l.networks(t) {
			if a.Network != "" && n != a.Network {
				continue
			}
			seed := a.Seed + uint64(2*i)
			a.rule(l.net.switches[n], vswitch.Rule{From: t, Impairment: bad, Seed: seed})
			a.rule(l.net.switches[n], vswitch.Rule{To: t, Impairment: bad, Seed: seed + 1})
		}
	}
	return nil
}

// harm does something to a daemon.
func (l *Lab) harm(a *activeFault, name string) error {
	switch a.Kind {
	case FaultKill, FaultStop:
		sig := syscall.SIGKILL
		if a.Kind == FaultStop {
			sig = syscall.SIGSTOP
		}
		if err := l.signal(name, sig); err != nil {
			return err
		}
		a.count = append(a.count, func() uint64 { return 1 })
		if a.Kind == FaultStop {
			// It may have been killed meanwhile.
			a.heal = append(a.heal, func() error { _ = l.signal(name, syscall.SIGCONT); return nil })
		}
		return nil
	case FaultDiskFull:
		if strings.HasPrefix(name, "cp") {
			return l.failpoint(a, name, "raft/log/before", "error ENOSPC")
		}
		return l.failpoint(a, name, "agent/journal/before", "error ENOSPC")
	case FaultLogHang:
		return l.failpoint(a, name, "raft/log/before", "hang")
	}
	return l.failpoint(a, name, a.Point, a.Action)
}

// failpoint writes the file that makes a daemon's failpoint fire.
func (l *Lab) failpoint(a *activeFault, name, point, action string) error {
	if l.find(name) == nil {
		return l.noDaemon(name)
	}
	if !l.cfg.Failpoints {
		return fmt.Errorf("the daemons of this lab have no failpoints: make build-failpoints, then bmc-lab up --bin bin/failpoints")
	}
	dir := l.cfg.path("failpoints", name)
	path := filepath.Join(dir, strings.ReplaceAll(point, "/", "."))
	before := firedAt(dir, point)
	// Renamed into place, so that a daemon never reads half of it.
	if err := os.WriteFile(path+".new", []byte(action+"\n"), 0o644); err != nil {
		return err
	}
	a.heal = append(a.heal, func() error { return removeIfThere(path) })
	a.count = append(a.count, func() uint64 { return max(firedAt(dir, point), before) - before })
	return os.Rename(path+".new", path)
}

// firedAt counts how often a point has fired, by the daemon's own record.
func firedAt(dir, point string) uint64 {
	raw, err := os.ReadFile(filepath.Join(dir, "fired.jsonl"))
	if err != nil {
		return 0 // nothing has fired yet
	}
	return uint64(bytes.Count(raw, []byte(`"`+point+`"`)))
}

// injectAll makes controllers misbehave.
func (l *Lab) injectAll(a *activeFault, kind string) error {
	for i, t := range a.Targets {
		b, err := l.controller(t)
		if err != nil {
			return err
		}
		in := b.Inject(virtualbmc.Fault{Kind: kind, Fraction: a.Fraction, Latency: time.Duration(a.Delay), Seed: a.Seed + uint64(i)})
		a.heal = append(a.heal, func() error { in.Remove(); return nil })
		a.count = append(a.count, in.Hits)
	}
	return nil
}

func (l *Lab) controller(server string) (*virtualbmc.BMC, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.servers {
		if s.name == server && s.bmc != nil {
			return s.bmc, nil
		}
	}
	return nil, fmt.Errorf("no server %q with a Go controller", server)
}

func (l *Lab) noDaemon(name string) error {
	var names []string
	l.mu.Lock()
	for _, p := range l.daemons {
		names = append(names, p.name)
	}
	l.mu.Unlock()
	sort.Strings(names)
	return fmt.Errorf("no daemon %q; there are: %s", name, strings.Join(names, " "))
}
