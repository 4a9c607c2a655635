package consensus

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bmc/controlplane/dispatch"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
)

const leasedRack = "rack-0000000000000001"

// leasing is a cluster whose nodes lease a rack to two agents, over a network that
// carries no answer of a node that is cut off to an agent of the other side.
type leasing struct {
	*cluster
	dispatchers map[string]*dispatch.Dispatcher
	agents      []*tenant
}

// tenant is an agent as agent/lease.go is one: it asks every five seconds, counts
// from the moment of sending, and asks node after node.
type tenant struct {
	id string
	mu sync.Mutex // guards what follows
	// until ends its newest lease; dead: it asks no more.
	epoch uint64
	until time.Time
	dead  bool
	spans []span
}

// span is a time in which an agent would have acted.
type span struct {
	epoch     uint64
	from, end time.Time
}

// leaderSide is dispatch's view of a member.
type leaderSide struct{ *member }

func (l leaderSide) View() *state.View        { return l.fsm.View() }
func (l leaderSide) Changed() <-chan struct{} { return l.fsm.Changed() }

func newLeasing(t *testing.T) *leasing {
	t.Helper()
	l := &leasing{cluster: newCluster(t, 3), dispatchers: map[string]*dispatch.Dispatcher{}}
	leader := l.leader()
	l.propose(leader, &logpb.Command{Command: &logpb.Command_ApplyInventory{ApplyInventory: &logpb.ApplyInventory{
		Racks: []*logpb.RackInput{{Id: leasedRack, Name: "r1", Subnet: "10.77.1.0/24", RangeFrom: "10.77.1.10", RangeTo: "10.77.1.99"}}}}})
	for n := 1; n <= 2; n++ {
		h := sha256.Sum256([]byte{byte(n)})
		token, agent := fmt.Sprintf("tok-%016d", n), fmt.Sprintf("agt-%016d", n)
		l.propose(leader, &logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{Token: &logpb.Token{
			Id: token, Hash: h[:], Kind: "join-agent", Name: "a", Racks: []string{leasedRack}, Expires: time.Now().Add(time.Hour).UnixNano()}}}})
		l.propose(leader, &logpb.Command{Command: &logpb.Command_JoinAgent{JoinAgent: &logpb.JoinAgent{TokenId: token, TokenHash: h[:],
			Agent: &logpb.Agent{Id: agent, Name: fmt.Sprintf("r1-a%d", n)}}}})
		l.agents = append(l.agents, &tenant{id: agent})
	}
	for _, m := range l.members {
		d := dispatch.New(leaderSide{m}, nil)
		l.dispatchers[m.id] = d
		work := d.Run
		m.work.Store(&work) // from its next leadership on
	}
	if err := leader.TransferLeadership(l.ctx(10*time.Second), l.others(leader)[0].id); err != nil {
		t.Fatal(err)
	}
	return l
}

// run asks for the lease until ctx ends, as the agent does.
func (l *leasing) run(ctx context.Context, a *tenant) {
	for ctx.Err() == nil {
		wait := time.Second
		for _, m := range l.members {
			if a.gone() {
				return
			}
			if l.ask(ctx, a, m) {
				wait = 5 * time.Second
				break
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

func (l *leasing) ask(ctx context.Context, a *tenant, m *member) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	sent := time.Now()
	got, err := l.dispatchers[m.id].RenewLease(ctx, a.id, leasedRack)
	if err != nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !got.Held {
		a.until = time.Time{}
		return true
	}
	now := time.Now()
	if got.Epoch != a.epoch || !now.Before(a.until) {
		a.spans = append(a.spans, span{epoch: got.Epoch, from: now})
	}
	a.epoch, a.until = got.Epoch, sent.Add(got.TTL)
	a.spans[len(a.spans)-1].end = a.until
	return true
}

func (a *tenant) gone() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dead
}

func (a *tenant) kill() (last span) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dead = true
	if len(a.spans) == 0 {
		return span{}
	}
	return a.spans[len(a.spans)-1]
}

func (a *tenant) holds() (since time.Time, yes bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !time.Now().Before(a.until) {
		return time.Time{}, false
	}
	return a.spans[len(a.spans)-1].from, true
}

// alone reports times in which both agents would have acted.
func (l *leasing) alone() {
	l.t.Helper()
	for _, x := range l.agents[0].spans {
		for _, y := range l.agents[1].spans {
			if x.from.Before(y.end) && y.from.Before(x.end) {
				l.t.Errorf("%s to %s under epoch %d, and %s to %s under epoch %d", x.from, x.end, x.epoch, y.from, y.end, y.epoch)
			}
		}
	}
}

func (l *leasing) commands(name string) int {
	n := 0
	for e := range l.leader().fsm.View().Audit(0) {
		if e.Command == name && e.Outcome == "" {
			n++
		}
	}
	return n
}

// begin starts the agents, the second a moment after the first.
func (l *leasing) begin() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.run(ctx, l.agents[0]) })
	l.await("the first holds the rack", func() bool { _, yes := l.agents[0].holds(); return yes })
	time.Sleep(1300 * time.Millisecond)
	wg.Go(func() { l.run(ctx, l.agents[1]) })
	return func() { cancel(); wg.Wait() }
}

// The leader and the holder die together: the next leader counts from its own
// beginning, which is an election later, and the other agent asks every five seconds.
func TestLeaderAndHolderDieTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeasing(t)
		end := l.begin()
		time.Sleep(40 * time.Second)
		if n := l.commands("mark_silence"); n > 0 {
			t.Errorf("%d marks of a rack that is renewed", n)
		}
		died := time.Now()
		last := l.agents[0].kill()
		l.stop(l.leader())
		l.await("the other has the rack", func() bool { _, yes := l.agents[1].holds(); return yes })
		since, _ := l.agents[1].holds()
		const election, asking = 3 * time.Second, 5 * time.Second
		if took := since.Sub(died); took > dispatch.TTL+dispatch.Skew+election+asking {
			t.Errorf("taken over after %s", took)
		}
		if since.Before(last.end) {
			t.Errorf("taken over %s before the holder's time was over", last.end.Sub(since))
		}
		end()
		l.alone()
	})
}

// Leaders change all the time, by losing their network or by handing on; the
// holder dies. Another has the rack before long, and never both.
func TestLeadershipThatDoesNotLast(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
				l := newLeasing(t)
				end := l.begin()
				change := func(most time.Duration) {
					m := l.leader()
					time.Sleep(time.Second + time.Duration(rng.Int64N(int64(most))))
					if rng.IntN(3) == 0 {
						_ = m.TransferLeadership(l.ctx(10*time.Second), l.others(m)[rng.IntN(2)].id) // it may have lost it
						return
					}
					l.isolate(m)
					l.leader(l.others(m)...)
					time.Sleep(time.Duration(rng.Int64N(int64(time.Second))))
					l.heal()
				}
				for range 30 { // nobody is cut off who renews
					change(3 * time.Second)
				}
				since, yes := l.agents[0].holds()
				if !yes {
					t.Fatalf("the holder was cut off: %+v", l.agents[0].spans)
				}
				if n := len(l.agents[0].spans); n != 1 {
					t.Errorf("it was cut off in between: %+v, since %s", l.agents[0].spans, since)
				}
				died := time.Now()
				l.agents[0].kill()
				for range 40 {
					change(3 * time.Second)
					if _, yes := l.agents[1].holds(); yes {
						break
					}
				}
				at, yes := l.agents[1].holds()
				if took := at.Sub(died); !yes || took > time.Minute {
					t.Errorf("taken over after %s (%v)", took, yes)
				} else {
					t.Logf("taken over after %s; %d marks, %d taken back", took, l.commands("mark_silence"), l.commands("clear_silence"))
				}
				end()
				l.alone()
			})
		})
	}
}

// Who was cut off with a mark in its log may not take it back, nor renew.
func TestDeposedLeaderTakesNoMarkBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeasing(t)
		end := l.begin()
		l.agents[0].kill()
		l.await("it is marked", func() bool {
			r, _ := l.leader().fsm.View().Rack(leasedRack)
			return r.Lease.Silent > 0
		})
		old := l.leader()
		l.isolate(old)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if got, err := l.dispatchers[old.id].RenewLease(ctx, l.agents[0].id, leasedRack); err == nil {
			t.Errorf("acknowledged %+v", got)
		}
		next := l.leader(l.others(old)...)
		if r, _ := next.fsm.View().Rack(leasedRack); r.Lease.Silent == 0 {
			t.Error("the mark is gone")
		}
		end()
		l.heal()
	})
}

var _ dispatch.Consensus = leaderSide{}
