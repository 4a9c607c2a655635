package dispatch

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"bmc/chaos/check"
	"bmc/fsm/logpb"
	"bmc/lab/virtualbmc"
	"bmc/metal"
)

// evidence is what a run with one server leaves: the state, and commands that two
// agents gave its controller.
func evidence(s *single, commands ...virtualbmc.Command) *check.Evidence {
	e := &check.Evidence{Commands: commands, Sources: map[netip.Addr]string{
		netip.MustParseAddr("10.78.1.1"): "r1-a1", netip.MustParseAddr("10.78.1.2"): "r1-a2"}}
	e.View(s.View())
	return e
}

// off is an agent's command, accepted now.
func off(agent string) virtualbmc.Command {
	return virtualbmc.Command{Server: "r1-u01", Time: time.Now(), From: agent + ":4000", Cmd: 0x02, Data: "00", On: true, OK: true}
}

// holder acts like an agent: for TTL from the moment when it sent a renewal that
// was acknowledged.
type holder struct {
	t     *testing.T
	d     *Dispatcher
	id    string
	until time.Time
}

func (h *holder) renew() {
	sent := time.Now()
	if l, err := h.d.RenewLease(context.Background(), h.id, rack1); err == nil && l.Held {
		h.until = sent.Add(l.TTL)
	}
}

func (h *holder) held() bool { return time.Now().Before(h.until) }

func hold(t *testing.T, invariants []string, e *check.Evidence) {
	t.Helper()
	for _, v := range check.Of(e, invariants...) {
		t.Errorf("violated %s", v)
	}
}

// A leader that was replaced and does not know it yet must not prolong a lease.
func TestInvariantDeposedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := newCluster(t), newCluster(t) // two replicas of the same log
		dOld, dNext := New(old, nil), New(next, nil)
		defer lead(dOld)()
		first := &holder{t: t, d: dOld, id: id("agt", 1)}
		first.renew()
		settle()
		defer lead(dNext)()
		(&holder{t: t, d: dNext, id: id("agt", 1)}).renew() // the grant reached the majority
		settle()
		old.mu.Lock()
		old.verify = errors.New("no quorum")
		old.mu.Unlock()
		second := &holder{t: t, d: dNext, id: id("agt", 2)}
		var commands []virtualbmc.Command
		for range 12 { // agents renew every five seconds, at the node that answers them
			time.Sleep(5 * time.Second)
			first.renew()
			second.renew()
			for _, h := range []struct {
				*holder
				addr string
			}{{first, "10.78.1.1"}, {second, "10.78.1.2"}} {
				if h.held() {
					commands = append(commands, off(h.addr))
				}
			}
		}
		if !second.held() {
			t.Error("nobody took over")
		}
		hold(t, []string{"I4"}, evidence(next, commands...))
	})
}

// A successor waits until the former holder's time is over by everybody's count.
func TestInvariantSuccessorWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		first, second := &holder{t: t, d: d, id: id("agt", 1)}, &holder{t: t, d: d, id: id("agt", 2)}
		first.renew() // and never again: it is paused or cut off
		settle()
		var commands []virtualbmc.Command
		for range 30 {
			time.Sleep(time.Second)
			if second.renew(); second.held() {
				commands = append(commands, off("10.78.1.2"))
			}
			if first.held() {
				commands = append(commands, off("10.78.1.1"))
			}
		}
		hold(t, []string{"I4"}, evidence(s, commands...))
	})
}

// A renewal breaks a silence that the log speaks of: it is acknowledged when that
// has been taken back, else the next leader counts it, too.
func TestInvariantRenewalTakesTheMarkBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		stop := lead(d)
		first := &holder{t: t, d: d, id: id("agt", 1)}
		first.renew()
		time.Sleep(secondMark + time.Second) // a node that hung, say
		if first.renew(); !first.held() {
			t.Fatal("a holder that is back in time is not told so")
		}
		stop()
		d = New(s, nil)
		defer lead(d)()
		second := &holder{t: t, d: d, id: id("agt", 2)}
		var commands []virtualbmc.Command
		for range 30 { // the holder is cut off now, and acts until its time is over
			if second.renew(); second.held() {
				commands = append(commands, off("10.78.1.2"))
			}
			if first.held() {
				commands = append(commands, off("10.78.1.1"))
			}
			time.Sleep(time.Second)
		}
		if !second.held() {
			t.Error("nobody took over")
		}
		hold(t, []string{"I4"}, evidence(s, commands...))
	})
}

// A step that nobody ends is first late, then failed.
func TestInvariantAlarmBeforeTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		h := &holder{t: t, d: d, id: id("agt", 1)}
		for range 40 {
			h.renew()
			time.Sleep(5 * time.Second)
			settle()
		}
		hold(t, []string{"I8"}, evidence(s))
	})
}

// An operation whose agent is gone goes on at the next one: it ends.
func TestInvariantGoesOnAtTheSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		first, second := &holder{t: t, d: d, id: id("agt", 1)}, &holder{t: t, d: d, id: id("agt", 2)}
		first.renew()
		settle()
		for range 8 {
			time.Sleep(5 * time.Second)
			second.renew()
			settle()
		}
		// The successor does all that was assigned to it.
		finish(s, id("agt", 2))
		e := evidence(s)
		e.Healed = true
		hold(t, []string{"I15"}, e)
	})
}

// finish ends an operation, badly, if it was assigned to this agent.
func finish(s *single, agent string) {
	op := operation(s)
	if op.Agent != agent || op.State != metal.OperationRunning {
		return
	}
	s.must(&logpb.Command{Command: &logpb.Command_ReportStep{ReportStep: &logpb.ReportStep{OperationId: op.ID, Attempt: int64(op.Attempt),
		Epoch: op.Epoch, AgentId: agent, Sequence: op.Sequence + 1, Step: string(op.Current()), Phase: "failed", Reason: string(metal.CodeOOBUnreachable)}}})
}
