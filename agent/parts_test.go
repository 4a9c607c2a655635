package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"

	"bmc/agent/boot"
	"bmc/agent/oob"
	"bmc/agent/operation"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/freeport"
	"bmc/internal/jointoken"
	"bmc/metal"
	"bmc/netboot"
)

// With every node gone the agent still starts and answers its machines, from
// what the last run wrote down.
func TestBootDecisionsWithoutControlPlane(t *testing.T) {
	b := newBench(t, 1)
	stop := b.run()
	b.eventually("the rack is known", func() bool {
		data, err := os.ReadFile(filepath.Join(b.cfg.DataDir, "racks/r1.json"))
		return err == nil && bytes.Contains(data, []byte(testMAC))
	})
	stop()
	b.cluster.nodes[0].server.Stop()
	b.mu.Lock()
	b.netboot = netboot.Config{}
	b.mu.Unlock()
	stop = b.run()
	defer stop()
	b.eventually("the machine is known", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.netboot.Directory == nil {
			return false
		}
		m, ok := b.netboot.Directory.LookupAddr(netip.MustParseAddr("127.0.0.1"))
		return ok && m.MAC == testMAC && m.Addr.String() == "127.0.0.1/24" && !m.Boot.Ramdisk && !m.Authoritative
	})
}

// Nodes stop one after the other; the operation goes on with those left, and
// each report is recorded once.
func TestNodesComeAndGo(t *testing.T) {
	b := newBench(t, 3)
	slow := make(chan struct{})
	b.slow, b.wiping = slow, make(chan struct{})
	defer b.run()()
	b.assign(metal.KindEnroll)
	<-b.wiping
	b.cluster.nodes[0].server.Stop()
	b.cluster.nodes[1].server.Stop()
	close(slow)
	b.walked(metal.KindEnroll, []string{"inspect", "wipe"}, []string{"boot pxe once", "on", "off"})
	b.cluster.nodes[0].start(t)
	b.cluster.nodes[2].server.Stop()
	b.assign(metal.KindPower)
	b.walked(metal.KindPower, nil, []string{"boot pxe once", "on", "off"})
}

func TestObservationsAreEdges(t *testing.T) {
	b := newBench(t, 1)
	b.cluster.edit(func() {
		dead := freeport.Port(t)
		b.cluster.servers = append(b.cluster.servers, &agentv1.ServerSpec{Id: "srv-dead", Name: "r1-u02", Oob: &agentv1.OOB{Protocol: "ipmi", Address: "127.0.0.1:" + strconv.Itoa(dead)}})
	})
	b.bmc.SetOn(true)
	defer b.run()()
	b.eventually("the server was seen on", func() bool {
		b.cluster.mu.Lock()
		defer b.cluster.mu.Unlock()
		return slices.ContainsFunc(b.cluster.seen, func(o *agentv1.Observation) bool {
			raised, told := o.Conditions[string(metal.ConditionOOBUnreachable)]
			return o.ServerId == testServer && o.Power == "on" && told && !raised
		})
	})
	o := &observer{known: make(map[string]*observed)}
	spec := &agentv1.ServerSpec{Id: "s"}
	fail := oob.Reading{Power: metal.PowerUnknown, Err: &metal.Error{Code: metal.CodeOOBUnreachable, Message: "does not answer", Err: errors.New("a secret cause")}}
	on, again := oob.Reading{Power: metal.PowerOn}, fail
	again.Remembered = true // not another failure
	for i, tc := range []struct {
		reading oob.Reading
		power   string
		raised  string // "", "true", "false"
	}{
		{on, "on", "false"}, {on, "", ""}, {fail, "", ""}, {fail, "", ""}, {fail, "", ""}, {on, "", ""},
		{fail, "", ""}, {again, "", ""}, {again, "", ""}, {again, "", ""}, {fail, "", ""}, {again, "", ""},
		{fail, "", ""}, {again, "", ""}, {fail, "", "true"}, {again, "", ""}, {fail, "", ""},
		{oob.Reading{Power: metal.PowerOff}, "off", "false"},
	} {
		next, obs := o.edge(spec, tc.reading)
		o.known["s"] = &next
		raised := ""
		if v, ok := obs.GetConditions()[string(metal.ConditionOOBUnreachable)]; ok {
			raised = strconv.FormatBool(v)
		}
		if obs.GetPower() != tc.power || raised != tc.raised || strings.Contains(obs.GetMessage(), "secret") {
			t.Errorf("reading %d: %v", i, obs)
		}
	}
}

func TestTunnel(t *testing.T) {
	b := newBench(t, 1)
	defer b.run()()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	go func() { // the server's service answers what it was sent, in capitals
		conn, err := lis.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		data, _ := io.ReadAll(conn) // until our half-close
		_, _ = conn.Write(bytes.ToUpper(data))
	}()
	b.eventually("the rack is known", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.netboot.Directory == nil {
			return false
		}
		_, ok := b.netboot.Directory.Lookup(testMAC)
		return ok
	})
	b.cluster.offers <- &agentv1.TunnelOffer{TunnelId: "tun-1", ServerId: testServer, Port: uint32(lis.Addr().(*net.TCPAddr).Port)}
	side := <-b.cluster.tunnels
	if side.head.TunnelId != "tun-1" || side.head.Error != "" {
		t.Fatalf("head = %v", side.head)
	}
	if err := errors.Join(side.stream.Send(&agentv1.TunnelData{Data: []byte("hello")}), side.stream.Send(&agentv1.TunnelData{CloseWrite: true})); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		m, err := side.stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Data...)
		if m.CloseWrite {
			break
		}
	}
	close(side.done)
	if string(got) != "HELLO" {
		t.Errorf("got %q", got)
	}
	for _, id := range []string{"srv-of-another-rack", testServer} {
		b.cluster.offers <- &agentv1.TunnelOffer{TunnelId: "tun-2", ServerId: id, Port: 1}
		side = <-b.cluster.tunnels
		if side.head.Error == "" {
			t.Errorf("%s: a tunnel to nowhere was made", id)
		}
		close(side.done)
	}
}

func TestJoinRefusals(t *testing.T) {
	c := newCluster(t, 1)
	other := newCluster(t, 1)
	token := func(edit func(*jointoken.Token)) string {
		data, err := os.ReadFile(c.tokenFile(t))
		if err != nil {
			t.Fatal(err)
		}
		tok, err := jointoken.Parse(string(data))
		if err != nil {
			t.Fatal(err)
		}
		edit(&tok)
		path := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(path, []byte(tok.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct {
		name string
		file string
		code metal.Code
	}{
		{"no file", "", metal.CodeInvalid},
		{"missing file", "/nowhere/token", metal.CodeInvalid},
		{"wrong role", token(func(t *jointoken.Token) { t.Role = jointoken.RoleNode }), metal.CodeDenied},
		{"expired", token(func(t *jointoken.Token) { t.Expires = time.Now().Add(-time.Minute) }), metal.CodeTokenExpired},
		{"wrong secret", token(func(t *jointoken.Token) { t.Secret = "guess" }), metal.CodeUnauthenticated},
	} {
		_, err := join(t.Context(), Config{Name: "a", DataDir: t.TempDir(), TokenFile: tc.file}, slog.New(slog.DiscardHandler))
		if metal.CodeOf(err) != tc.code {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	// Somebody else's cluster answers at the seed: the secret is not shown to it.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	file := token(func(t *jointoken.Token) { t.Seeds = []string{other.nodes[0].addr} })
	if _, err := join(ctx, Config{Name: "a", DataDir: t.TempDir(), TokenFile: file}, slog.New(slog.DiscardHandler)); err == nil || other.joins != 0 {
		t.Errorf("joined through another cluster: %v, %d asked", err, other.joins)
	}
}

func TestNewestRevisionWins(t *testing.T) {
	r, err := openRack(RackConfig{Name: "r1"}, filepath.Join(t.TempDir(), "r1.json"), boot.New(boot.Config{}))
	if err != nil {
		t.Fatal(err)
	}
	server := func(id, state string) *agentv1.ServerSpec { return &agentv1.ServerSpec{Id: id, State: state} }
	state := func(id string) string { s, _ := r.server(id); return s.GetState() }
	snapshot := func(rev uint64, s ...*agentv1.ServerSpec) *agentv1.RackUpdate {
		return &agentv1.RackUpdate{Revision: rev, Rack: &agentv1.RackSpec{Subnet: "10.77.0.0/24"}, Upserts: s}
	}
	now := time.Unix(1000, 0)
	r.now = func() time.Time { return now }
	if _, err := r.replace("n1", snapshot(100, server("a", "active"))); err != nil || state("a") != "active" {
		t.Fatal("the first snapshot was refused")
	}
	if _, err := r.replace("n2", snapshot(90, server("a", "deploying"))); !errors.Is(err, errOlder) || state("a") != "active" {
		t.Error("an older snapshot won while a newer node is connected")
	}
	r.apply(0, &agentv1.RackUpdate{Revision: 95, Upserts: []*agentv1.ServerSpec{server("a", "deploying")}})
	if state("a") != "active" {
		t.Error("an older change won")
	}
	r.apply(0, &agentv1.RackUpdate{Revision: 101, Removed: []string{"a"}, Upserts: []*agentv1.ServerSpec{server("b", "available")}})
	if state("a") != "" || state("b") != "available" {
		t.Error("a newer change did not win")
	}
	// The cluster has lost its newest revisions: once nobody has known better
	// for some time, the past is the truth.
	r.gone("n1")
	r.gone("n2")
	for range 2 {
		if _, err := r.replace("n2", snapshot(50, server("a", "available"))); !errors.Is(err, errPast) || state("b") != "available" {
			t.Error("the past was believed at once")
		}
		r.gone("n2")
		now = now.Add(pastFor - time.Second)
	}
	now = now.Add(time.Second)
	if _, err := r.replace("n2", snapshot(50, server("a", "available"))); err != nil || state("a") != "available" {
		t.Error("nobody else is connected, and the snapshot was refused")
	}
}

func TestLeaseEndsByItself(t *testing.T) {
	l := newLease(&rack{conf: RackConfig{Name: "r1"}}, nil, slog.New(slog.DiscardHandler))
	now := time.Duration(0)
	l.now = func() time.Duration { l2 := now; return l2 }
	epoch := func() uint64 { return 5 }
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := l.hold(ctx, epoch); err == nil {
		t.Error("held before it was granted")
	}
	grant := func(held bool, epoch uint64, ttl time.Duration) {
		l.answered(now, &agentv1.RenewLeaseResponse{Held: held, Epoch: epoch, Ttl: durationpb.New(ttl)})
	}
	grant(true, 5, 30*time.Millisecond)
	held, release, err := l.hold(t.Context(), epoch)
	if err != nil {
		t.Fatal(err)
	}
	grant(true, 6, time.Hour) // another epoch is another lease
	select {
	case <-held.Done():
	case <-time.After(10 * time.Second):
		t.Error("an act outlives its epoch")
	}
	release()
	grant(true, 5, time.Hour)
	held, release, err = l.hold(t.Context(), epoch)
	if err != nil {
		t.Fatal(err)
	}
	grant(false, 5, 0)
	select {
	case <-held.Done():
	case <-time.After(10 * time.Second):
		t.Error("an act outlives its lease")
	}
	release()
}

// A rack's ramdisks are told of all of its agents, this one first.
func TestAgentsOf(t *testing.T) {
	r := &rack{conf: RackConfig{Name: "r1", Address: "10.77.1.1/24"}, servers: map[string]*agentv1.ServerSpec{testServer: {Id: testServer}}}
	a := &Agent{cfg: Config{HTTPPort: 80, TLSPort: 8443}, id: &identity{AgentID: "agt-1"}, racks: []*rack{r}}
	if got := a.agentsOf(testServer); !slices.Equal(got, []string{"10.77.1.1:8443"}) {
		t.Errorf("alone: %v", got)
	}
	r.setAgents([]*agentv1.Endpoint{
		{AgentId: "agt-2", Address: "10.77.1.2", TlsPort: 9443},
		{AgentId: "agt-1", Address: "10.77.1.77", TlsPort: 8443}, // ourselves, as we were before a restart
		{AgentId: "agt-3", Address: "10.77.1.3", TlsPort: 8443},
	}, false, "")
	if got, want := a.agentsOf(testServer), []string{"10.77.1.1:8443", "10.77.1.2:9443", "10.77.1.3:8443"}; !slices.Equal(got, want) {
		t.Errorf("agents %v, want %v", got, want)
	}
	if got := a.agentsOf("srv-elsewhere"); got != nil {
		t.Errorf("of a server that we do not serve: %v", got)
	}
}

// A new leader has not heard all agents: those that are known stay, until it has led
// for long enough to know better.
func TestAgentsAreKnownOverAChangeOfLeader(t *testing.T) {
	r := &rack{conf: RackConfig{Name: "r1", Address: "10.77.1.1/24"}}
	e := func(id, addr string) *agentv1.Endpoint { return &agentv1.Endpoint{AgentId: id, Address: addr} }
	for _, tt := range []struct {
		name    string
		told    []*agentv1.Endpoint
		partial bool
		holder  string
		want    string
	}{
		{"at first", []*agentv1.Endpoint{e("agt-2", "2"), e("agt-1", "1"), e("agt-3", "3")}, false, "", "2 1 3"},
		{"a new leader has heard this one alone", []*agentv1.Endpoint{e("agt-1", "1")}, true, "agt-2", "2 1 3"},
		{"and another, at a new address", []*agentv1.Endpoint{e("agt-1", "1"), e("agt-3", "33")}, true, "agt-2", "2 1 33"},
		{"this one holds the lease now", []*agentv1.Endpoint{e("agt-1", "1"), e("agt-3", "33")}, true, "", "1 33 2"},
		{"nobody is known to hold it", []*agentv1.Endpoint{e("agt-3", "33")}, true, "agt-9", "33 1 2"},
		{"all that there are have been heard", []*agentv1.Endpoint{e("agt-1", "1"), e("agt-3", "33")}, false, "", "1 33"},
	} {
		r.setAgents(tt.told, tt.partial, tt.holder)
		var got []string
		for _, e := range r.agents {
			got = append(got, e.GetAddress())
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Whom a machine asks what to boot is chance: a standby that let it boot its disk
// in the middle of an operation would break the operation.
func TestStandbySendsTheMachineToTheHolder(t *testing.T) {
	r := &rack{conf: RackConfig{Name: "r1", Address: "10.77.1.2/24"}, boots: boot.New(boot.Config{Log: slog.New(slog.DiscardHandler)})}
	holder := &agentv1.Endpoint{AgentId: "agt-1", Address: "10.77.1.1", HttpPort: 80}
	self := &agentv1.Endpoint{AgentId: "agt-2", Address: "10.77.1.2", HttpPort: 80}
	for _, tt := range []struct {
		agents []*agentv1.Endpoint
		state  metal.State
		want   string
	}{
		{[]*agentv1.Endpoint{holder, self}, metal.StateDeploying, "10.77.1.1:80"},
		{[]*agentv1.Endpoint{holder, self}, metal.StateCleaning, "10.77.1.1:80"},
		{[]*agentv1.Endpoint{holder, self}, metal.StateActive, ""}, // depends on nobody
		{[]*agentv1.Endpoint{self, holder}, metal.StateDeploying, ""},
		{nil, metal.StateDeploying, ""},
	} {
		r.setAgents(tt.agents, false, "")
		got := ""
		if e := r.bootSpec(&agentv1.ServerSpec{State: string(tt.state)}, "52:54:00:00:00:01").Elsewhere; e.IsValid() {
			got = e.String()
		}
		if got != tt.want {
			t.Errorf("%s with %v: sent to %q, want %q", tt.state, tt.agents, got, tt.want)
		}
	}
}

func TestSightings(t *testing.T) {
	s := newSightings()
	start := time.Unix(1000, 0)
	now := start
	s.now = func() time.Time { return now }
	now = start.Add(time.Second)
	s.note(netboot.Event{Kind: netboot.EventUnknown, MAC: "52:54:00:00:00:99"})
	s.note(netboot.Event{Kind: netboot.EventDHCP, MAC: "52:54:00:00:00:02"})
	s.note(netboot.Event{Kind: netboot.EventLease, MAC: "52:54:00:00:00:03"}) // a running system renews
	own := []string{"52:54:00:00:00:01"}
	busy := func(mac string) bool { return mac == "52:54:00:00:00:02" }
	if got := s.strangers(start, own, busy); len(got) != 1 || got["52:54:00:00:00:99"].IsZero() {
		t.Errorf("strangers = %v", got)
	}
	if len(s.strangers(now, own, busy)) != 0 || s.saw(start, own) {
		t.Error("nobody has come since")
	}
	s.note(netboot.Event{Kind: netboot.EventScript, MAC: own[0]})
	if !s.saw(start, own) {
		t.Error("our own machine was not noticed")
	}
	for i := range 3 * maxSightings {
		now = now.Add(time.Millisecond)
		s.note(netboot.Event{Kind: netboot.EventUnknown, MAC: fmt.Sprint(i)})
	}
	if len(s.seen) > maxSightings {
		t.Errorf("%d MACs remembered", len(s.seen))
	}
}

func TestProbe(t *testing.T) {
	b := &bench{t: t}
	b.sshServer()
	right := string(ssh.MarshalAuthorizedKey(b.hostKey.PublicKey()))
	other := &bench{t: t}
	other.sshServer()
	wrong := string(ssh.MarshalAuthorizedKey(other.hostKey.PublicKey()))
	p := sshProber{port: b.sshPort}
	if err := p.Probe(t.Context(), "127.0.0.1", []string{wrong, right}); err != nil {
		t.Errorf("the right key: %v", err)
	}
	if err := p.Probe(t.Context(), "127.0.0.1", []string{wrong}); err == nil {
		t.Error("another key passed")
	}
	if err := (sshProber{port: strconv.Itoa(freeport.Port(t))}).Probe(t.Context(), "127.0.0.1", []string{right}); err == nil {
		t.Error("nobody passed")
	}
}

func TestProgressIsCoalesced(t *testing.T) {
	p := newProgress()
	for i := range 100 {
		p.note(operation.Progress{Operation: "op", Step: "wipe", Done: uint64(i)})
	}
	now := time.Now()
	if due := p.due(now); len(due) != 1 || due[0].Done != 99 {
		t.Errorf("due = %v", due)
	}
	if due := p.due(now.Add(time.Second)); len(due) != 0 {
		t.Errorf("unchanged, and due: %v", due)
	}
	if due := p.due(now.Add(progressAgain)); len(due) != 1 {
		t.Error("a new leader never hears of it")
	}
	if p.due(now.Add(time.Hour)); len(p.latest) != 0 {
		t.Error("an operation that has ended is remembered")
	}
}

func TestConfig(t *testing.T) {
	const good = `name: r1-a1
data_dir: /var/lib/bmc-agent
gossip: 10.76.0.101:7946
token_file: /etc/bmc/agent.token
racks:
- {name: r1, interface: rack0, address: 10.77.0.1/24}
ramdisk: {kernel: build/ramdisk/vmlinuz, initrd: build/ramdisk/initrd.img}
image_store: {endpoint: "https://10.76.0.5:9000", bucket: bmc-images, access_key: bmc, secret_key_file: /x, region: us-east-1}
cache: {max_bytes: 20GiB}
`
	load := func(text string) (Config, error) {
		path := filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return LoadConfig(path)
	}
	c, err := load(good)
	if err != nil || c.HTTPPort != 80 || c.TLSPort != 8443 || c.Cache.MaxBytes != 20<<30 || c.LogLevel != "info" {
		t.Fatalf("config = %+v, %v", c, err)
	}
	for _, tc := range []struct{ from, to, field string }{
		{"name: r1-a1", "name: R1_a1", "name"},
		{"data_dir: /var", "data_dir: var", "data_dir"},
		{"address: 10.77.0.1/24", "address: 10.77.0.1", "racks.address"},
		{"interface: rack0", "interface: ''", "racks.interface"},
		{"gossip: 10.76.0.101:7946", "gossip: here", "gossip"},
		{"bucket: bmc-images", "bucket: X", "image_store.bucket"},
		{"kernel: build/ramdisk/vmlinuz, ", "", "ramdisk"},
	} {
		_, err := load(strings.Replace(good, tc.from, tc.to, 1))
		var e *metal.Error
		if !errors.As(err, &e) || e.Code != metal.CodeInvalid || e.Field != tc.field {
			t.Errorf("%s: %v", tc.to, err)
		}
	}
	if _, err := load(good + "rack: r1\n"); err == nil || !strings.Contains(err.Error(), ":10") {
		t.Errorf("unknown key: %v", err)
	}
}
