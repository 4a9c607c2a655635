//go:build e2e

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
)

// realLab is a running lab whose daemons are the real ones, with failpoints.
type realLab struct {
	*testing.T
	*Client
	cfg    Config
	status Status
	any    *client.Client            // of all nodes
	node   map[string]*client.Client // of one each
}

// realDaemons builds the daemons once, with failpoints, and says where they are.
var realDaemons = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lab-daemons-")
	if err != nil {
		return "", err
	}
	afterTests = append(afterTests, func() error { return os.RemoveAll(dir) })
	build := exec.Command("go", "build", "-tags", "failpoints", "-o", dir+"/", "./cmd/bmc-controlplane", "./cmd/bmc-agent", "./cmd/bmc")
	build.Dir, build.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return dir, nil
})

// startReal starts a lab of the real daemons; machines stay off.
func startReal(t *testing.T, change func(*Config)) *realLab {
	t.Helper()
	cfg := testLab(t)
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs go, to build the daemons")
	}
	built, err := realDaemons()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"bmc-controlplane", "bmc-agent", "bmc"} {
		if err := removeIfThere(filepath.Join(cfg.Bin, p)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(built, p), filepath.Join(cfg.Bin, p)); err != nil {
			t.Fatal(err)
		}
	}
	change(&cfg)
	start(t, cfg)
	r := &realLab{T: t, Client: NewClient(cfg.Dir), cfg: cfg, node: map[string]*client.Client{}}
	if r.status, err = r.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.any = r.client(r.status.Addresses...)
	for i, a := range r.status.Addresses {
		r.node[fmt.Sprintf("cp%d", i+1)] = r.client(a)
	}
	return r
}

func (r *realLab) client(addresses ...string) *client.Client {
	r.Helper()
	token, err := os.ReadFile(r.status.TokenFile)
	if err != nil {
		r.Fatal(err)
	}
	ca, err := os.ReadFile(r.status.CAFile)
	if err != nil {
		r.Fatal(err)
	}
	c, err := client.New(client.Config{Addresses: addresses, Token: strings.TrimSpace(string(token)), CACert: ca, Patience: 30 * time.Second})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := c.Close(); err != nil {
			r.Error(err)
		}
	})
	return c
}

func (r *realLab) fault(spec FaultSpec) string {
	r.Helper()
	f, err := r.Fault(r.Context(), spec)
	if err != nil {
		r.Fatal(err)
	}
	return f.ID
}

// heal also wants the fault to have fired.
func (r *realLab) heal(id string) {
	r.Helper()
	if err := r.Heal(r.Context(), id); err != nil {
		r.Fatal(err)
	}
	all, err := r.Faults(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range all {
		if f.ID == id && (f.Fired == 0 || f.Healed == nil) {
			r.Errorf("fault %s %s: fired %d times, healed %v", f.ID, f.Kind, f.Fired, f.Healed)
		}
	}
}

// leader is who leads in the eyes of a node.
func (r *realLab) leader(of string) (string, error) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	s, err := r.node[of].Cluster.Status(ctx, &bmcv1.StatusRequest{})
	if err != nil {
		return "", err
	}
	for _, p := range s.GetPeers() {
		if p.GetId() == s.GetLeaderId() {
			return p.GetName(), nil
		}
	}
	return "", fmt.Errorf("%s knows no leader", of)
}

func (r *realLab) other(node string) string {
	if node == "cp1" {
		return "cp2"
	}
	return "cp1"
}

// losesLead waits until another node leads than old, then heals and waits until
// old follows.
func (r *realLab) losesLead(old, id string) {
	r.Helper()
	begin := time.Now()
	eventually(r.T, 20*time.Second, "another leader", func() error {
		now, err := r.leader(r.other(old))
		if err == nil && now == old {
			err = fmt.Errorf("%s leads still", old)
		}
		return err
	})
	r.Logf("another leads than %s after %s", old, time.Since(begin))
	r.heal(id)
	eventually(r.T, 20*time.Second, old+" follows", func() error {
		mine, err := r.leader(old)
		if err != nil {
			return err
		}
		if its, err := r.leader(r.other(old)); err != nil || mine != its {
			return fmt.Errorf("leads: %s, %s (%w)", mine, its, err)
		}
		return nil
	})
}

func (r *realLab) holder() (string, error) {
	racks, err := r.any.Inventory.ListRacks(r.Context(), &bmcv1.ListRacksRequest{})
	if err != nil {
		return "", err
	}
	if h := racks.GetRacks()[0].GetLease().GetHolderName(); h != "" {
		return h, nil
	}
	return "", errors.New("nobody holds the rack's lease")
}

// TestFaultsOnRealDaemons: what each fault is for happens, and heal ends it.
func TestFaultsOnRealDaemons(t *testing.T) {
	r := startReal(t, func(c *Config) { c.Servers = min(c.Servers, 1) })
	var leads, holds string
	eventually(t, 20*time.Second, "a leader and a lease", func() (err error) {
		if leads, err = r.leader("cp1"); err == nil {
			holds, err = r.holder()
		}
		return err
	})

	r.losesLead(leads, r.fault(FaultSpec{Kind: FaultPartition, Targets: []string{leads, "rest"}, Network: mgmtName}))
	for _, kind := range []string{FaultLogHang, FaultDiskFull, FaultStop} {
		leads, err := r.leader("cp1")
		if err != nil {
			t.Fatal(err)
		}
		id := r.fault(FaultSpec{Kind: kind, Targets: []string{leads}})
		// A log that nobody writes to shows no fault; what is written must not fail.
		begin := time.Now()
		if _, err := r.any.Cluster.CreateJoinToken(t.Context(), &bmcv1.CreateJoinTokenRequest{Role: "node"}); err != nil {
			t.Errorf("%s: a write: %v", kind, err)
		}
		t.Logf("%s: a write took %s", kind, time.Since(begin))
		r.losesLead(leads, id)
	}

	slow := r.fault(FaultSpec{Kind: FaultDelay, Targets: []string{"cp1"}, Delay: Duration(150 * time.Millisecond), Port: tlsPort})
	begin := time.Now()
	if _, err := r.leader("cp1"); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("with 150 ms of delay in both ways, a call took %s", took)
	}
	r.heal(slow)

	begin = time.Now()
	stopped := r.fault(FaultSpec{Kind: FaultStop, Targets: []string{holds}})
	eventually(t, 60*time.Second, "takeover", func() error {
		now, err := r.holder()
		if err == nil && now == holds {
			err = fmt.Errorf("%s holds the lease still", holds)
		}
		return err
	})
	// The TTL is 15 s, counted from the last renewal.
	if took := time.Since(begin); took < 8*time.Second {
		t.Errorf("the standby took the lease after %s", took)
	} else {
		t.Logf("takeover after %s", took)
	}
	r.heal(stopped)
	r.fullJournal()
}

// fullJournal: an agent that cannot write its journal does nothing to a machine,
// and goes on when it can.
func (r *realLab) fullJournal() {
	r.Helper()
	if len(r.status.Servers) == 0 {
		r.Log("no QEMU: an agent's full disk is not tried")
		return
	}
	holds, err := r.holder()
	if err != nil {
		r.Fatal(err)
	}
	id := r.fault(FaultSpec{Kind: FaultDiskFull, Targets: []string{holds}})
	env, err := r.status.Environ()
	if err != nil {
		r.Fatal(err)
	}
	apply := exec.CommandContext(r.Context(), filepath.Join(r.cfg.Bin, "bmc"), "inventory", "apply", "-f", r.status.Inventory)
	apply.Env = slices.Concat(os.Environ(), env)
	if out, err := apply.CombinedOutput(); err != nil {
		r.Fatalf("%v\n%s", err, out)
	}
	eventually(r.T, 30*time.Second, "ENOSPC at the journal", func() error {
		all, err := r.Faults(r.Context())
		if err == nil && all[len(all)-1].Fired == 0 {
			err = errors.New("not fired")
		}
		return err
	})
	machine := func() ServerStatus {
		s, err := r.Status(r.Context())
		if err != nil {
			r.Fatal(err)
		}
		return s.Servers[0]
	}
	if m := machine(); m.Starts != 0 {
		r.Errorf("powered on without a journal: %+v", m)
	}
	r.heal(id)
	eventually(r.T, 60*time.Second, "the operation goes on", func() error {
		if machine().Starts == 0 {
			return errors.New("not powered on")
		}
		return nil
	})
}

// TestNoGossip: agents that no gossip reaches find the nodes by their list, and
// hold their racks' leases.
func TestNoGossip(t *testing.T) {
	r := startReal(t, func(c *Config) { c.NoGossip, c.Servers, c.Racks, c.Agents = true, 0, 2, 1 })
	// Up waited for the leases; they stay.
	agents, err := r.any.Inventory.ListAgents(t.Context(), &bmcv1.ListAgentsRequest{})
	if err != nil || len(agents.GetAgents()) != 2 {
		t.Fatalf("agents %v, %v", agents, err)
	}
	raw, err := os.ReadFile(filepath.Join(r.cfg.Dir, "logs", "cp1.log"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), "kind=agent") {
		t.Error("a node has heard an agent's gossip")
	}
}
