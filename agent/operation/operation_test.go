package operation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

func tlsInfo(server string) credentials.TLSInfo {
	return credentials.TLSInfo{State: tls.ConnectionState{ServerName: server}}
}

var testCA = func() func(*testing.T) string {
	var once sync.Once
	var out string
	return func(t *testing.T) string {
		once.Do(func() {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
			der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
			if err != nil {
				t.Fatal(err)
			}
			out = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		})
		return out
	}
}()

// edges is what the control plane hears of a plan that goes well.
func edges(kind metal.OperationKind) []string {
	var out []string
	for _, s := range metal.Plan(kind) {
		out = append(out, string(s)+" started", string(s)+" done")
	}
	return out
}

// walk runs an assignment to its end and returns what was told.
func walk(t *testing.T, w *world, a *agentv1.Assignment) []string {
	t.Helper()
	testCA(t)
	m := w.start()
	m.Assign(a)
	waitEnd(t, m, a)
	m.Close()
	w.shutdown()
	return w.told()
}

// waitEnd waits, in the bubble's time, until the control plane knows the end.
func waitEnd(t *testing.T, m *Manager, a *agentv1.Assignment) {
	t.Helper()
	for range 3 * 3600 {
		m.mu.Lock()
		r := m.runs[a.OperationId]
		m.mu.Unlock()
		if r == nil || r.isFinished() {
			return
		}
		time.Sleep(time.Second)
	}
	t.Fatal("the operation never ended")
}

func TestPlansWalkThrough(t *testing.T) {
	testCA(t)
	for _, tc := range []struct {
		kind    metal.OperationKind
		on      bool // before
		power   []string
		tasks   []string
		onAfter bool
	}{
		{metal.KindEnroll, true, []string{"off", "on", "off"}, []string{"Inspect", "Wipe"}, false},
		{metal.KindInspect, false, []string{"on", "off"}, []string{"Inspect"}, false},
		{metal.KindDeploy, false, []string{"on"}, []string{"WriteImage", "Configure", "Kexec"}, true},
		{metal.KindPower, true, []string{"soft"}, nil, false},
		{metal.KindRestart, true, []string{"soft", "on"}, nil, true},
		{metal.KindRelease, true, []string{"off", "on", "off"}, []string{"Wipe"}, false},
		{metal.KindClean, true, []string{"off", "on", "off"}, []string{"Wipe"}, false},
		{metal.KindWarm, false, []string{"on"}, nil, true},
		{metal.KindCool, true, []string{"off"}, nil, false},
	} {
		t.Run(string(tc.kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.machine.on, w.machine.ready, w.machine.forGood = tc.on, tc.on, "disk"
				if got, want := walk(t, w, w.assignment(tc.kind)), edges(tc.kind); !slices.Equal(got, want) {
					t.Errorf("reports\n got %v\nwant %v", got, want)
				}
				if !slices.Equal(w.machine.log, tc.power) || !slices.Equal(w.machine.tasks, tc.tasks) || w.machine.on != tc.onAfter {
					t.Errorf("power %v, tasks %v, on %v; want %+v", w.machine.log, w.machine.tasks, w.machine.on, tc)
				}
			})
		})
	}
}

func TestReportsCarryFindings(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		walk(t, w, w.assignment(metal.KindDeploy))
		for _, r := range w.reports {
			if r.Step == string(metal.StepConfigure) && r.Phase == "done" {
				in := r.Installed
				if in.GetRootDisk() != "vda" || in.GetBytesVerified() != 10 || !slices.Equal(in.GetSshHostKeys(), []string{hostKey}) || in.GetBootEntry() != "Boot0003" {
					t.Errorf("installed = %v", in)
				}
			}
			if r.Attempt != 1 || r.Epoch != epoch || r.OperationId != "op-aaaaaaaaaaaaaaaa" {
				t.Errorf("report = %v", r)
			}
		}
	})
}

// A ramdisk whose certificate is still on its way is nobody else's to adopt: the
// step that boots it is not done before.
func TestBootEndsWithTheCertificate(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machine.faults.unheard = 30 * time.Second
		walk(t, w, w.assignment(metal.KindDeploy))
		at := make(map[string]time.Time)
		for _, r := range w.reports {
			at[r.Step+" "+r.Phase] = r.At.AsTime()
		}
		if took := at["boot-ramdisk done"].Sub(at["boot-ramdisk started"]); took < w.machine.faults.unheard {
			t.Errorf("booted after %s, before the ramdisk had its certificate", took)
		}
		if !slices.Equal(w.machine.log, []string{"on"}) {
			t.Errorf("power %v", w.machine.log)
		}
	})
}

func TestFailures(t *testing.T) {
	testCA(t)
	for _, tc := range []struct {
		name   string
		kind   metal.OperationKind
		prep   func(w *world, a *agentv1.Assignment)
		last   string // the last edge
		says   string
		rungs  int
		tasks  []string // nil: not checked
		writes bool     // a disk may have been touched
	}{
		{name: "no word for the first wipe", kind: metal.KindEnroll, prep: func(_ *world, a *agentv1.Assignment) { a.Enroll.Wipe = false },
			last: "wipe failed WIPE_NOT_CONFIRMED", tasks: []string{"Inspect"}},
		{name: "unreachable", kind: metal.KindEnroll, prep: func(w *world, _ *agentv1.Assignment) { w.machine.powerErrs = 1 << 20 },
			last: "verify-oob failed OOB_UNREACHABLE", tasks: []string{}},
		{name: "network boots at the third start", kind: metal.KindInspect, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.deadBoots = 2 },
			last: "power-off-end done", rungs: 2},
		{name: "never boots", kind: metal.KindEnroll, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.deadBoots = 9 },
			last: "boot-ramdisk failed NO_NETBOOT", rungs: 2, tasks: []string{}},
		{name: "another machine behind the controller", kind: metal.KindEnroll, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.wrongOne = true },
			last: "boot-ramdisk failed BMC_MISMATCH", says: stranger, rungs: 1, tasks: []string{}},
		{name: "another identity", kind: metal.KindEnroll, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.wrongSerial = true },
			last: "boot-ramdisk failed BMC_MISMATCH", says: "serial number", tasks: []string{}},
		{name: "token used twice", kind: metal.KindClean, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.replay = true },
			last: " failed BOOT_TOKEN_REPLAYED"},
		{name: "task fails", kind: metal.KindDeploy, prep: func(w *world, _ *agentv1.Assignment) {
			w.machine.faults.failTask = map[string]metal.Code{"WriteImage": metal.CodeImageTooLarge}
		}, last: "write-image failed IMAGE_TOO_LARGE", says: "the disk is too small"},
		{name: "write without progress", kind: metal.KindDeploy, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.silent = metal.StepWriteImage },
			last: "write-image failed WRITE_FAILED", says: "no progress for 2m0s"},
		{name: "not ready, recovered", kind: metal.KindDeploy, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.notReady = 1 },
			last: "ready done", rungs: 1},
		{name: "not ready", kind: metal.KindRestart, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.notReady = 9 },
			last: "ready failed NOT_READY", rungs: 1},
		{name: "reboot ignored", kind: metal.KindDeploy, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.ignoreBoot = true },
			last: "ready done"},
		{name: "persistence refused", kind: metal.KindDeploy, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.noPersist = true },
			last: "ready done"},
		{name: "soft ignored", kind: metal.KindPower, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.ignoreSoft = true },
			last: "set-power done", rungs: 1},
		{name: "soft refused", kind: metal.KindPower, prep: func(w *world, _ *agentv1.Assignment) { w.machine.faults.refuseSoft = true },
			last: "set-power done", rungs: 1},
		{name: "hard", kind: metal.KindPower, prep: func(w *world, a *agentv1.Assignment) { a.Power.Hard = true; w.machine.faults.refuseSoft = true },
			last: "set-power done"},
		{name: "no proof promised", kind: metal.KindRestart, prep: func(w *world, _ *agentv1.Assignment) { w.spec.Ready = "none"; w.machine.faults.notReady = 9 },
			last: "ready done"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.machine.on, w.machine.ready, w.machine.forGood = true, true, "disk"
				a := w.assignment(tc.kind)
				tc.prep(w, a)
				told := walk(t, w, a)
				if got := told[len(told)-1]; !strings.HasSuffix(got, tc.last) {
					t.Fatalf("last edge %q, want %q", got, tc.last)
				}
				last := w.last()
				if !strings.Contains(last.Message, tc.says) {
					t.Errorf("message %q lacks %q", last.Message, tc.says)
				}
				rungs := 0
				for _, r := range w.reports {
					rungs = max(rungs, len(r.Recovery))
				}
				if tc.rungs != 0 && rungs != tc.rungs {
					t.Errorf("%d rungs recorded, want %d", rungs, tc.rungs)
				}
				if tc.tasks != nil && !slices.Equal(w.machine.tasks, tc.tasks) {
					t.Errorf("tasks = %v, want %v", w.machine.tasks, tc.tasks)
				}
			})
		})
	}
}

var errCrash = errors.New("crash")

// The agent dies right before and right after each journal record, and starts
// again. Power commands and tasks happen exactly as often as without a crash,
// and the control plane hears the same story.
func TestCrashAtEveryRecord(t *testing.T) {
	testCA(t)
	for _, kind := range []metal.OperationKind{metal.KindEnroll, metal.KindDeploy, metal.KindRestart} {
		crashesAtEach(t, kind, nil)
	}
	crashesAtEach(t, metal.KindDeploy, []string{"Kexec"}) // refused: two tasks in one step
	crashesAtEach(t, metal.KindWarm, nil)
}

func crashesAtEach(t *testing.T, kind metal.OperationKind, refused []string) {
	points := crashes(t, kind, refused, -1, false)
	if points < 12 && kind != metal.KindWarm {
		t.Errorf("%s: only %d journal records", kind, points)
	}
	for n := range points {
		crashes(t, kind, refused, n, false)
		crashes(t, kind, refused, n, true)
	}
}

// crashes runs a plan whose agent dies around record n, and returns how many
// records it wrote; with -1 it does not die. The ramdisk refuses some kinds of tasks.
func crashes(t *testing.T, kind metal.OperationKind, refused []string, n int, written bool) (points int) {
	name := fmt.Sprintf("%s, record %d, written %v", kind, n, written)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machine.on, w.machine.ready, w.machine.forGood = kind != metal.KindDeploy && kind != metal.KindWarm, true, "disk"
		w.refuses(refused...)
		count, fired := crashAt(w, n, written)
		a := w.assignment(kind)
		for range 2 {
			m := w.start()
			m.Assign(a)
			waitEnd(t, m, a)
			m.Close()
			if !fired() {
				break
			}
			w.mu.Lock()
			w.crash = nil
			w.mu.Unlock()
		}
		if n >= 0 && !fired() {
			t.Errorf("%s: no crash", name)
		}
		w.shutdown()
		points = count()
		checkOnce(t, w, name, kind)
	})
	return points
}

// crashAt kills the agent around its nth record: that write and all later ones
// fail, so nothing further happens.
func crashAt(w *world, n int, written bool) (count func() int, fired func() bool) {
	var mu sync.Mutex
	seen, dead := 0, false
	w.crash = func(_ Record, after bool) error {
		mu.Lock()
		defer mu.Unlock()
		if dead {
			return errCrash
		}
		if after == written && seen == n {
			dead = true
			return errCrash
		}
		if after {
			seen++
		}
		return nil
	}
	count = func() int { mu.Lock(); defer mu.Unlock(); return seen }
	fired = func() bool { mu.Lock(); defer mu.Unlock(); return dead }
	return count, fired
}

func checkOnce(t *testing.T, w *world, name string, kind metal.OperationKind) {
	t.Helper()
	want := map[metal.OperationKind]struct{ power, tasks []string }{
		metal.KindEnroll:  {[]string{"off", "on", "off"}, []string{"Inspect", "Wipe"}},
		metal.KindDeploy:  {[]string{"on"}, []string{"WriteImage", "Configure", "Kexec"}},
		metal.KindRestart: {[]string{"soft", "on"}, nil},
		metal.KindWarm:    {[]string{"on"}, nil},
	}[kind]
	if w.machine.faults.failTask["Kexec"] != "" {
		want.tasks = append(want.tasks, "Reboot")
	}
	// A crash between the intent to shut down and the command: nobody knows
	// whether it was sent, so it is not sent again, and the power is cut later.
	unsure := kind == metal.KindRestart && slices.Equal(w.machine.log, []string{"off", "on"})
	if !slices.Equal(w.machine.log, want.power) && !unsure {
		t.Errorf("%s: power %v, want %v", name, w.machine.log, want.power)
	}
	if !slices.Equal(w.machine.tasks, want.tasks) {
		t.Errorf("%s: tasks %v, want %v", name, w.machine.tasks, want.tasks)
	}
	if got := w.told(); !slices.Equal(got, edges(kind)) {
		t.Errorf("%s: told %v", name, got)
	}
}

// Without the lease nothing starts; what has started runs to its end.
func TestLease(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.assignment(metal.KindClean)
		w.setLease(false, epoch)
		m := w.start()
		m.Assign(a)
		time.Sleep(time.Hour)
		if m := w.look(); len(m.log) != 0 || m.boots != 0 {
			t.Fatalf("acted without a lease: %v", m.log)
		}
		w.setLease(true, epoch)
		time.Sleep(20 * time.Second) // the wipe is under way
		if !slices.Contains(w.look().tasks, "Wipe") {
			t.Fatal("no wipe under way")
		}
		w.setLease(false, epoch)
		time.Sleep(time.Hour)
		if told := w.told(); told[len(told)-1] != "power-off-end started" || !w.look().on {
			t.Fatalf("without the lease: %v, on %v", told, w.look().on)
		}
		// The lease comes back under a new epoch: the assignment follows.
		w.setLease(true, epoch+1)
		time.Sleep(time.Minute)
		if !w.look().on {
			t.Fatal("acted under an epoch that the operation is not assigned under")
		}
		a.Epoch = epoch + 1
		m.Assign(a)
		waitEnd(t, m, a)
		m.Close()
		w.shutdown()
		if w.look().on || w.last().Epoch != epoch+1 {
			t.Errorf("on %v, last report %v", w.look().on, w.last())
		}
	})
}

func TestStaleStopsTheRun(t *testing.T) {
	testCA(t)
	for _, code := range []metal.Code{metal.CodeStaleAttempt, metal.CodeStaleEpoch} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.refuse = func(r *agentv1.ReportStepRequest) error {
				if r.Step == string(metal.StepWipe) {
					return metal.Errorf(code, "stale")
				}
				return nil
			}
			told := walk(t, w, w.assignment(metal.KindClean))
			if told[len(told)-1] != "boot-ramdisk done" || len(w.machine.tasks) != 0 {
				t.Errorf("%s: %v, tasks %v", code, told, w.machine.tasks)
			}
		})
	}
}

// A newer attempt replaces the former; an older one is ignored; an assignment
// that has ended is not run again, even from the journal alone.
func TestAttempts(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machine.faults.silent = metal.StepWipe
		m := w.start()
		first := w.assignment(metal.KindClean)
		m.Assign(first)
		time.Sleep(time.Minute)
		w.mu.Lock()
		w.machine.faults.silent = ""
		w.reports = nil
		w.mu.Unlock()
		second := w.assignment(metal.KindClean)
		second.Attempt = 2
		m.Assign(second)
		m.Assign(first)
		m.Assign(second)
		waitEnd(t, m, second)
		if got := w.told(); !slices.Equal(got, edges(metal.KindClean)) {
			t.Errorf("told %v", got)
		}
		for _, r := range w.reports {
			if r.Attempt != 2 {
				t.Errorf("report of attempt %d", r.Attempt)
			}
		}
		boots := w.look().boots
		m.Close()
		m = w.start()
		m.Assign(second)
		waitEnd(t, m, second)
		m.Close()
		w.shutdown()
		if w.machine.boots != boots {
			t.Error("an ended attempt ran again")
		}
	})
}

func TestWithdraw(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		a := w.assignment(metal.KindClean)
		m.Assign(a)
		time.Sleep(20 * time.Second)
		if !m.Busy(serverID) {
			t.Error("not busy")
		}
		m.Keep([]string{"another"}, func(id string) bool { return id == serverID })
		time.Sleep(10 * time.Minute)
		if told := w.told(); told[len(told)-1] != "wipe started" || m.Busy(serverID) {
			t.Errorf("told %v", told)
		}
		m.Close()
		w.shutdown()
	})
}

// Where an operation gave way to another, the last that it told the controller
// has come to its end before the other tells it anything.
func TestOneAtAServer(t *testing.T) {
	testCA(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machine.on, w.machine.faults.slow = true, 30*time.Second
		m := w.start()
		warm := w.assignment(metal.KindWarm)
		m.Assign(warm)
		time.Sleep(5 * time.Second) // it is being switched off
		m.Withdraw(warm.OperationId)
		w.mu.Lock()
		w.machine.faults.slow = 0
		w.epoch++
		w.mu.Unlock()
		next := w.assignment(metal.KindClean)
		next.OperationId = "op-bbbbbbbbbbbbbbbb"
		m.Assign(next)
		m.Assign(next) // which changes nothing
		time.Sleep(24 * time.Second)
		if last := w.last(); last.OperationId != warm.OperationId || len(w.look().log) != 0 {
			t.Errorf("%s %s of %s while the controller still obeys the other", last.Step, last.Phase, last.OperationId)
		}
		time.Sleep(2 * time.Second)
		if last := w.last(); last.OperationId != next.OperationId || !slices.Equal(w.look().log[:1], []string{"off"}) {
			t.Errorf("it does not go on: %s %s of %s, power %v", last.Step, last.Phase, last.OperationId, w.look().log)
		}
		waitEnd(t, m, next)
		m.Close()
		w.shutdown()
	})
}
