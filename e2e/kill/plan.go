package main

import (
	"path"
	"strings"

	"bmc/metal"
)

// Who is killed, and when: before a record is written, or after it was synced.
const (
	victimAgent  = "agent"
	victimLeader = "leader"
	victimBoth   = "both"

	before = "before"
	after  = "after"

	begun = "begun"
)

// kill is one row of the table: at this record of this step, this victim dies.
type kill struct {
	op     string // create, warm (a create on a server that waits in the ramdisk), restart, destroy
	kind   metal.OperationKind
	step   metal.Step
	record string // of the agent's journal, or a report's phase in the nodes' log
	victim string
	when   string
	late   bool // the victim is started again after its work was taken over, not at once
}

func (k kill) name() string {
	return strings.Join([]string{k.op, string(k.step), k.record, k.victim, k.when}, "/")
}

// point is the failpoint's name, and whether nodes have it.
func (k kill) point() (name string, nodes bool) {
	if k.victim == victimLeader {
		return "raft/log/report_step/" + string(k.step) + "/" + k.record + "/" + k.when, true
	}
	return "agent/journal/" + string(k.kind) + "/" + string(k.step) + "/" + k.record + "/" + k.when, false
}

// operations that a pass goes through.
var operations = []struct {
	op   string
	kind metal.OperationKind
}{
	{"create", metal.KindDeploy}, {"restart", metal.KindRestart}, {"destroy", metal.KindRelease},
}

// acts are the records of steps between begun and done: what is about to happen
// to the machine. They come after a takeover, too, since a kill at begun comes
// before them.
var acts = map[string]string{
	"deploy/boot-ramdisk":  "intent-on-0",
	"deploy/write-image":   "boot-granted",
	"deploy/configure":     "boot-granted",
	"deploy/boot-disk":     "boot-granted",
	"deploy/ready":         "intent-wait",
	"restart/stop":         "intent-soft",
	"restart/ready":        "intent-wait",
	"release/boot-ramdisk": "intent-on-0",
	"release/wipe":         "boot-granted",
}

// unrepeated are steps whose act a successor takes for done, once they have begun:
// whoever is killed at their beginning comes back for it.
var unrepeated = map[string]bool{"restart/stop": true}

// pass is one life of a server, in which every step meets its kills.
type pass struct {
	victim, when string
	warm         bool              // a create by adoption; its kills are before and after the fsync by turns
	kills        map[string][]kill // by operation, in order
}

func (p pass) String() string {
	if p.warm {
		return "the warm pass of " + p.victim
	}
	return "the pass of " + p.victim + ", " + p.when + " the fsync"
}

// opWarm is a create on a server that waits in the ramdisk.
const opWarm = "warm"

// plan lists the passes; only is a pattern of rows (path.Match on each part;
// missing parts match all), "" for all.
func plan(only string) []pass {
	var out []pass
	n := 0
	for _, victim := range []string{victimAgent, victimLeader, victimBoth} {
		for _, when := range []string{before, after} {
			p := pass{victim: victim, when: when, kills: map[string][]kill{}}
			rows := 0
			for _, o := range operations {
				for _, step := range metal.Plan(o.kind) {
					for _, record := range records(victim, o.kind, step) {
						if unrepeated[string(o.kind)+"/"+string(step)] && record == begun && n%2 == 1 {
							n++
						}
						k := kill{op: o.op, kind: o.kind, step: step, record: record, victim: victim, when: when, late: n%2 == 1}
						n++
						if matches(only, k.name()) {
							p.kills[o.op] = append(p.kills[o.op], k)
							rows++
						}
					}
				}
			}
			if rows > 0 {
				out = append(out, p)
			}
		}
	}
	for _, victim := range []string{victimAgent, victimLeader} {
		if p := warmPass(victim, only); len(p.kills[opWarm]) > 0 {
			out = append(out, p)
		}
	}
	return out
}

// warmPass is of a deployment that adopts a ramdisk: it begins at boot-ramdisk, which
// turns nothing on.
func warmPass(victim, only string) pass {
	p := pass{victim: victim, warm: true, kills: map[string][]kill{}}
	n := 0
	for _, step := range metal.Plan(metal.KindDeploy) {
		if step == metal.StepPowerOff {
			continue
		}
		for _, record := range records(victim, metal.KindDeploy, step) {
			if step == metal.StepBootRamdisk && record == acts["deploy/boot-ramdisk"] {
				continue
			}
			k := kill{op: opWarm, kind: metal.KindDeploy, step: step, record: record, victim: victim, when: []string{before, after}[n%2], late: n/2%2 == 0}
			n++
			if matches(only, k.name()) {
				p.kills[opWarm] = append(p.kills[opWarm], k)
			}
		}
	}
	return p
}

func records(victim string, kind metal.OperationKind, step metal.Step) []string {
	act := acts[string(kind)+"/"+string(step)]
	switch {
	case victim == victimLeader:
		return []string{"started", "done"}
	case victim == victimBoth && act != "":
		return []string{act}
	case victim == victimBoth:
		return []string{begun}
	case act != "":
		return []string{begun, act, "done"}
	}
	return []string{begun, "done"}
}

// matches: create/write-image/agent/before names all records of the step.
func matches(pattern, name string) bool {
	if pattern == "" {
		return true
	}
	want, have := strings.Split(pattern, "/"), strings.Split(name, "/")
	if len(want) == 4 { // without the record
		want = []string{want[0], want[1], "*", want[2], want[3]}
	}
	for i, w := range want {
		if i >= len(have) {
			return false
		}
		if ok, err := path.Match(w, have[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
