package lab

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	good := func() Config {
		c := Config{Dir: t.TempDir(), Servers: 2}
		if err := c.complete(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := good()
	if err := c.validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"8 nodes":     func(c *Config) { c.Nodes = 8 },
		"17 racks":    func(c *Config) { c.Racks = 17 },
		"65 servers":  func(c *Config) { c.Servers = 65 },
		"coreboot":    func(c *Config) { c.Firmware = []string{"coreboot"} },
		"redfish":     func(c *Config) { c.BMC = "redfish" },
		"whole secto": func(c *Config) { c.DiskBytes++ },
		"no commas":   func(c *Config) { c.Dir = "/tmp/a,b" },
	} {
		c := good()
		change(&c)
		if err := c.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestPlan(t *testing.T) {
	c := Config{Dir: t.TempDir(), Nodes: 7, Racks: 16, Agents: 4, Servers: 64}
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	p := newPlan(&c)
	seen := map[string]string{mgmtAddr(hostMgmt).String(): "mgmt", mgmtAddr(hostS3).String(): "s3"}
	unique := func(who, what string) {
		t.Helper()
		if was, ok := seen[what]; ok {
			t.Fatalf("%s of %s is %s's", what, who, was)
		}
		seen[what] = who
	}
	for _, n := range p.nodes {
		unique(n.name, n.addr.String())
	}
	for _, r := range p.racks {
		unique(r.name, r.probe.String())
		unique(r.name, r.stranger.String())
		for _, a := range r.agents {
			for _, what := range []string{a.mgmt.String(), a.rack.String(), a.oob.String(), a.mac.String()} {
				unique(a.name, what)
			}
			if len(a.name) > 15 {
				t.Errorf("%s is too long for an interface", a.name)
			}
		}
		for _, s := range r.servers {
			for _, what := range []string{s.mac.String(), s.uuid, s.serial, s.oob.String(), s.password} {
				unique(s.name, what)
			}
			if !r.oob.Contains(s.oob) || len(s.uuid) != 36 || len(s.password) != 16 {
				t.Errorf("server %+v", s)
			}
		}
	}
	if s := p.racks[0].servers; s[0].name != "r1-u01" || s[0].firmware != "bios" || s[1].firmware != "uefi" || s[0].oob != netip.MustParseAddr("10.78.1.11") {
		t.Errorf("first servers %+v", s[:2])
	}
}

func TestRender(t *testing.T) {
	c := Config{Dir: "/lab", Bin: "/bin", Ramdisk: "/ramdisk", Servers: 1, BMC: BMCSim}
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	p := newPlan(&c)
	p.racks[0].servers[0].password = "0123456789abcdef"
	store := storeFile{Endpoint: "https://10.76.0.5:9000", Bucket: "bmc-images", AccessKey: "a", SecretKeyFile: "/lab/s3/secret", CAFile: "/lab/s3/public.crt", Region: "us-east-1"}
	for name, v := range map[string]any{
		"node.yaml":      c.nodeFile(p.nodes[0], store),
		"agent.yaml":     c.agentFile(&p, p.racks[0], p.racks[0].agents[0], store),
		"inventory.yaml": c.inventory(&p),
	} {
		path := filepath.Join(t.TempDir(), name)
		if err := writeYAML(path, v); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", name)
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s is\n%s\nwant (UPDATE=1 writes it)\n%s", name, got, want)
		}
	}
}

func TestLongSocketPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path, done, err := socketPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if len(path) > 107 {
		t.Errorf("path of %d bytes", len(path))
	}
}
