package virtualbmc

import (
	"context"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	bmclib "github.com/bmc-toolbox/bmclib/v2"

	"bmc/lab/machine"
)

func redfishService(t *testing.T) (*Redfish, *fakeMachine, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &fakeMachine{}
	r, err := ServeRedfish(l, Config{Name: "r1-u01", User: "admin", Password: "secret-1", Machine: m})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, m, l.Addr().String()
}

// The simulation meets a client that was not written for it: gofish, by bmclib's driver.
func TestRedfishByGofish(t *testing.T) {
	r, m, addr := redfishService(t)
	_, port, _ := net.SplitHostPort(addr)
	cl := bmclib.NewClient("127.0.0.1", "admin", "secret-1", bmclib.WithRedfishPort(port))
	cl.Registry.Drivers = cl.Registry.For("gofish")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := cl.Open(ctx); err != nil {
		t.Fatal(err)
	}
	if r.Sessions() != 1 {
		t.Errorf("%d sessions, want 1", r.Sessions())
	}
	if _, err := cl.SetBootDevice(ctx, "pxe", false, true); err != nil {
		t.Error(err)
	}
	if got, want := m.State().Boot, (machine.Override{Device: machine.Network, EFI: true}); got != want {
		t.Errorf("the machine boots by %+v, want %+v", got, want)
	}
	for _, want := range []string{"on", "off"} {
		if _, err := cl.SetPowerState(ctx, want); err != nil {
			t.Error(err)
		}
		if got, err := cl.GetPowerState(ctx); err != nil || !strings.EqualFold(got, want) {
			t.Errorf("power %q, %v; want %s", got, err, want)
		}
	}
	if err := cl.Close(ctx); err != nil || r.Sessions() != 0 {
		t.Errorf("logout: %v, %d sessions left", err, r.Sessions())
	}
}

// And another one: DMTF's own.
func TestRedfishByRedfishtool(t *testing.T) {
	tool, err := exec.LookPath("redfishtool")
	if err != nil {
		t.Skip("redfishtool is not installed")
	}
	r, m, addr := redfishService(t)
	run := func(words ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, tool, append([]string{"-r", addr, "-u", "admin", "-p", "secret-1", "-A", "Session", "-S", "Always"}, words...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("redfishtool %v: %v: %s", words, err, out)
		}
		return string(out)
	}
	if out := run("Systems", "-F", "reset", "On"); !m.State().On {
		t.Errorf("not on: %s", out)
	}
	if out := run("Systems", "-F", "setBootOverride", "Once", "Pxe"); m.State().Boot.Device != machine.Network {
		t.Errorf("boots by %+v: %s", m.State().Boot, out)
	}
	if out := run("Systems", "-F"); !strings.Contains(out, `"PowerState": "On"`) {
		t.Errorf("status: %s", out)
	}
	if r.Sessions() != 0 {
		t.Errorf("%d sessions left", r.Sessions())
	}
}

// And curl, for what clients do wrong.
func TestRedfishByCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	r, _, addr := redfishService(t)
	status := func(words ...string) int {
		t.Helper()
		path := words[len(words)-1]
		args := append([]string{"-ksS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}"}, words[:len(words)-1]...)
		out, err := exec.CommandContext(t.Context(), curl, append(args, "https://"+addr+path)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(string(out))
		return n
	}
	user := []string{"-u", "admin:secret-1"}
	post := func(path, body string, more ...string) []string {
		return append(append([]string{"-H", "Content-Type: application/json", "-d", body}, more...), path)
	}
	for _, c := range []struct {
		what string
		args []string
		want int
	}{
		{"the root is anybody's", []string{"/redfish/v1/"}, 200},
		{"the rest is not", []string{"/redfish/v1/Systems"}, 401},
		{"a wrong password", []string{"-u", "admin:no", "/redfish/v1/Systems"}, 401},
		{"without a session", append(slices.Clone(user), "/redfish/v1/Systems/1"), 200},
		{"a session with a wrong password", post(redfishSessions, `{"UserName":"admin","Password":"no"}`), 401},
		{"a session", post(redfishSessions, `{"UserName":"admin","Password":"secret-1"}`), 201},
		{"an unknown reset", post(redfishReset, `{"ResetType":"Explode"}`, user...), 400},
		{"no JSON", post(redfishReset, `{`, user...), 400},
		{"another's entity tag", post(redfishSystem, `{"Boot":{"BootSourceOverrideTarget":"Pxe"}}`, append(slices.Clone(user), "-X", "PATCH", "-H", `If-Match: "old"`)...), 412},
		{"what is not there", append(slices.Clone(user), "/redfish/v1/Managers"), 404},
		{"a method that is not", append(slices.Clone(user), "-X", "DELETE", redfishSystem), 405},
	} {
		if got := status(c.args...); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
	r.Bend(RedfishFaults{Sessions: 1})
	if got := status(post(redfishSessions, `{"UserName":"admin","Password":"secret-1"}`)...); got != 503 {
		t.Errorf("a session too many: %d", got)
	}
}
