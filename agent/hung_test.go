package agent

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"bmc/agent/boot"
	agentv1 "bmc/api/agent/v1"
	"bmc/netboot"
)

// soon fails the test where f waits for something that will not come.
func soon(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s waits for the disk", what)
	}
}

// A journal whose fsync hangs holds up its operation, and no machine's DHCP: not
// that of the rack's other machines, nor of its own, which is answered as before the
// record until that is on disk.
func TestHungJournalHoldsUpNoAnswer(t *testing.T) {
	const otherMAC = "52:54:00:00:00:02"
	arm := func(s *boot.Session, _ *boot.Service) error { return s.Arm() }
	for _, tt := range []struct {
		name   string
		armed  bool // before
		act    func(*boot.Session, *boot.Service) error
		during bool // the ramdisk is offered
		after  bool
	}{
		{"an intent is opened", false, arm, false, true},
		{"an intent is opened again", true, arm, true, true},
		{"a token is made", true, func(_ *boot.Session, b *boot.Service) error {
			_, err := b.Seed(t.Context(), testMAC)
			return err
		}, true, true},
		{"an intent is closed", true, func(s *boot.Session, _ *boot.Service) error { return s.Disarm() }, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ca, err := os.ReadFile(filepath.Join("boot", "testdata", "ca.pem"))
			if err != nil {
				t.Fatal(err)
			}
			boots := boot.New(boot.Config{CAPEM: string(ca), Now: time.Now, Log: slog.New(slog.DiscardHandler), Endpoint: func(string) string { return "10.77.1.1:8443" }})
			r, err := openRack(RackConfig{Name: "r1", Address: "10.77.1.1/24"}, filepath.Join(t.TempDir(), "r1.json"), boots)
			if err != nil {
				t.Fatal(err)
			}
			own := spec("srv-1", "deploying", "10.77.1.11", testMAC)
			mustReplace(t, r, &agentv1.RackUpdate{Revision: 1, Rack: &agentv1.RackSpec{Subnet: "10.77.1.0/24"},
				Upserts: []*agentv1.ServerSpec{own, spec("srv-2", "active", "10.77.1.12", otherMAC)}})
			hangs, disk := make(chan struct{}), make(chan struct{})
			block := false
			sess := boots.Open(boot.Binding{Server: "srv-1", MAC: testMAC}, nil, func(boot.Event) error {
				if block {
					close(hangs)
					<-disk
				}
				return nil
			})
			if tt.armed {
				if err := sess.Arm(); err != nil {
					t.Fatal(err)
				}
			}
			block = true
			acted := make(chan error, 1)
			go func() { acted <- tt.act(sess, boots) }()
			<-hangs

			ramdisk := func() (yes bool) {
				soon(t, "the machine's own answer", func() {
					m, ok := r.Lookup(testMAC)
					yes = ok && m.Boot.Ramdisk
				})
				return yes
			}
			if got := ramdisk(); got != tt.during {
				t.Errorf("the ramdisk is offered: %v", got)
			}
			soon(t, "the rack's news", func() { r.setAgents(nil, false, "") })
			seen := newSightings()
			seen.note(netboot.Event{Kind: netboot.EventDHCP, MAC: testMAC})
			soon(t, "who came", func() { seen.strangers(time.Time{}, nil, boots.Expected) })
			soon(t, "another machine's answer", func() {
				seen.note(netboot.Event{Kind: netboot.EventDHCP, MAC: otherMAC})
				if m, ok := r.Lookup(otherMAC); !ok || m.Boot.Ramdisk {
					t.Errorf("%+v, %v", m, ok)
				}
			})
			// A lease that is lost counts at once: the boot may be the successor's doing.
			soon(t, "the loss of the lease", func() { sess.Attend(false) })
			if ramdisk() {
				t.Error("the ramdisk is offered without the lease")
			}
			soon(t, "the lease", func() { sess.Attend(true) })

			close(disk)
			if err := <-acted; err != nil {
				t.Fatal(err)
			}
			if got := ramdisk(); got != tt.after {
				t.Errorf("with the record on disk the ramdisk is offered: %v", got)
			}
		})
	}
}

// What ends a session is seen at once, though it waits for what is on its way to
// the journal.
func TestHungJournalAtTheEnd(t *testing.T) {
	r := openTestRack(t)
	mustReplace(t, r, &agentv1.RackUpdate{Revision: 1, Rack: &agentv1.RackSpec{Subnet: "10.77.1.0/24"},
		Upserts: []*agentv1.ServerSpec{spec("srv-1", "deploying", "10.77.1.11", testMAC)}})
	hangs, disk := make(chan struct{}), make(chan struct{})
	block := false
	sess := r.boots.Open(boot.Binding{Server: "srv-1", MAC: testMAC}, nil, func(boot.Event) error {
		if block {
			close(hangs)
			<-disk
		}
		return nil
	})
	if err := sess.Arm(); err != nil {
		t.Fatal(err)
	}
	block = true
	acted := make(chan error, 1)
	go func() { acted <- sess.Arm() }()
	<-hangs
	closed, cancel := context.WithCancel(t.Context())
	var changed <-chan struct{}
	soon(t, "who waits for a change", func() { changed = sess.Changed() })
	go func() { defer cancel(); sess.Close() }()
	soon(t, "the end", func() { <-changed })
	soon(t, "the machine's answer", func() {
		if m, _ := r.Lookup(testMAC); m.Boot.Ramdisk {
			t.Error("the ramdisk is offered after the end")
		}
	})
	if closed.Err() != nil {
		t.Error("the session was closed with a record on its way")
	}
	close(disk)
	if err := <-acted; err != nil {
		t.Fatal(err)
	}
	<-closed.Done()
}

// A call that waits for its journal does not keep the agent from ending; what is no write
// of an operation's journal is not blamed on the disk.
func TestHungJournalOfACall(t *testing.T) {
	b := newBench(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a, done := b.begin(ctx)
	a.seams.stop = time.Second
	b.eventually("the node is followed", func() bool { return b.follows() == 1 })
	hangs, disk := make(chan struct{}), make(chan struct{})
	defer close(disk)
	sess := a.boots.Open(boot.Binding{Server: testServer, MAC: testMAC}, nil, func(e boot.Event) error {
		if e.Kind == boot.Greeted {
			close(hangs)
			<-disk
		}
		return nil
	})
	sess.Attend(true)
	if err := sess.Arm(); err != nil {
		t.Fatal(err)
	}
	seed, err := a.boots.Seed(t.Context(), testMAC)
	if err != nil {
		t.Fatal(err)
	}
	calling, hangUp := context.WithCancel(t.Context())
	b.wg.Go(func() { b.ramdisk(calling, seed) })
	defer hangUp()
	soon(t, "the ramdisk's hello", func() { <-hangs })
	cancel()
	soon(t, "the agent", func() {
		if err := <-done; err != nil {
			t.Errorf("it ends with %v", err)
		}
	})
}
