//go:build e2e

package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"bmc/lab/light"
)

// unknown is a lab whose machines no inventory has: racks, with discovery on, and
// sizes are all that it knows.
func unknown(t *testing.T, r *rented) inventoryFile {
	t.Helper()
	raw, err := os.ReadFile(r.cfg.path("inventory.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var f inventoryFile
	if err := yaml.Unmarshal(raw, &f); err != nil {
		t.Fatal(err)
	}
	only := f
	only.Servers = nil
	path := filepath.Join(t.TempDir(), "racks.yaml")
	if err := writeYAML(path, only); err != nil {
		t.Fatal(err)
	}
	raw, err = os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	on := regexp.MustCompile(`(?m)^( +)range_from:`).ReplaceAllString(string(raw), "${1}discovery: on\n${1}range_from:")
	if err := os.WriteFile(path, []byte(on), 0o600); err != nil {
		t.Fatal(err)
	}
	r.must("inventory", "apply", "-f", path)
	return f
}

type listed struct {
	Name, State, Serial, Size string
	SizeByRule                bool
	Hardware                  struct {
		Product string
		Disks   []struct{ Health *struct{ State string } }
		Nics    []struct{ Neighbour *struct{ System string } }
	}
}

func (r *rented) inState(state string) []listed {
	r.t.Helper()
	args := []string{"inventory", "list", "-o", "json"}
	if state != "" {
		args = append(args, "--state", state)
	}
	out, err := r.bmc(r.t.Context(), args...)
	if err != nil {
		r.t.Fatal(err)
	}
	var servers []listed
	if err := json.Unmarshal([]byte(out), &servers); err != nil {
		r.t.Fatal(err)
	}
	return servers
}

func (r *rented) powerAll(servers []inventoryServer) {
	r.t.Helper()
	each, ctx := errgroup.WithContext(r.t.Context())
	for _, s := range servers {
		each.Go(func() error { return NewClient(r.cfg.Dir).Power(ctx, s.Name, "on") })
	}
	if err := each.Wait(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rented) awaitDiscovered(n int, within time.Duration) time.Duration {
	r.t.Helper()
	began := time.Now()
	for {
		got := r.inState("discovered")
		if len(got) == n {
			return time.Since(began)
		}
		if time.Since(began) > within {
			out, _ := r.bmc(r.t.Context(), "events", "--since", "10m")
			r.t.Fatalf("%d machines are discovered after %s, want %d\n%s", len(got), within, n, out)
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-r.t.Context().Done():
			r.t.Fatal(r.t.Context().Err())
		}
	}
}

// list writes what a purchase order would tell of the machines.
func list(t *testing.T, servers []inventoryServer) string {
	t.Helper()
	dir := t.TempDir()
	lines := "name,serial,rack,oob_address,oob_username,oob_password_file,wipe\n"
	for _, s := range servers {
		if err := os.WriteFile(filepath.Join(dir, s.Name+".secret"), []byte(s.OOB.Password), 0o600); err != nil {
			t.Fatal(err)
		}
		lines += fmt.Sprintf("%s,%s,%s,%s,%s,%s.secret,true\n", s.Name, s.Serial, s.Rack, s.OOB.Address, s.OOB.Username, s.Name)
	}
	path := filepath.Join(dir, "delivery.csv")
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDiscoverLight: fifty machines that nobody knows come up at once, say what
// they are, and are enrolled from a list of serial numbers.
func TestDiscoverLight(t *testing.T) {
	const n = 50
	r := rent(t, func(c *Config) { c.Nodes, c.Agents, c.Light, c.LightSeed = 3, 2, n, 1 })
	f := unknown(t, r)
	r.powerAll(f.Servers)
	t.Logf("%d machines discovered after %.1f s", n, r.awaitDiscovered(n, 2*time.Minute).Seconds())
	wrong := list(t, append(f.Servers[:n:n], inventoryServer{Name: "r1-none", Serial: "no-such", Rack: "r1", OOB: f.Servers[0].OOB}))
	if out, err := r.bmc(t.Context(), "inventory", "import", "-f", wrong); err == nil || !strings.Contains(err.Error(), "r1-none") {
		t.Errorf("a list with a wrong line: %v %s", err, out)
	}
	if got := r.inState("discovered"); len(got) != n {
		t.Errorf("of a list with a wrong line, %d are left", len(got))
	}
	began := time.Now()
	if _, err := r.bmc(t.Context(), "inventory", "import", "-f", list(t, f.Servers), "--wait", "--timeout", "100s"); err != nil {
		for _, s := range r.inState("") {
			if s.State != "available" {
				machines(t, r.cfg.path("machines.jsonl"), func(e light.Event) {
					if e.Server == s.Name {
						t.Logf("%s %+v", s.State, e)
					}
				})
			}
		}
		t.Fatal(err)
	}
	t.Logf("enrolled after %.1f s", time.Since(began).Seconds())
	servers := r.inState("available")
	if len(servers) != n {
		t.Fatalf("%d servers are available", len(servers))
	}
	for _, s := range servers {
		if s.Size != "small" || !s.SizeByRule || strings.HasPrefix(s.Name, "new-") {
			t.Errorf("%+v", s)
		}
	}
	machines(t, r.cfg.path("machines.jsonl"), func(e light.Event) {
		if e.Event == light.WipeDisk && e.Task == "" {
			t.Errorf("%s was wiped without a task", e.Server)
		}
	})
}

func machines(t *testing.T, path string, see func(light.Event)) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(raw)), "\n") {
		var e light.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		see(e)
	}
}

// TestDiscoverQEMU: a machine with real firmware that nobody knows says what it
// is, without a write to its disk, and is enrolled by an operator's word.
func TestDiscoverQEMU(t *testing.T) {
	ramdisk := os.Getenv("BMC_TEST_RAMDISK")
	if ramdisk == "" {
		t.Skip("BMC_TEST_RAMDISK is not set to a built ramdisk (make ramdisk)")
	}
	r := rent(t, func(c *Config) {
		c.Nodes, c.Agents, c.Servers, c.Firmware, c.Ramdisk = 1, 1, 1, []string{"bios"}, ramdisk
	})
	f := unknown(t, r)
	s := f.Servers[0]
	r.powerAll(f.Servers)
	t.Logf("discovered after %.1f s", r.awaitDiscovered(1, 4*time.Minute).Seconds())
	found := r.inState("discovered")[0]
	if found.Serial != s.Serial || !strings.HasPrefix(found.Name, "new-") || len(found.Hardware.Disks) != 1 {
		t.Errorf("%+v", found)
	}
	if n := found.Hardware.Nics[0].Neighbour; n == nil || n.System != "r1-switch" {
		t.Errorf("its neighbour is %+v", n)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(s.OOB.Password), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := r.bmc(t.Context(), "inventory", "approve", found.Name, "--name", s.Name, "--oob-address", s.OOB.Address, "--oob-user", s.OOB.Username,
		"--oob-password-file", secret, "--wipe", "--wait", "--timeout", "170s")
	if err != nil {
		t.Fatal(out, err)
	}
	t.Logf("%s", r.must("inventory", "get", s.Name))
	if got := r.inState("available"); len(got) != 1 || got[0].Name != s.Name {
		t.Errorf("%+v", got)
	}
}
