package virtualbmc

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bmc/lab/machine"
)

func TestChassis(t *testing.T) {
	m := &fakeMachine{}
	for _, tc := range []struct {
		args string
		out  string
		did  string
		bad  bool
	}{
		{args: "get power boot", out: "power:0\nboot:none\n"},
		{args: "set boot pxe", did: "boot network"},
		{args: "get boot", out: "boot:pxe\n"},
		{args: "set boot default power 1", did: "boot disk,on"},
		{args: "get power boot", out: "power:1\nboot:default\n"},
		{args: "set reset 1", did: "reset"},
		{args: "set shutdown 1", did: "soft"},
		{args: "set power 0", did: "off"},
		{args: "set boot cdrom", bad: true},
		{args: "get fans", bad: true},
		{args: "set power", bad: true},
		{args: "explode now", bad: true},
		{args: "get", bad: true},
	} {
		m.did = nil
		var out strings.Builder
		err := Chassis(t.Context(), m, strings.Fields(tc.args), &out)
		if (err != nil) != tc.bad || out.String() != tc.out || strings.Join(m.did, ",") != tc.did {
			t.Errorf("%s: out %q, did %v, error %v", tc.args, out.String(), m.did, err)
		}
	}
}

// TestSimCommands: a check that reads power commands from the record need not know
// which controller it was.
func TestSimCommands(t *testing.T) {
	for args, want := range map[string]string{
		"get power":              "0/1::010000",
		"get boot":               "",
		"set power 1":            "0/2:01:",
		"set power 0":            "0/2:00:",
		"set reset 1":            "0/2:03:",
		"set shutdown 1":         "0/2:05:",
		"set boot pxe power 1":   "0/8:058004000000: 0/2:01:",
		"set boot default":       "0/8:05c008000000:",
		"set identify 1":         "",
		"set":                    "",
		"get power boot":         "0/1::010000",
		"set power 1 trailing":   "0/2:01:",
		"set identify 1 power 0": "0/2:00:",
	} {
		var got []string
		for _, c := range SimCommands("m1", strings.Fields(args), true) {
			if c.Server != "m1" || c.Name == "" || !c.On || !c.Sim {
				t.Errorf("%s: %+v", args, c)
			}
			got = append(got, fmt.Sprintf("%d/%d:%s:%s", c.NetFn, c.Cmd, c.Data, c.Answer))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}

func TestSimConfigRefusesWhatNeedsQuoting(t *testing.T) {
	good := SimConfig{Name: "m1", User: "admin", Password: "lab-secret", Control: "./bmc-lab chassis m1"}
	if _, err := good.render(); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*SimConfig){
		func(c *SimConfig) { c.Password = `a"b` },
		func(c *SimConfig) { c.Password = strings.Repeat("x", 17) },
		func(c *SimConfig) { c.User = "" },
		func(c *SimConfig) { c.Control = "x\ny" },
	} {
		c := good
		change(&c)
		if _, err := c.render(); err == nil {
			t.Errorf("accepted %+v", c)
		}
	}
}

// TestIPMISim: ipmitool talks to a real ipmi_sim, whose control program reaches a
// machine in this process by curl.
func TestIPMISim(t *testing.T) {
	needs(t, "ipmitool", "ipmi_sim", "curl")
	m := &fakeMachine{}
	dir := t.TempDir()
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err == nil {
			err = Chassis(r.Context(), m, strings.Fields(string(raw)), w)
		}
		if err != nil {
			t.Error(err)
		}
	}))
	web.Start()
	defer web.Close()
	script := "#!/bin/sh\nexec curl -sSf --data-binary \"$*\" " + web.URL + "\n"
	if err := os.WriteFile(filepath.Join(dir, "control"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	free, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(free.LocalAddr().String())
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	sim, err := StartSim(SimConfig{Name: "m1", Dir: dir, Addr: addr, User: "admin", Password: "lab-secret", Control: "./control"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
		if raw, err := os.ReadFile(filepath.Join(dir, "ipmi_sim.log")); t.Failed() {
			t.Logf("ipmi_sim: %s %v", raw, err)
		}
	}()
	conn, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := sim.Wait(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr.String())
	for _, step := range []struct {
		args, want string
		state      machine.State
	}{
		{"power status", "is off", machine.State{}},
		{"chassis bootdev pxe", "pxe", machine.State{Boot: machine.Override{Device: machine.Network}}},
		{"power on", "Up/On", machine.State{On: true, Boot: machine.Override{Device: machine.Network}}},
		{"power status", "is on", machine.State{On: true, Boot: machine.Override{Device: machine.Network}}},
		{"power off", "Down/Off", machine.State{Boot: machine.Override{Device: machine.Network}}},
		{"chassis bootdev disk", "disk", machine.State{Boot: machine.Override{Device: machine.Disk, Persistent: true}}},
	} {
		out, err := ipmitool(t, port, "3", strings.Fields(step.args)...)
		if err != nil || !strings.Contains(out, step.want) {
			t.Fatalf("ipmitool %s: %q (%v), want %q", step.args, out, err, step.want)
		}
		if got := m.State(); got != step.state {
			t.Fatalf("after %s: %+v, want %+v", step.args, got, step.state)
		}
	}
}
