package main

import (
	"testing"

	"bmc/metal"
)

func TestPlanMeetsEveryStep(t *testing.T) {
	seen := map[string]bool{}
	late := map[bool]int{}
	for _, p := range plan("") {
		for _, ks := range p.kills {
			for _, k := range ks {
				seen[k.op+"/"+string(k.step)+"/"+k.victim+"/"+k.when] = true
				late[k.late]++
			}
		}
	}
	for _, o := range operations {
		for _, s := range metal.Plan(o.kind) {
			for _, v := range []string{victimAgent, victimLeader, victimBoth} {
				for _, w := range []string{before, after} {
					if k := o.op + "/" + string(s) + "/" + v + "/" + w; !seen[k] {
						t.Errorf("no kill at %s", k)
					}
				}
			}
		}
	}
	for _, s := range metal.Plan(metal.KindDeploy) {
		for _, v := range []string{victimAgent, victimLeader} {
			k := opWarm + "/" + string(s) + "/" + v + "/"
			if met := seen[k+before] || seen[k+after]; met == (s == metal.StepPowerOff) { // it adopts
				t.Errorf("warm: kills at %s: %v", k, met)
			}
		}
	}
	if d := late[true] - late[false]; d < -4 || d > 4 {
		t.Errorf("%v: half of the victims are to come back after the takeover", late)
	}
}

func TestOnly(t *testing.T) {
	p := plan("create/write-image/agent/before")
	if len(p) != 1 || len(p[0].kills["create"]) != 3 || len(p[0].kills) != 1 {
		t.Errorf("%+v", p)
	}
	if p := plan("*/*/done/leader/after"); len(p) != 2 || !p[1].warm || len(p[0].kills["destroy"]) != 4 {
		t.Errorf("%+v", p)
	}
	if p := plan("restart/nonsense/agent/before"); len(p) != 0 {
		t.Errorf("%+v", p)
	}
}
