package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"bmc/lab/virtualbmc"
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
	all    []*activeFault
	closed bool
}

type activeFault struct {
	Fault
	undos []func() error
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

// close undoes all faults and ends their log. No more can be asked for.
func (f *faults) close() error {
	close(f.quit)
	f.wg.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	var errs []error
	for _, a := range slices.Backward(f.all) {
		errs = append(errs, f.heal(a))
	}
	return errors.Join(append(errs, f.log.Close())...)
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
	line, err := json.Marshal(faultEvent{Time: time.Now().UTC(), Event: event, ID: a.ID, FaultSpec: a.FaultSpec, Fired: a.Fired})
	if err == nil {
		_, err = f.log.Write(append(line, '\n'))
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
	a := &activeFault{Fault: Fault{ID: fmt.Sprintf("f%d", len(f.all)+1), FaultSpec: spec, Applied: time.Now().UTC()}}
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
	for _, h := range slices.Backward(a.undos) {
		errs = append(errs, h())
	}
	return errors.Join(errs...)
}

// Heal undoes a fault, or "all" of them, newest first. A killed daemon runs again
// after it; a failpoint's is started by StartDaemon. A healed fault is left alone.
func (l *Lab) Heal(id string) error {
	f := l.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	var errs []error
	for _, a := range slices.Backward(f.all) {
		ids = append(ids, a.ID)
		if a.ID == id || id == "all" {
			errs = append(errs, f.heal(a))
		}
	}
	if id != "all" && !slices.Contains(ids, id) {
		slices.Reverse(ids)
		return fmt.Errorf("there is no fault %q; there are: %s", id, strings.Join(append(ids, "all"), " "))
	}
	return errors.Join(errs...)
}

// heal undoes one fault, once. The lock is held.
func (f *faults) heal(a *activeFault) error {
	if a.Healed != nil {
		return nil
	}
	f.look(a)
	err := a.undo()
	now := time.Now().UTC()
	a.Healed = &now
	if a.timer != nil {
		a.timer.Stop()
	}
	f.write(a, "healed")
	return err
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
		return l.harmAll(a)
	case isBMC:
		return l.injectAll(a, kind)
	}
	return l.rogueDHCP(ctx, a)
}

// injectAll makes controllers misbehave.
func (l *Lab) injectAll(a *activeFault, kind string) error {
	for i, t := range a.Targets {
		b, err := l.controller(t)
		if err != nil {
			return err
		}
		in := b.Inject(virtualbmc.Fault{Kind: kind, Fraction: a.Fraction, Latency: time.Duration(a.Delay), Seed: a.Seed + uint64(i)})
		a.undos = append(a.undos, func() error { in.Remove(); return nil })
		a.count = append(a.count, in.Hits)
	}
	return nil
}

func (l *Lab) controller(name string) (*virtualbmc.BMC, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for _, s := range l.servers {
		names = append(names, s.name)
		if s.name != name {
			continue
		}
		if s.bmc == nil {
			return nil, fmt.Errorf("the controller of %s is %s, which has no faults: bmc-lab up --bmc %s", name, l.cfg.BMC, BMCGo)
		}
		return s.bmc, nil
	}
	return nil, fmt.Errorf("no server %q; there are: %s", name, few(names))
}

// few is a list of names that fits into a message.
func few(names []string) string {
	const most = 24
	if len(names) <= most {
		return strings.Join(names, " ")
	}
	return fmt.Sprintf("%s and %d more: bmc-lab status", strings.Join(names[:most], " "), len(names)-most)
}
