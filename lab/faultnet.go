package lab

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bmc/lab/vswitch"
)

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
				out = append(out, mgmtName, r.name)
				for _, s := range l.plan.servedBy(r) {
					out = append(out, oobName(s.name))
				}
			}
		}
		switch target {
		case r.name:
			out = append(out, oobName(r.name))
		case probeName(r.name):
			out = append(out, r.name)
		case relayName(r.name):
			if r.relay != nil {
				out = append(out, r.name, l.plan.racks[0].name)
			}
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

// restName stands for everybody else in a partition.
const restName = "rest"

// stations are all names that networks knows, in the plan's order.
func (l *Lab) stations() []string {
	all := []string{mgmtName, storeName}
	for _, n := range l.plan.nodes {
		all = append(all, n.name)
	}
	for _, r := range l.plan.racks {
		all = append(all, r.name)
		for _, a := range r.agents {
			all = append(all, a.name)
		}
		for _, s := range r.servers {
			all = append(all, s.name)
		}
		all = append(all, probeName(r.name))
		if r.relay != nil {
			all = append(all, relayName(r.name))
		}
	}
	return all
}

func (l *Lab) checkTargets(a *activeFault, targets []string) error {
	if _, ok := l.net.switches[a.Network]; a.Network != "" && !ok {
		return fmt.Errorf("no network %q; there are: %s", a.Network, strings.Join(slices.Sorted(maps.Keys(l.net.switches)), " "))
	}
	for _, t := range targets {
		on := l.networks(t)
		if len(on) == 0 {
			return fmt.Errorf("no %q on any network; there are: %s", t, few(l.stations()))
		}
		if a.Network != "" && !slices.Contains(on, a.Network) {
			return fmt.Errorf("%s is not on the network %s, but on: %s", t, a.Network, strings.Join(on, " "))
		}
	}
	return nil
}

func (a *activeFault) rule(sw *vswitch.Switch, r vswitch.Rule) {
	applied := sw.Apply(r)
	a.undos = append(a.undos, func() error { applied.Remove(); return nil })
	a.count = append(a.count, applied.Hits)
}

// partition cuts the first target off from the others; a target may be a list.
func (l *Lab) partition(a *activeFault) error {
	one := strings.Split(a.Targets[0], ",")
	var others []string
	for _, t := range a.Targets[1:] {
		others = append(others, strings.Split(t, ",")...)
	}
	rest := slices.Equal(others, []string{restName})
	if rest {
		others = slices.DeleteFunc(l.stations(), func(s string) bool { return slices.Contains(one, s) })
		if err := l.checkTargets(a, one); err != nil {
			return err
		}
	} else if err := l.checkTargets(a, append(slices.Clone(one), others...)); err != nil {
		return err
	}
	for _, x := range one {
		for _, y := range others {
			if x == y {
				return fmt.Errorf("%s is on both sides of the partition", x)
			}
			if !l.cut(a, x, y) && !rest {
				return fmt.Errorf("%s and %s share no network: they do not hear each other anyway", x, y)
			}
		}
	}
	return nil
}

// cut drops the frames between two stations and says whether they share a network.
func (l *Lab) cut(a *activeFault, x, y string) bool {
	shared := false
	for _, n := range l.networks(x) {
		if a.Network != "" && n != a.Network || !slices.Contains(l.networks(y), n) {
			continue
		}
		shared = true
		r := vswitch.Rule{From: x, To: y, Port: a.Port, Impairment: vswitch.Impairment{Loss: 1}, Seed: a.Seed}
		a.rule(l.net.switches[n], r)
		if !a.OneWay {
			r.From, r.To = y, x
			a.rule(l.net.switches[n], r)
		}
	}
	return shared
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
	case FaultFirewall:
		bad.Loss = 1
	case FaultDelay:
		bad.Delay, bad.Jitter = time.Duration(a.Delay), time.Duration(a.Jitter)
	case FaultReorder:
		bad.Reorder = a.Fraction
	case FaultDuplicate:
		bad.Duplicate = a.Fraction
	case FaultBlock:
		bad.BlockFor = time.Duration(a.Delay)
	}
	seed := a.Seed // each rule draws by its own
	for _, t := range a.Targets {
		for _, n := range l.networks(t) {
			if a.Network != "" && n != a.Network {
				continue
			}
			a.rule(l.net.switches[n], vswitch.Rule{From: t, Port: a.Port, Impairment: bad, Seed: seed})
			a.rule(l.net.switches[n], vswitch.Rule{To: t, Port: a.Port, Impairment: bad, Seed: seed + 1})
			seed += 2
		}
	}
	return nil
}
