package agent

import (
	"bytes"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bmc/agent/boot"
	"bmc/agent/cache"
	agentv1 "bmc/api/agent/v1"
	"bmc/netboot"
)

// Racks that share an interface share a server, and nothing else: each is answered
// from what is known of it, and hears of its own machines.
func TestListenersKeepRacksApart(t *testing.T) {
	var logs bytes.Buffer
	a := &Agent{cfg: Config{HTTPPort: 80, TLSPort: 8443}, boots: boot.New(boot.Config{Log: slog.New(slog.DiscardHandler)}),
		sightings: make(map[string]*sightings), log: slog.New(slog.NewTextHandler(&logs, nil)), cache: &cache.Cache{}}
	var err error
	if a.chunks, err = newChunkGrants(t.TempDir(), nil, a.cache.Keep); err != nil {
		t.Fatal(err)
	}
	const otherMAC = "52:54:00:00:02:01"
	for _, c := range []RackConfig{
		{Name: "r2", Interface: "eno2", Address: "10.77.1.1/24", Relayed: true},
		{Name: "r1", Interface: "eno2", Address: "10.77.1.1/24"},
		{Name: "r3", Interface: "eno3", Address: "10.76.0.9/24", Relayed: true},
		{Name: "r4", Interface: "eno3", Address: "10.76.0.9/24", Relayed: true},
	} {
		r, err := openRack(c, filepath.Join(t.TempDir(), c.Name), a.boots)
		if err != nil {
			t.Fatal(err)
		}
		if r.subnet().IsValid() {
			t.Errorf("%s has the subnet %s before any node has told it", c.Name, r.subnet())
		}
		a.racks, a.sightings[c.Name] = append(a.racks, r), newSightings()
	}
	mustReplace(t, a.racks[0], &agentv1.RackUpdate{Revision: 1, Rack: &agentv1.RackSpec{Subnet: "10.77.2.0/24"}, Upserts: []*agentv1.ServerSpec{spec("srv-2", "active", "10.77.2.11", otherMAC)}})
	mustReplace(t, a.racks[1], &agentv1.RackUpdate{Revision: 1, Rack: &agentv1.RackSpec{Subnet: "10.77.1.0/24"}, Upserts: []*agentv1.ServerSpec{spec("srv-1", "active", "10.77.1.11", testMAC)}})

	ls := a.listeners()
	if len(ls) != 2 || ls[0].names() != "r1,r2" || ls[1].names() != "r3,r4" || ls[1].own != nil {
		t.Fatalf("listeners %+v", ls)
	}
	c := a.netbootConfig(ls[0], a.log)
	if _, err := netboot.New(c); err != nil {
		t.Fatal(err)
	}
	if c.Interface != "eno2" || c.Addr != netip.MustParseAddr("10.77.1.1") || len(c.Relayed) != 1 || c.Relayed[0].Subnet() != netip.MustParsePrefix("10.77.2.0/24") {
		t.Errorf("configuration %+v", c)
	}
	for mac, want := range map[string][2]bool{testMAC: {true, false}, otherMAC: {false, true}} {
		_, own := c.Directory.Lookup(mac)
		_, behind := c.Relayed[0].Directory.Lookup(mac)
		if own != want[0] || behind != want[1] {
			t.Errorf("%s: known to r1 %v, to r2 %v", mac, own, behind)
		}
	}
	begin := time.Now().Add(-time.Second)
	c.Events(netboot.Event{Kind: netboot.EventDHCP, MAC: testMAC})
	c.Relayed[0].Events(netboot.Event{Kind: netboot.EventUnknown, MAC: otherMAC})
	c.Events(netboot.Event{Kind: netboot.EventStray, MAC: "52:54:00:00:09:09", Addr: netip.MustParseAddr("10.99.0.1")})
	c.Events(netboot.Event{Kind: netboot.EventStray, MAC: "52:54:00:00:09:08", Addr: netip.MustParseAddr("10.99.0.1")})
	for rack, mac := range map[string]string{"r1": testMAC, "r2": otherMAC} {
		s := a.sightings[rack]
		if !s.saw(begin, []string{mac}) || len(s.seen) != 1 {
			t.Errorf("%s has seen %v, want %s alone", rack, s.seen, mac)
		}
	}
	if n := strings.Count(logs.String(), "10.99.0.1"); n != 1 {
		t.Errorf("the strange relay is in the log %d times:\n%s", n, logs.String())
	}
	if c = a.netbootConfig(ls[1], a.log); c.Directory != nil || len(c.Relayed) != 2 {
		t.Errorf("only relayed racks: %+v", c)
	}
	c.Events(netboot.Event{Kind: netboot.EventStray, MAC: testMAC}) // has nobody to hear it
}

func TestRacksTogether(t *testing.T) {
	own := RackConfig{Name: "r1", Interface: "eno2", Address: "10.77.1.1/24"}
	relayed := func(change func(*RackConfig)) RackConfig {
		r := RackConfig{Name: "r2", Interface: "eno2", Address: "10.77.1.1/24", Relayed: true}
		if change != nil {
			change(&r)
		}
		return r
	}
	for name, tt := range map[string]struct {
		racks []RackConfig
		want  string // "": accepted
	}{
		"one behind a relay":              {[]RackConfig{own, relayed(nil)}, ""},
		"the relayed one first":           {[]RackConfig{relayed(nil), own}, ""},
		"only relayed ones":               {[]RackConfig{relayed(nil), relayed(func(r *RackConfig) { r.Name = "r3" })}, ""},
		"each its own interface":          {[]RackConfig{own, relayed(func(r *RackConfig) { r.Interface, r.Address, r.Relayed = "eno3", "10.77.2.1/24", false })}, ""},
		"two on one interface":            {[]RackConfig{own, relayed(func(r *RackConfig) { r.Relayed = false })}, "r1 and r2 both have eno2: one of them must be relayed"},
		"two addresses on one interface":  {[]RackConfig{own, relayed(func(r *RackConfig) { r.Address = "10.77.2.1/24" })}, "share its address"},
		"one address on two interfaces":   {[]RackConfig{own, relayed(func(r *RackConfig) { r.Interface = "eno3" })}, "r1 has 10.77.1.1 on eno2, and r2 has it on eno3"},
		"a relayed one without address":   {[]RackConfig{own, relayed(func(r *RackConfig) { r.Address = "" })}, "not an IPv4 address"},
		"a relayed one without interface": {[]RackConfig{own, relayed(func(r *RackConfig) { r.Interface = "" })}, "is missing for r2"},
		"two folders of loaders":          {[]RackConfig{own, relayed(func(r *RackConfig) { r.LoaderDir = "/loaders" })}, "boot loaders"},
		"two of one name":                 {[]RackConfig{own, relayed(func(r *RackConfig) { r.Name = "r1" })}, "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Config{Racks: tt.racks}
			err := c.validateRacks()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}
