//go:build e2e

package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"bmc/lab/light"
)

// perRack counts servers by rack, in a state.
func (r *rented) perRack(state string) map[string]int {
	r.t.Helper()
	var servers []struct{ Name, State string }
	if err := json.Unmarshal([]byte(r.must("inventory", "list", "-o", "json")), &servers); err != nil {
		r.t.Fatal(err)
	}
	count := map[string]int{}
	for _, s := range servers {
		if s.State == state {
			rack, _, _ := strings.Cut(s.Name, "-")
			count[rack]++
		}
	}
	return count
}

func (r *rented) inRacks(state string, n int) {
	r.t.Helper()
	if got := r.perRack(state); got["r1"] != n || got["r2"] != n {
		r.t.Fatalf("%s in each rack: %v, want %d", state, got, n)
	}
}

// events are what the machines have recorded.
func (r *rented) events() []light.Event {
	r.t.Helper()
	raw, err := os.ReadFile(r.cfg.path("machines.jsonl"))
	if err != nil {
		r.t.Fatal(err)
	}
	var out []light.Event
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		var e light.Event
		if json.Unmarshal(lines.Bytes(), &e) == nil { // the last line may be on its way
			out = append(out, e)
		}
	}
	return out
}

// killHolder kills the agent that holds a rack's lease once kind has happened there
// since the first of the events.
func (r *rented) killHolder(rack, kind string, first int) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * time.Minute)
	for {
		for _, e := range r.events()[first:] {
			if e.Event != kind || !strings.HasPrefix(e.Server, rack+"-") {
				continue
			}
			var got struct {
				Lease struct {
					Holder string `json:"holderName"`
				} `json:"lease"`
			}
			text, err := r.bmc(r.t.Context(), "rack", "get", rack, "-o", "json")
			if err != nil {
				return err
			}
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				return err
			}
			r.t.Logf("%s has %s: %s, its agent, is killed", e.Server, kind, got.Lease.Holder)
			_, err = NewClient(r.cfg.Dir).Fault(r.t.Context(), FaultSpec{Kind: FaultKill, Targets: []string{got.Lease.Holder}})
			return err
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("no %s in %s", kind, rack)
		}
	}
}

// TestRelayedRack: the two agents of r1 serve r2 as well, through a relay. Then
// agents die in the middle of deployments and of returns: the other one goes on, in
// both racks.
func TestRelayedRack(t *testing.T) {
	const n = 3 // machines a rack: BIOS, UEFI
	wait := []string{"--wait", "--timeout", "170s"}
	r := rent(t, func(c *Config) { c.Nodes, c.Racks, c.Relayed, c.Agents, c.Light, c.LightSeed = 1, 2, 1, 2, n, 1 })
	image, key := r.files()
	create := append([]string{"create", "--name", "web", "--count", fmt.Sprint(2 * n), "--image", "mini", "--ssh-key", "@" + key}, wait...)
	r.must("image", "push", image)
	r.must(append([]string{"inventory", "apply", "-f", r.cfg.path("inventory.yaml")}, wait...)...)
	r.inRacks("available", n)
	r.must(create...)
	r.inRacks("active", n)
	names := strings.Fields(r.must("list", "-o", "name"))
	each, ctx := errgroup.WithContext(t.Context())
	for _, name := range names {
		each.Go(func() error {
			_, err := r.bmc(ctx, append([]string{"restart", name}, wait...)...)
			return err
		})
	}
	if err := each.Wait(); err != nil {
		t.Fatal(err)
	}
	destroy := append([]string{"destroy", "--yes"}, wait...)
	r.must(append(destroy, names...)...)
	r.inRacks("available", n)
	checkMachines(t, r.cfg.path("machines.jsonl"), 2*n)
	for _, e := range r.events() { // each machine has an address of its own rack
		if rack := e.Server[1:2]; e.Event == light.DHCP && !strings.HasPrefix(e.Detail, "10.77."+rack+".") {
			t.Errorf("%s: %s", e.Server, e.Detail)
		}
	}

	during := func(rack, kind string, args ...string) {
		t.Helper()
		first := len(r.events())
		var both errgroup.Group
		both.Go(func() error { return r.killHolder(rack, kind, first) })
		r.must(args...)
		if err := both.Wait(); err != nil {
			t.Fatal(err)
		}
		if err := NewClient(r.cfg.Dir).Heal(t.Context(), "all"); err != nil {
			t.Fatal(err)
		}
	}
	during("r2", light.WriteDisk, create...)
	r.inRacks("active", n)
	names = strings.Fields(r.must("list", "-o", "name"))
	during("r1", light.WipeDisk, append(destroy, names...)...)
	r.inRacks("available", n)
	writes := map[string]int{}
	for _, e := range r.events() {
		if e.Event == light.WriteDisk {
			writes[e.Server]++
		}
		if e.Event == light.Failed {
			t.Errorf("%s: %s", e.Server, e.Detail)
		}
	}
	for name, count := range writes {
		if count != 2 {
			t.Errorf("%s was written %d times, want 2", name, count)
		}
	}
}
