package lab

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// eventually waits until try has nothing to say against it.
func eventually(t *testing.T, within time.Duration, what string, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
	}
}

func daemonStatus(t *testing.T, c *Client, name string) DaemonStatus {
	t.Helper()
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range s.Daemons {
		if d.Name == name {
			return d
		}
	}
	t.Fatalf("no daemon %s", name)
	return DaemonStatus{}
}

// events are the lines of a lab's faults.jsonl, as "f1 applied".
func events(t *testing.T, dir string) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "faults.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(raw)) {
		var e faultEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Time.IsZero() || len(e.Targets) == 0 {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, e.ID+" "+e.Event)
	}
	return all
}

// TestFaultsOfDaemons, on daemons that are fakes.
func TestFaultsOfDaemons(t *testing.T) {
	cfg := testLab(t)
	cfg.Nodes, cfg.Agents, cfg.Servers, cfg.Failpoints = 1, 2, 0, true
	start(t, cfg)
	c := NewClient(cfg.Dir)
	fault := func(spec FaultSpec) string {
		t.Helper()
		f, err := c.Fault(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		return f.ID
	}
	heal := func(id string) {
		t.Helper()
		if err := c.Heal(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}

	id := fault(FaultSpec{Kind: FaultStop, Targets: []string{"r1-a1"}})
	if d := daemonStatus(t, c, "r1-a1"); !d.Stopped || d.Ended != "" {
		t.Errorf("a stopped daemon: %+v", d)
	}
	heal(id)
	eventually(t, 5*time.Second, "SIGCONT", func() error {
		if daemonStatus(t, c, "r1-a1").Stopped {
			return errors.New("still stopped")
		}
		return nil
	})

	id = fault(FaultSpec{Kind: FaultKill, Targets: []string{"r1-a1", "r1-a2"}})
	for _, name := range []string{"r1-a1", "r1-a2"} {
		if d := daemonStatus(t, c, name); !strings.Contains(d.Ended, "killed") {
			t.Errorf("a killed daemon: %+v", d)
		}
	}
	if _, err := c.Fault(t.Context(), FaultSpec{Kind: FaultStop, Targets: []string{"r1-a1"}}); err == nil || !strings.Contains(err.Error(), "bmc-lab start r1-a1") {
		t.Errorf("stop a dead daemon: %v", err)
	}
	if _, err := c.Fault(t.Context(), FaultSpec{Kind: FaultKill, Targets: []string{"cp1", "r1-a1"}}); err == nil || !strings.Contains(err.Error(), "nothing was done") {
		t.Errorf("kill one that lives and one that is dead: %v", err)
	}
	if d := daemonStatus(t, c, "cp1"); d.Ended != "" || d.Restarts != 0 {
		t.Errorf("the one that lives: %+v", d)
	}
	if err := c.StartDaemon(t.Context(), "r1-a2"); err != nil {
		t.Fatal(err)
	}
	heal(id)
	for _, name := range []string{"r1-a1", "r1-a2"} {
		if d := daemonStatus(t, c, name); d.Ended != "" || d.Restarts != 1 {
			t.Errorf("after heal: %+v", d)
		}
	}
	if err := c.RestartDaemon(t.Context(), "r1-a1"); err != nil || daemonStatus(t, c, "r1-a1").Restarts != 2 {
		t.Errorf("restart: %v", err)
	}

	id = fault(FaultSpec{Kind: FaultKill, Targets: []string{"r1-a2"}, For: Duration(50 * time.Millisecond)})
	eventually(t, 5*time.Second, "heal by itself", func() error {
		all, err := c.Faults(t.Context())
		if err != nil || all[len(all)-1].ID != id || all[len(all)-1].Healed == nil {
			return errors.Join(err, errors.New("not healed"))
		}
		return nil
	})
	if d := daemonStatus(t, c, "r1-a2"); d.Ended != "" {
		t.Errorf("after its time: %+v", d)
	}
	want := []string{"f1 applied", "f1 fired", "f1 healed", "f2 applied", "f2 fired", "f2 healed"}
	if got := events(t, cfg.Dir); !slices.Equal(got[:6], want) || len(got) != 9 {
		t.Errorf("faults.jsonl: %q", got)
	}
	testFailpoints(t, c, cfg.Dir)
	testBadFaults(t, c)

	// What is stopped, killed and wants to heal later must not hold the end up.
	fault(FaultSpec{Kind: FaultStop, Targets: []string{"cp1", "r1-a1"}})
	fault(FaultSpec{Kind: FaultKill, Targets: []string{"s3"}, For: Duration(time.Hour)})
	fault(FaultSpec{Kind: FaultLogHang, Targets: []string{"cp1"}})
	fault(FaultSpec{Kind: FaultRogueDHCP, Targets: []string{"r1"}})
	fault(FaultSpec{Kind: FaultPartition, Targets: []string{"cp1", "rest"}})
	begin := time.Now()
	if was, err := Down(t.Context(), cfg.Dir); err != nil || !was {
		t.Fatalf("down: %v, %v", was, err)
	}
	if took := time.Since(begin); took > stopGrace {
		t.Errorf("down took %s", took)
	}
	if left := processes(cfg.Bin); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	got := events(t, cfg.Dir)
	if a, h := count(got, "applied"), count(got, "healed"); a != h {
		t.Errorf("%d faults applied, %d healed: %q", a, h, got)
	}
}

func count(all []string, event string) int {
	n := 0
	for _, e := range all {
		if strings.HasSuffix(e, " "+event) {
			n++
		}
	}
	return n
}

// testFailpoints: files come and go, and what the daemon says of them is counted.
func testFailpoints(t *testing.T, c *Client, dir string) {
	t.Helper()
	for _, tc := range []struct{ kind, target, file, text string }{
		{FaultDiskFull, "cp1", "raft.log.before", "error ENOSPC\n"},
		{FaultDiskFull, "r1-a1", "agent.journal.before", "error ENOSPC\n"},
		{FaultLogHang, "r1-a1", "agent.journal.before", "hang\n"},
		{FaultPoint, "r1-a1", "agent.oob.x.before", "times 1 stop\n"},
	} {
		spec := FaultSpec{Kind: tc.kind, Targets: []string{tc.target}}
		if tc.kind == FaultPoint {
			spec.Point, spec.Action = "agent/oob/x/before", "times 1 stop"
		}
		f, err := c.Fault(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		folder := filepath.Join(dir, "failpoints", tc.target)
		path := filepath.Join(folder, tc.file)
		if raw, err := os.ReadFile(path); err != nil || string(raw) != tc.text {
			t.Errorf("%s: %q, %v", tc.kind, raw, err)
		}
		if _, err := c.Fault(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "already") {
			t.Errorf("%s twice: %v", tc.kind, err)
		}
		point := strings.ReplaceAll(tc.file, ".", "/")
		appendFile(t, filepath.Join(folder, "fired.jsonl"), `{"action":"x","point":"`+point+`"}`+"\n"+`{"action":"x","point":"another"}`+"\n"+`{"half":`)
		appendFile(t, filepath.Join(folder, "fired.jsonl"), `1,"point":"`+point+`"}`+"\n")
		eventually(t, 5*time.Second, "count", func() error {
			all, err := c.Faults(t.Context())
			if err == nil && all[len(all)-1].Fired != 2 {
				err = errors.New("not counted")
			}
			return err
		})
		if err := c.Heal(t.Context(), f.ID); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

func appendFile(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// testBadFaults: who mistypes is told what there is.
func testBadFaults(t *testing.T, c *Client) {
	t.Helper()
	for _, tc := range []struct {
		spec FaultSpec
		want string
	}{
		{FaultSpec{Kind: "explode", Targets: []string{"cp1"}}, "partition"},
		{FaultSpec{Kind: FaultKill, Targets: []string{"r1-a1", "cp9"}}, "there are: cp1 r1-a1 r1-a2 s3"},
		{FaultSpec{Kind: FaultLoss, Targets: []string{"cp9"}}, "there are: mgmt s3 cp1 r1 r1-a1 r1-a2 r1-probe"},
		{FaultSpec{Kind: FaultLoss, Targets: []string{"cp1"}, Network: "lan"}, "there are: mgmt r1 r1-oob"},
		{FaultSpec{Kind: FaultLoss, Targets: []string{"cp1"}, Network: "r1"}, "but on: mgmt"},
		{FaultSpec{Kind: FaultPartition, Targets: []string{"cp1", "r1-probe"}}, "share no network"},
		{FaultSpec{Kind: FaultPartition, Targets: []string{"cp1", "s3,cp1"}}, "both sides"},
		{FaultSpec{Kind: FaultRogueDHCP, Targets: []string{"r7"}}, "there are: r1"},
		{FaultSpec{Kind: FaultDiskFull, Targets: []string{"s3"}}, "killed or stopped"},
		{FaultSpec{Kind: "bmc-lie", Targets: []string{"r1-u77"}}, "no server"},
	} {
		if _, err := c.Fault(t.Context(), tc.spec); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %v: %v, want %q", tc.spec.Kind, tc.spec.Targets, err, tc.want)
		}
	}
	if d := daemonStatus(t, c, "r1-a1"); d.Ended != "" {
		t.Error("a fault with one wrong name has hit the other")
	}
	if err := c.Heal(t.Context(), "f99"); err == nil || !strings.Contains(err.Error(), "there are: f1 f2") {
		t.Errorf("heal: %v", err)
	}
	if err := c.Cont(t.Context(), "cp9"); err == nil || !strings.Contains(err.Error(), "there are: cp1") {
		t.Errorf("cont: %v", err)
	}
}

// TestNoFailpoints: the way out is in the message.
func TestNoFailpoints(t *testing.T) {
	l := &Lab{plan: newPlan(&Config{Nodes: 1})}
	l.daemons = []*process{{name: "cp1"}}
	err := l.harmAll(&activeFault{Fault: Fault{FaultSpec: FaultSpec{Kind: FaultDiskFull, Targets: []string{"cp1"}}}})
	if err == nil || !strings.Contains(err.Error(), "make build-failpoints") {
		t.Error(err)
	}
}
