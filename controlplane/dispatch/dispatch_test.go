package dispatch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// single is a Raft of one node: what is proposed is applied at once.
type single struct {
	*fsm.FSM
	t *testing.T

	mu       sync.Mutex
	index    uint64
	verify   error
	applied  []string // names of the accepted commands
	blockers map[string]error
	refuse   string // name of a command that is refused
	proposed int
	held     map[string]chan struct{} // by name: proposals wait until it is closed
	level    uint32                   // of features, seen by the dispatcher; 0: the state's
}

func (s *single) View() *state.View {
	v := s.FSM.View()
	if s.level == 0 {
		return v
	}
	x := v.Begin()
	x.SetMeta(v.Meta().ClusterID, v.Meta().Generation, s.level)
	return x.Commit()
}

// hold makes proposals wait until the returned func is called.
func (s *single) hold(name string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gate := make(chan struct{})
	s.held = map[string]chan struct{}{name: gate}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.held = nil
		close(gate)
	}
}

func (s *single) block(name string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blockers[name] = err
}

func (s *single) VerifyLeaderIn(context.Context, uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verify
}

func (s *single) ProposeIn(ctx context.Context, _ uint64, c *logpb.Command) (*fsm.Result, error) {
	s.mu.Lock()
	gate := s.held[fsm.Name(c)]
	s.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return s.Propose(ctx, c)
}

func (s *single) Propose(_ context.Context, c *logpb.Command) (*fsm.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.blockers[fsm.Name(c)]; err != nil {
		return nil, err
	}
	s.proposed++
	if s.refuse == fsm.Name(c) { // a command that the state machine refuses, and records
		c = &logpb.Command{Header: c.GetHeader(), Command: &logpb.Command_ForgetServer{ForgetServer: &logpb.ForgetServer{Server: &logpb.ServerRef{ServerId: "srv-none"}}}}
	}
	b, err := fsm.Encode(c)
	if err != nil {
		return nil, err
	}
	s.index++
	r, ok := s.Apply(&raft.Log{Index: s.index, Type: raft.LogCommand, Data: b}).(*fsm.Result)
	if !ok {
		return nil, errors.New("no result")
	}
	if r.Err == nil {
		s.applied = append(s.applied, fsm.Name(c))
	}
	return r, nil
}

func (s *single) count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, a := range s.applied {
		if a == name {
			n++
		}
	}
	return n
}

func (s *single) must(c *logpb.Command) *fsm.Result {
	s.t.Helper()
	if c.Header == nil {
		c.Header = &logpb.Header{Time: time.Now().UnixNano(), Principal: "test", Role: "admin"}
	}
	r, err := s.Propose(context.Background(), c)
	if err != nil {
		s.t.Fatal(err)
	}
	if r.Err != nil {
		s.t.Fatal(fsm.Name(c), ": ", r.Err)
	}
	return r
}

func id(prefix string, n int) string { return fmt.Sprintf("%s-%016d", prefix, n) }

const (
	rack1 = "rack-0000000000000001"
)

// newCluster has one rack, two agents, and one server that is being enrolled.
func newCluster(t *testing.T) *single {
	s := &single{FSM: fsm.New(fsm.Options{}), t: t, blockers: map[string]error{}}
	s.must(&logpb.Command{Command: &logpb.Command_InitCluster{InitCluster: &logpb.InitCluster{
		ClusterId: "test", Project: &logpb.Project{Id: id("prj", 1), Name: "default"}}}})
	s.must(&logpb.Command{Command: &logpb.Command_ApplyInventory{ApplyInventory: &logpb.ApplyInventory{
		Racks: []*logpb.RackInput{{Id: rack1, Name: "r1", Subnet: "10.77.1.0/24", RangeFrom: "10.77.1.10", RangeTo: "10.77.1.99"}},
		Servers: []*logpb.ServerInput{{Id: id("srv", 1), OperationId: id("op", 1), Name: "r1-u01", Rack: "r1", Macs: []string{"52:54:00:00:00:01"},
			Oob: &logpb.OOB{Protocol: "ipmi", Address: "10.78.1.1", Username: "u", Password: []byte("sealed")}, Wipe: true}},
	}}})
	for n := 1; n <= 2; n++ {
		hash := sha256.Sum256([]byte{byte(n)})
		s.must(&logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{Token: &logpb.Token{
			Id: id("tok", n), Hash: hash[:], Kind: "join-agent", Name: "a", Racks: []string{rack1},
			Expires: time.Now().Add(time.Hour).UnixNano()}}}})
		s.must(&logpb.Command{Command: &logpb.Command_JoinAgent{JoinAgent: &logpb.JoinAgent{TokenId: id("tok", n), TokenHash: hash[:],
			Agent: &logpb.Agent{Id: id("agt", n), Name: fmt.Sprintf("r1-a%d", n)}}}})
	}
	return s
}

// lead runs the dispatcher until the returned function is called.
func lead(d *Dispatcher) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); d.Run(ctx, 1) }()
	synctest.Wait()
	return func() { cancel(); <-done }
}

// settle lets the loop gather changes and do what they ask for.
func settle() {
	synctest.Wait()
	time.Sleep(2 * gather)
	synctest.Wait()
}

func operation(s *single) *metal.Operation {
	op, ok := s.View().Operation(id("op", 1))
	if !ok {
		s.t.Fatal("the operation is gone")
	}
	return op
}

func renew(t *testing.T, d *Dispatcher, agent string) Lease {
	t.Helper()
	l, err := d.RenewLease(context.Background(), agent, rack1)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestGrantAssignTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		if op := operation(s); op.Agent != "" {
			t.Fatalf("assigned to %q before anybody holds the rack", op.Agent)
		}
		first := renew(t, d, id("agt", 1))
		settle()
		if op := operation(s); !first.Held || op.Agent != id("agt", 1) || op.Epoch != first.Epoch || op.State != metal.OperationRunning && op.State != metal.OperationPending {
			t.Fatalf("lease %+v, operation %+v", first, op)
		}
		if l := renew(t, d, id("agt", 2)); l.Held || l.Holder != id("agt", 1) {
			t.Fatalf("the second agent got %+v", l)
		}
		for range 10 { // renewals keep it
			time.Sleep(10 * time.Second)
			if l := renew(t, d, id("agt", 1)); !l.Held || l.Epoch != first.Epoch {
				t.Fatalf("a renewal got %+v", l)
			}
		}
		time.Sleep(TTL + Skew - time.Millisecond)
		if l := renew(t, d, id("agt", 2)); l.Held {
			t.Fatal("taken over before the holder's time had run out")
		}
		time.Sleep(time.Millisecond)
		second := renew(t, d, id("agt", 2))
		settle()
		op := operation(s)
		if !second.Held || second.Epoch <= first.Epoch || op.Agent != id("agt", 2) || op.Epoch != second.Epoch || op.Attempt != 1 {
			t.Fatalf("lease %+v, operation %+v", second, op)
		}
		if l := renew(t, d, id("agt", 1)); l.Held {
			t.Fatal("the former holder was told that it still holds the rack")
		}
	})
}

// Agents ask for the lease every few seconds, and so say where they are; one
// that has stopped is forgotten, and a new leader starts from nothing.
func TestAgentsOfARack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		wantPartial := true
		list := func() (out []string) {
			r, _ := s.View().Rack(rack1)
			known, partial := d.Agents(r)
			if partial != wantPartial {
				t.Errorf("partial: %v", partial)
			}
			for _, e := range known {
				out = append(out, e.Agent+" "+e.Address)
			}
			return out
		}
		note := func(n int, addr string) {
			d.Note(rack1, Endpoint{Agent: id("agt", n), Address: addr, HTTPPort: 80, TLSPort: 8443})
		}
		note(1, "10.77.1.1")
		if got := list(); got != nil {
			t.Fatalf("a follower lists %v", got)
		}
		stop := lead(d)
		note(1, "10.77.1.1")
		note(2, "10.77.1.2")
		renew(t, d, id("agt", 2))
		if got, want := list(), []string{id("agt", 2) + " 10.77.1.2", id("agt", 1) + " 10.77.1.1"}; !slices.Equal(got, want) {
			t.Fatalf("agents %v, want %v: the holder first", got, want)
		}
		time.Sleep(recent + time.Second)
		note(1, "10.77.1.9") // moved; the other is gone
		wantPartial = false
		if got, want := list(), []string{id("agt", 1) + " 10.77.1.9"}; !slices.Equal(got, want) {
			t.Fatalf("agents %v, want %v", got, want)
		}
		stop()
		defer lead(d)()
		wantPartial = true
		if got := list(); got != nil {
			t.Fatalf("a new leader lists %v", got)
		}
	})
}

// A holder that cannot write its journal keeps the lease while it is alone, and loses
// it, as if it were dead, to one that can.
func TestUnfitHolderYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		ask := func(n int, unfit bool) Lease {
			t.Helper()
			d.Note(rack1, Endpoint{Agent: id("agt", n), Address: "10.77.1.1", HTTPPort: 80, TLSPort: 8443, Unfit: unfit})
			return renew(t, d, id("agt", n))
		}
		ask(2, false) // in time for the first, and gone then
		time.Sleep(TTL + Skew)
		first := ask(1, false)
		for range 5 {
			if l := ask(1, true); !l.Held || l.Epoch != first.Epoch {
				t.Fatalf("the only agent got %+v", l)
			}
			time.Sleep(5 * time.Second)
		}
		last := time.Now()
		ask(1, true)
		var second Lease
		for range 5 {
			if second = ask(2, false); second.Held {
				break
			}
			if l := ask(1, true); l.Held {
				t.Fatal("the unfit one was acknowledged")
			}
			time.Sleep(5 * time.Second)
		}
		if wait := time.Since(last); !second.Held || second.Epoch <= first.Epoch || wait < TTL+Skew {
			t.Fatalf("after %v the other one got %+v", wait, second)
		}
		if l := ask(1, true); l.Held {
			t.Error("the unfit one got it back")
		}
		for range 5 { // the other one breaks, too: it stays where it is
			if l := ask(2, true); !l.Held || l.Epoch != second.Epoch {
				t.Fatalf("of two unfit ones the holder got %+v", l)
			}
			if l := ask(1, true); l.Held {
				t.Fatal("of two unfit ones the other got it")
			}
			time.Sleep(5 * time.Second)
		}
	})
}

func TestDeposedLeaderDoesNotRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		renew(t, d, id("agt", 1))
		s.mu.Lock()
		s.verify = metal.Errorf(metal.CodeNoLeader, "a majority follows another")
		s.mu.Unlock()
		if l, err := d.RenewLease(context.Background(), id("agt", 1), rack1); err == nil {
			t.Fatalf("acknowledged %+v without a majority", l)
		}
	})
}

func TestWhoMayHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		for _, tt := range []struct {
			agent, rack string
			want        metal.Code
		}{
			{id("agt", 9), rack1, metal.CodeDenied},
			{id("agt", 1), "rack-9", metal.CodeNotFound},
		} {
			if _, err := d.RenewLease(context.Background(), tt.agent, tt.rack); metal.CodeOf(err) != tt.want {
				t.Errorf("%s on %s: %v, want %s", tt.agent, tt.rack, err, tt.want)
			}
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		lease := renew(t, d, id("agt", 1))
		settle()
		op := operation(s)
		s.must(&logpb.Command{Command: &logpb.Command_ReportStep{ReportStep: &logpb.ReportStep{OperationId: op.ID, Attempt: 1, Epoch: lease.Epoch,
			AgentId: id("agt", 1), Sequence: 1, Step: string(metal.StepVerifyOOB), Phase: "started"}}})
		limit := fsm.StepDeadline(metal.StepVerifyOOB)
		passTime(t, d, limit/2+time.Second)
		if op := operation(s); !op.Late {
			t.Fatalf("half of %s has gone and the operation is not late: %+v", limit, op)
		}
		passTime(t, d, limit/2+time.Second)
		if op := operation(s); op.State != metal.OperationFailed || op.Failure.Reason != metal.CodeDeadline {
			t.Fatalf("the deadline has passed: %+v", op)
		}
		if n := s.count("mark_late") + s.count("expire_step"); n != 2 {
			t.Errorf("it took %d commands", n)
		}
	})
}

// passTime lets time pass with the agent's renewals going on.
func passTime(t *testing.T, d *Dispatcher, total time.Duration) {
	for end := time.Now().Add(total); time.Now().Before(end); {
		time.Sleep(min(5*time.Second, time.Until(end)))
		renew(t, d, id("agt", 1))
	}
	settle()
}

func TestAgentLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		lost := func() bool {
			srv, _ := s.View().Server(id("srv", 1))
			_, has := srv.Conditions[metal.ConditionAgentLost]
			return has
		}
		renew(t, d, id("agt", 1))
		time.Sleep(TTL + Skew + time.Second)
		settle()
		if lost() {
			t.Fatal("an agent that changes places with another is not lost")
		}
		time.Sleep(lostAfter)
		settle()
		if !lost() {
			t.Fatal("nobody says that the agent is lost")
		}
		renew(t, d, id("agt", 1))
		settle()
		if lost() {
			t.Fatal("the agent is back and the condition stays")
		}
		before := s.count("observe")
		time.Sleep(3 * time.Second)
		settle()
		if n := s.count("observe"); n != before || n != 2 {
			t.Errorf("%d commands for two edges", n)
		}
	})
}

// A proposal that fails is tried again without anybody's help.
func TestTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		s.mu.Lock()
		s.blockers["assign_operation"] = metal.Errorf(metal.CodeUnknownOutcome, "who knows")
		s.mu.Unlock()
		renew(t, d, id("agt", 1))
		settle()
		s.mu.Lock()
		delete(s.blockers, "assign_operation")
		s.mu.Unlock()
		time.Sleep(2 * again)
		settle()
		if op := operation(s); op.Agent != id("agt", 1) {
			t.Fatalf("still not assigned: %+v", op)
		}
	})
}

// A grant whose outcome is unknown may still be applied: until that is settled,
// nobody is told that it holds the rack.
func TestGrantInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		first := renew(t, d, id("agt", 1))
		time.Sleep(TTL + Skew)
		s.block("grant_lease", metal.Errorf(metal.CodeUnknownOutcome, "who knows"))
		if _, err := d.RenewLease(context.Background(), id("agt", 2), rack1); metal.CodeOf(err) != metal.CodeUnknownOutcome {
			t.Fatalf("got %v", err)
		}
		// The former holder is back; an acknowledgement from memory alone would
		// be wrong if the grant were applied after all.
		if l, err := d.RenewLease(context.Background(), id("agt", 1), rack1); err == nil {
			t.Fatalf("acknowledged %+v in doubt", l)
		}
		s.block("grant_lease", nil)
		if l := renew(t, d, id("agt", 1)); !l.Held || l.Epoch <= first.Epoch {
			t.Fatalf("a new epoch settles it: %+v", l)
		}
	})
}

// An agent that was removed still acts until its time is over.
func TestRemovedAgentHoldsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		renew(t, d, id("agt", 1))
		s.must(&logpb.Command{Command: &logpb.Command_RemoveAgent{RemoveAgent: &logpb.RemoveAgent{AgentId: id("agt", 1)}}})
		if l := renew(t, d, id("agt", 2)); l.Held {
			t.Fatal("granted while the removed agent may still act")
		}
		time.Sleep(TTL + Skew)
		if l := renew(t, d, id("agt", 2)); !l.Held {
			t.Fatalf("got %+v", l)
		}
	})
}

// A refusal is recorded and so changes the state; that must not make the loop spin.
func TestRefusalsDoNotSpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		renew(t, d, id("agt", 1))
		settle()
		s.mu.Lock()
		s.refuse = "mark_late"
		before := s.proposed
		s.mu.Unlock()
		passTime(t, d, fsm.StepDeadline(metal.StepVerifyOOB)/2+30*time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := s.proposed - before; n < 2 || n > 10 {
			t.Fatalf("%d commands in half a minute", n)
		}
	})
}

// What waits in a frozen rack is not proposed time and again: each refusal would
// be an entry in the log and in the audit.
func TestFrozenRackIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		renew(t, d, id("agt", 1))
		settle()
		if _, err := s.Propose(t.Context(), &logpb.Command{Header: header(), Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{}}}); err != nil {
			t.Fatal(err)
		}
		renew(t, d, id("agt", 1))
		s.mu.Lock()
		before := s.proposed
		s.mu.Unlock()
		passTime(t, d, 5*time.Minute)
		s.mu.Lock()
		n := s.proposed - before
		s.mu.Unlock()
		if n > 2 { // it is late, once
			t.Fatalf("%d commands in five minutes", n)
		}
		if _, err := s.Propose(t.Context(), &logpb.Command{Header: header(), Command: &logpb.Command_ThawRack{ThawRack: &logpb.ThawRack{RackId: rack1}}}); err != nil {
			t.Fatal(err)
		}
		renew(t, d, id("agt", 1))
		settle()
		if op := operation(s); op.Agent != id("agt", 1) {
			t.Fatalf("%+v", op)
		}
	})
}

var _ Consensus = (*single)(nil)

// What waits in a rack that an operator has frozen is left alone; what has begun goes to
// the next holder of the lease.
func TestRackFrozenByHand(t *testing.T) {
	for _, begun := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newCluster(t)
			d := New(s, nil)
			defer lead(d)()
			freeze := func(thaw bool) {
				t.Helper()
				if _, err := s.Propose(t.Context(), &logpb.Command{Header: header(), Command: &logpb.Command_FreezeRacks{
					FreezeRacks: &logpb.FreezeRacks{RackIds: []string{rack1}, Thaw: thaw}}}); err != nil {
					t.Fatal(err)
				}
			}
			if begun {
				renew(t, d, id("agt", 1))
				settle()
				freeze(false)
				time.Sleep(TTL + Skew)
			} else {
				freeze(false)
			}
			agent := id("agt", map[bool]int{false: 1, true: 2}[begun])
			renew(t, d, agent)
			settle()
			if !begun { // it waits for the thaw, and for no agent
				passTime(t, d, 5*time.Minute)
				if op := operation(s); op.Late {
					t.Errorf("late: %+v", op)
				}
			}
			assigned := func() (n int) {
				for op := range s.View().OpenOperations("") {
					if op.Agent == agent {
						n++
					}
				}
				return n
			}
			if got := assigned() > 0; got != begun {
				t.Errorf("begun %v: assigned while the rack is frozen: %v", begun, got)
			}
			freeze(true)
			renew(t, d, agent)
			settle()
			if assigned() == 0 {
				t.Errorf("begun %v: not assigned after the thaw", begun)
			}
		})
	}
}
