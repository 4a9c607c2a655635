package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/bootseed"
	"bmc/metal"
)

func caPEM(t *testing.T) string {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join("testdata", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return string(ca)
}

// office is a Discovery and the control plane that it asks.
type office struct {
	*Discovery
	service *Service

	mu      sync.Mutex
	refuse  error
	lent    map[string]int // how often, by MAC
	reports int
	outcome string
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{lent: map[string]int{}, outcome: "discovered"}
	o.Discovery = NewDiscovery(DiscoveryConfig{CAPEM: caPEM(t), Endpoint: func(string) string { return "10.77.0.1:8443" }, Now: func() time.Time { return time.Now().AddDate(30, 0, 0) }, Log: slog.New(slog.DiscardHandler),
		Lend: func(_ context.Context, _, mac string) (netip.Addr, time.Duration, error) {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.refuse != nil {
				return netip.Addr{}, 0, o.refuse
			}
			o.lent[mac]++
			return netip.MustParseAddr("10.77.0.200"), 10 * time.Minute, nil
		},
		Report: func(context.Context, string, string, *agentv1.Hardware) (*agentv1.ReportDiscoveredResponse, error) {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.refuse != nil {
				return nil, o.refuse
			}
			o.reports++
			return &agentv1.ReportDiscoveredResponse{Outcome: o.outcome, Name: "new-1"}, nil
		}})
	o.service = New(Config{Discovery: o.Discovery, CAPEM: caPEM(t), Endpoint: func(string) string { return "" }, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { o.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return o
}

func (o *office) set(f func()) { o.mu.Lock(); defer o.mu.Unlock(); f() }

func (o *office) token(t *testing.T) string {
	t.Helper()
	raw, err := o.service.Seed(t.Context(), mac)
	if err != nil {
		t.Fatal(err)
	}
	i, j := strings.Index(string(raw), "{"), strings.LastIndex(string(raw), "}")
	s, err := bootseed.Parse(raw[i : j+1])
	if err != nil {
		t.Fatal(err)
	}
	if !s.Discover || s.ServerID != "" || s.MAC != mac {
		t.Fatalf("seed %+v", s)
	}
	return s.Token
}

func (o *office) tell(t *testing.T, token, bootID string) (*agentv1.DiscoverResponse, metal.Code) {
	t.Helper()
	resp, err := o.service.Discover(t.Context(), &agentv1.DiscoverRequest{Mac: mac, Token: token, BootId: bootID, Hardware: &agentv1.Hardware{Serial: "XJ42"}})
	return resp, codeOf(err)
}

func TestDiscovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		if _, err := o.service.Seed(t.Context(), mac); codeOf(err) == "" {
			t.Error("a seed before an address is lent")
		}
		o.Note("r1", mac)
		synctest.Wait()
		addr, left, ok := o.Lent("r1", mac)
		if !ok || addr.String() != "10.77.0.200" || left > 10*time.Minute {
			t.Fatalf("%v, %s, %v", addr, left, ok)
		}
		if _, _, ok := o.Lent("r2", mac); ok {
			t.Error("lent in another rack")
		}
		if m, ok := o.ByAddr("r1", addr); !ok || m != mac {
			t.Errorf("by address: %q", m)
		}
		for range 5 {
			o.Note("r1", mac)
		}
		synctest.Wait()
		o.set(func() {
			if o.lent[mac] != 1 {
				t.Errorf("asked for %d times", o.lent[mac])
			}
		})
		first := o.token(t)
		token := o.token(t) // the loader fetched it again
		if _, code := o.tell(t, first, "boot-1"); code != metal.CodeDenied {
			t.Errorf("an older token: %q", code)
		}
		o.set(func() { o.refuse = errors.New("no node answers") })
		if _, code := o.tell(t, token, "boot-1"); code != metal.CodeNoLeader {
			t.Errorf("without a node: %q", code)
		}
		if _, code := o.tell(t, token, "boot-2"); code != metal.CodeTokenReplayed {
			t.Errorf("a second boot with the token: %q", code)
		}
		o.set(func() { o.refuse = nil })
		for range 2 { // the answer was lost
			resp, code := o.tell(t, token, "boot-1")
			if code != "" || resp.GetOutcome() != "discovered" || resp.GetReboot() {
				t.Errorf("%v, %q", resp, code)
			}
		}
		o.set(func() {
			if o.reports != 1 {
				t.Errorf("%d reports", o.reports)
			}
		})
		if _, _, ok := o.Lent("r1", mac); ok {
			t.Error("it has said what it is, and is answered still")
		}
		if _, err := o.service.Seed(t.Context(), mac); codeOf(err) == "" {
			t.Error("another seed")
		}
		// Forgotten by an operator, it is discovered when it boots again.
		o.Note("r1", mac)
		time.Sleep(refusedFor)
		o.Note("r1", mac)
		synctest.Wait()
		if _, _, ok := o.Lent("r1", mac); !ok {
			t.Error("not answered after it was forgotten")
		}
	})
}

// A loan is renewed while its machine is heard, and ends otherwise.
func TestLoanIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.Note("r1", mac)
		synctest.Wait()
		time.Sleep(7 * time.Minute)
		o.Note("r1", mac)
		synctest.Wait()
		if _, left, ok := o.Lent("r1", mac); !ok || left < 9*time.Minute {
			t.Errorf("left %s, %v", left, ok)
		}
		time.Sleep(11 * time.Minute)
		if _, _, ok := o.Lent("r1", mac); ok {
			t.Error("past its time")
		}
	})
}

// Who was refused is not asked for again at every packet, and a flood of MACs
// costs a bounded number of calls and a bounded memory.
func TestRefusedAndFlooded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		calls := 0
		lend := o.cfg.Lend
		o.cfg.Lend = func(ctx context.Context, rack, mac string) (netip.Addr, time.Duration, error) {
			o.set(func() { calls++ })
			return lend(ctx, rack, mac)
		}
		o.set(func() { o.refuse = metal.Errorf(metal.CodeDenied, "it is r1-u07's") })
		for range 100 {
			o.Note("r1", mac)
			time.Sleep(100 * time.Millisecond)
		}
		o.set(func() {
			if calls != 1 {
				t.Errorf("asked for %d times in ten seconds", calls)
			}
			calls = 0
		})
		for i := range 100_000 {
			o.Note("r1", fmt.Sprintf("02:00:00:%02x:%02x:%02x", i>>16, i>>8&0xff, i&0xff))
			if i%1000 == 999 {
				time.Sleep(100 * time.Millisecond)
			}
		}
		synctest.Wait()
		o.set(func() {
			if limit := 10*int(time.Second/askEvery)*askers + maxAsking; calls > limit {
				t.Errorf("%d calls in ten seconds", calls)
			}
		})
		o.Discovery.mu.Lock()
		defer o.Discovery.mu.Unlock()
		if n := len(o.known); n > maxStrangers {
			t.Errorf("%d MACs remembered", n)
		}
	})
}

func TestKnownMachineLeavesByReboot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for outcome, reboot := range map[string]bool{"discovered": false, "known": true} {
			o := newOffice(t)
			o.set(func() { o.outcome = outcome })
			o.Note("r1", mac)
			synctest.Wait()
			if resp, code := o.tell(t, o.token(t), "boot-1"); code != "" || resp.GetReboot() != reboot {
				t.Errorf("%s: %v, %q", outcome, resp, code)
			}
		}
	})
}

// Attend wakes a waiting ramdisk, for which the service's lock is needed, while
// the service looks at its sessions.
func TestAttendBesideTheService(t *testing.T) {
	d := newDesk(t)
	d.armed()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 500 {
			d.session.Attend(i%2 == 0)
		}
	})
	wg.Go(func() {
		for range 500 {
			d.service.Wanted(mac)
			d.service.wake(server)
		}
	})
	wg.Wait()
}

// A report that is refused for good ends that boot: it is not told again.
func TestRefusedReportIsNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.Note("r1", mac)
		synctest.Wait()
		token := o.token(t)
		o.set(func() { o.refuse = metal.Errorf(metal.CodeNoLeader, "nobody leads") })
		for range 3 {
			if _, code := o.tell(t, token, "boot-1"); code != metal.CodeNoLeader {
				t.Errorf("nobody leads: %q", code)
			}
		}
		o.set(func() { o.refuse = metal.Invalid("hardware", "has no network port") })
		if _, code := o.tell(t, token, "boot-1"); code != metal.CodeInvalid {
			t.Errorf("refused: %q", code)
		}
		o.set(func() { o.refuse = nil })
		for range 5 {
			if _, code := o.tell(t, token, "boot-1"); code != metal.CodeDenied {
				t.Errorf("again: %q", code)
			}
		}
		if o.reports != 0 {
			t.Errorf("%d reports more", o.reports)
		}
	})
}

// What is proved already may have got another mainboard: that is an operator's to
// say. What is not is another machine.
func TestIdentityOfAHello(t *testing.T) {
	for name, tt := range map[string]struct {
		proved     bool
		serial     string
		uuid       string
		mac        string
		want       metal.Code
		withHeard  bool
		wantSerial string
	}{
		"itself":                     {true, "sn1", "6b1f", mac, "", false, ""},
		"itself, not proved":         {false, "SN1", "6B1F", mac, "", false, ""},
		"another board":              {true, "SN9", "6b1f", mac, metal.CodeIdentityChanged, true, "SN9"},
		"another UUID":               {true, "SN1", "7c2e", mac, metal.CodeIdentityChanged, true, "SN1"},
		"another board, not proved":  {false, "SN9", "6b1f", mac, metal.CodeBMCMismatch, true, "SN9"},
		"no serial, proved":          {true, "To be filled by O.E.M.", "6b1f", mac, metal.CodeIdentityChanged, true, "To be filled by O.E.M."},
		"no serial, not proved":      {false, "", "6b1f", mac, metal.CodeBMCMismatch, true, ""},
		"another NIC":                {true, "SN1", "6b1f", "52:54:00:00:00:77", metal.CodeBMCMismatch, true, "SN1"},
		"another NIC, not proved":    {false, "SN1", "6b1f", "52:54:00:00:00:77", metal.CodeBMCMismatch, true, "SN1"},
		"another machine altogether": {true, "SN9", "7c2e", "52:54:00:00:00:77", metal.CodeBMCMismatch, true, "SN9"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			b := binding
			b.Unproven = !tt.proved
			d.openAs(b, nil)
			d.session.Admit(true)
			d.armed()
			token := d.seed()
			code := d.hello(token, "key", func(r *agentv1.HelloRequest) {
				r.Identity = &agentv1.Hardware{Serial: tt.serial, Uuid: tt.uuid, Nics: []*agentv1.NIC{{Mac: tt.mac}}}
			})
			if code != tt.want || (d.session.Found() != nil) != tt.withHeard || d.session.Found().GetSerial() != tt.wantSerial {
				t.Errorf("%q, found %v", code, d.session.Found())
			}
		})
	}
}
