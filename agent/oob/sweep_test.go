package oob

import (
	"bytes"
	"context"
	"errors"
	"net"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"

	"bmc/agent/oob/oobtest"
	"bmc/metal"
)

// ours counts the goroutines that are in this package, without the controllers
// of tests.
func ours(t *testing.T) int {
	t.Helper()
	var out bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&out, 1); err != nil {
		t.Fatal(err)
	}
	n := 0
	for group := range strings.SplitSeq(out.String(), "\n\n") {
		count, _, _ := strings.Cut(strings.TrimSpace(group), " @")
		if k, err := strconv.Atoi(count); err == nil && strings.Contains(group, "bmc/agent/oob") && !strings.Contains(group, "oobtest") && !strings.Contains(group, ".Test") {
			n += k
		}
	}
	return n
}

// silentBMC is an address at which nothing answers.
func silentBMC(t *testing.T) string {
	t.Helper()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	return socket.LocalAddr().String()
}

// Two thousand controllers, a tenth of which do not answer, cost a few goroutines,
// and one that stands once all sessions do.
func TestManyControllers(t *testing.T) {
	const all, dead = 2000, 200
	p := NewPool()
	defer p.Close(context.Background())
	cfgs := make([]Config, all)
	for i := range cfgs {
		if i%(all/dead) == 0 {
			cfgs[i] = Config{Server: "dead", Address: silentBMC(t), Timing: Timing{Wait: 200 * time.Millisecond}}
			continue
		}
		b := oobtest.Start(t)
		b.SetOn(i%2 == 1)
		cfgs[i] = config(b)
		cfgs[i].CipherSuite, cfgs[i].Timing = 17, Timing{Wait: 2 * time.Second} // the controllers share two processors with us
	}
	most := 0
	for round := range 2 {
		began := time.Now()
		read, late := 0, time.Duration(0)
		for batch := range p.Sweep(t.Context(), time.Minute, cfgs) {
			most = max(most, ours(t))
			for _, r := range batch {
				if r.Index%(all/dead) == 0 {
					if metal.CodeOf(r.Err) != metal.CodeOOBUnreachable {
						t.Errorf("round %d: dead %d: %+v", round, r.Index, r)
					}
					continue
				}
				late = time.Since(began)
				if want := []metal.Power{metal.PowerOff, metal.PowerOn}[r.Index%2]; r.Err != nil || r.Power != want {
					t.Errorf("round %d: %d: %+v, want %v", round, r.Index, r, want)
				}
				read++
			}
		}
		if read != all-dead {
			t.Errorf("round %d: %d read", round, read)
		}
		t.Logf("round %d: %d controllers in %v, all in %v", round, read, late, time.Since(began))
	}
	if limit := 2*sweepSlots + 4; most > limit { // bmclib has one more for each that opens
		t.Errorf("%d goroutines, want at most %d", most, limit)
	}
	if n := ours(t); n != 1 {
		t.Errorf("%d goroutines between sweeps, want the socket's reader alone", n)
	}
}

// Controllers that hang or are slow delay nobody else's reading.
func TestSlowOnesDelayNobody(t *testing.T) {
	p := NewPool()
	defer p.Close(context.Background())
	var cfgs []Config
	for i := range 120 {
		if i%2 == 0 {
			cfgs = append(cfgs, Config{Server: "dead", Address: silentBMC(t), Timing: Timing{Wait: 3 * time.Second}})
		} else {
			cfgs = append(cfgs, config(oobtest.Start(t)))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	read := 0
	for batch := range p.Sweep(ctx, 30*time.Second, cfgs) {
		for _, r := range batch {
			if r.Index%2 == 0 {
				if read < 60 {
					t.Fatalf("a controller that hangs was given up when %d others had been read: %v", read, r.Err)
				}
			} else if read++; r.Err != nil {
				t.Error(r.Err)
			}
		}
		if read == 60 {
			break // the rest has its time
		}
	}
	cancel()
}

// A controller that restarted has forgotten its session: the same sweep opens another.
func TestSweepOpensLostSession(t *testing.T) {
	b := oobtest.Start(t)
	p := NewPool()
	defer p.Close(context.Background())
	cfgs := []Config{config(b)}
	for range 2 {
		if r := p.Status(t.Context(), cfgs); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
	}
	if n := b.Opened(); n != 1 {
		t.Errorf("%d sessions for two sweeps", n)
	}
	b.ForgetSessions()
	if r := p.Status(t.Context(), cfgs); r[0].Err != nil {
		t.Error(r[0].Err)
	}
	if b.Sessions() != 1 || b.Opened() != 2 {
		t.Errorf("%d sessions, %d were opened", b.Sessions(), b.Opened())
	}
}

// A sweep loses packets, too, and asks again.
func TestSweepOverLossyNetwork(t *testing.T) {
	_, cfg, _ := lossy(t, 0.2)
	p := NewPool()
	defer p.Close(context.Background())
	read := 0
	for range 20 {
		if r := p.Status(t.Context(), []Config{cfg}); r[0].Err == nil {
			read++
		}
		p.mu.Lock()
		for _, c := range p.open {
			c.failed = failed{}
		}
		p.mu.Unlock()
	}
	if read < 17 {
		t.Errorf("%d of 20 readings", read)
	}
}

// One call at a time: a sweep waits for the turn of a command, and says nothing
// when that does not come. Without the lease it opens nothing.
func TestSweepWaitsForItsTurn(t *testing.T) {
	b := oobtest.Start(t)
	p := NewPool()
	defer p.Close(context.Background())
	cfg := config(b)
	g := &grant{epoch: 1, held: true}
	cfg.Lease = g
	c := p.get(cfg)
	if err := c.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	for batch := range p.Sweep(t.Context(), 200*time.Millisecond, []Config{cfg}) {
		if !errors.Is(batch[0].Err, ErrUnfinished) {
			t.Errorf("in use: %+v", batch)
		}
	}
	results := p.Sweep(t.Context(), 20*time.Second, []Config{cfg})
	c.unlock()
	if batch := <-results; batch[0].Err != nil {
		t.Error(batch[0].Err)
	}
	g.set(1, false)
	if r := p.Status(t.Context(), []Config{cfg}); !errors.Is(r[0].Err, ErrLease) {
		t.Errorf("without the lease: %+v", r)
	}
	g.set(2, true)
	if r := p.Status(t.Context(), []Config{cfg}); r[0].Err != nil {
		t.Errorf("under another epoch: %+v", r)
	}
	if c.takenEpoch != 2 {
		t.Errorf("taken over under epoch %d", c.takenEpoch)
	}
}

// A controller that refuses the password is not asked in every sweep: it might lock
// the user out. New credentials are tried at once.
func TestSweepBacksOff(t *testing.T) {
	b := oobtest.Start(t)
	p := NewPool()
	defer p.Close(context.Background())
	cfg := config(b)
	cfg.Password = "wrong"
	for round := range 5 {
		if r := p.Status(t.Context(), []Config{cfg}); metal.CodeOf(r[0].Err) != metal.CodeOOBAuth || r[0].Remembered != (round > 0) {
			t.Errorf("round %d: %+v", round, r)
		}
	}
	if f := p.get(cfg).failed; f.times != 1 || time.Until(f.until) < backoffMin/2 {
		t.Errorf("tried %d times, again in %s", f.times, time.Until(f.until))
	}
	if r := p.Status(t.Context(), []Config{config(b)}); r[0].Err != nil {
		t.Error(r[0].Err)
	}
}

// While no session is tried the controller is asked whether it is there: silence is
// a failure of its own, and one that comes back is tried at once, unless it would lock
// the user out.
func TestBackoffEndsWhenItComesBack(t *testing.T) {
	for _, tc := range []struct {
		err   error
		tried bool
	}{{metal.Errorf(metal.CodeOOBUnreachable, "lost"), true}, {metal.Errorf(metal.CodeOOBAuth, "refused"), false}} {
		b := oobtest.Start(t)
		p := NewPool()
		defer p.Close(context.Background())
		cfg := config(b)
		cfg.Timing.Wait = 300 * time.Millisecond
		p.get(cfg).failed.again(tc.err, time.Now())
		status := func() Reading { return p.Status(t.Context(), []Config{cfg})[0] }
		for range 2 {
			if r := status(); r.Err != tc.err || !r.Remembered { //nolint:errorlint // the very same
				t.Errorf("%v: there all the time: %+v", tc.err, r)
			}
		}
		b.Hang(true)
		if r := status(); metal.CodeOf(r.Err) != metal.CodeOOBUnreachable || r.Remembered || r.Err == tc.err { //nolint:errorlint // another one
			t.Errorf("%v: away: %+v", tc.err, r)
		}
		if b.Opened() > 0 {
			t.Errorf("%v: a session was tried", tc.err)
		}
		b.Hang(false)
		if r := status(); (r.Err == nil) != tc.tried || r.Remembered == tc.tried {
			t.Errorf("%v: back: %+v", tc.err, r)
		}
	}
}

// The wait doubles, with jitter, up to its limit.
func TestBackoff(t *testing.T) {
	for _, tc := range []struct {
		err  error
		most time.Duration
	}{{errors.New("lost"), backoffMax}, {metal.Errorf(metal.CodeOOBAuth, "refused"), backoffAuth}} {
		var f failed
		now := time.Now()
		for i := range 40 {
			f.again(tc.err, now)
			wait, want := f.until.Sub(now), min(backoffMin<<min(i, 10), tc.most)
			if wait < want*3/4 || wait > want*5/4 {
				t.Errorf("%v, failure %d: %s, want about %s", tc.err, i, wait, want)
			}
		}
	}
}

func BenchmarkSweep40(b *testing.B) {
	p := NewPool()
	defer p.Close(context.Background())
	cfgs := make([]Config, 40)
	for i := range cfgs {
		cfgs[i] = config(oobtest.Start(b))
	}
	p.Status(b.Context(), cfgs)
	for b.Loop() {
		for _, r := range p.Status(b.Context(), cfgs) {
			if r.Err != nil {
				b.Fatal(r.Err)
			}
		}
	}
}
