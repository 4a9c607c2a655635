package dispatch

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"bmc/metal"
)

// awaitTakeover lets the second agent ask ten times a second, and returns when it
// was granted the rack.
func awaitTakeover(t *testing.T, d *Dispatcher, within time.Duration) time.Time {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if renew(t, d, id("agt", 2)).Held {
			return time.Now()
		}
	}
	t.Fatalf("nobody took over within %s", within)
	return time.Time{}
}

// A new leader may not forget a renewal that its predecessor has acknowledged, and
// need not forget a silence that its predecessor has marked.
func TestNewLeaderWaits(t *testing.T) {
	full := TTL + Skew
	for _, tt := range []struct {
		name   string
		silent time.Duration // when the leader dies
		fails  metal.Code    // of the marks
		level  uint32
		want   time.Duration // from the new leader's beginning
	}{
		{name: "renewed just before", silent: firstMark - time.Second, want: full},
		{name: "marked once", silent: firstMark + time.Second, want: full - firstMark},
		{name: "marked twice", silent: full - time.Second, want: full - secondMark},
		{name: "marks that did not commit", silent: full - time.Second, fails: metal.CodeUnknownOutcome, want: full},
		{name: "amid an upgrade", silent: full - time.Second, level: silenceLevel - 1, want: full},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newCluster(t)
				s.level = tt.level
				d := New(s, nil)
				stop := lead(d)
				renew(t, d, id("agt", 1))
				if tt.fails != "" {
					s.block("mark_silence", metal.Errorf(tt.fails, "who knows"))
				}
				time.Sleep(tt.silent)
				stop()
				if _, err := d.RenewLease(context.Background(), id("agt", 1), rack1); metal.CodeOf(err) != metal.CodeNoLeader {
					t.Fatalf("a follower renewed: %v", err)
				}
				d = New(s, nil)
				defer lead(d)() // of the next term
				began := time.Now()
				time.Sleep(tt.want - time.Millisecond)
				if l := renew(t, d, id("agt", 2)); l.Held {
					t.Fatal("the new leader forgot the renewal that the old one may have acknowledged")
				}
				time.Sleep(time.Millisecond)
				if l := renew(t, d, id("agt", 2)); !l.Held {
					t.Fatalf("%s after the beginning: %+v", time.Since(began), l)
				}
			})
		})
	}
}

// What is renewed as it should be costs the log nothing, whatever the agents' calls
// take; nor does a leader that comes after a long time without one.
func TestHealthyRackIsNotMarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		time.Sleep(recentTerm)
		for range 2 {
			stop := lead(d)
			for i := range 60 {
				renew(t, d, id("agt", 1))
				time.Sleep(5*time.Second + time.Duration(i%30)*100*time.Millisecond)
			}
			stop()
			time.Sleep(recentTerm)
		}
		if n := s.count("mark_silence") + s.count("clear_silence"); n != 0 {
			t.Errorf("%d commands", n)
		}
	})
}

// Leaders that change every few seconds get on with the count all the same.
func TestLeadersThatChange(t *testing.T) {
	for _, tt := range []struct {
		name  string
		level uint32
		term  time.Duration // of each leader
		dead  bool          // the holder is
		most  time.Duration // until another has the rack; 0: it must not
	}{
		{"a dead holder", 0, 3 * time.Second, true, 35 * time.Second},
		{"a dead holder, slower leaders", 0, 6 * time.Second, true, 45 * time.Second},
		{"a dead holder, no marks", silenceLevel - 1, 3 * time.Second, true, 0},
		{"a holder that lives", 0, 3 * time.Second, false, 0},
		{"a holder that lives, slower leaders", 0, 6500 * time.Millisecond, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newCluster(t)
				s.level = tt.level
				nodes := []*Dispatcher{New(s, nil), New(s, nil), New(s, nil)}
				time.Sleep(recentTerm)
				stop := lead(nodes[0])
				first := &holder{t: t, d: nodes[0], id: id("agt", 1)}
				first.renew()
				last, began := time.Now(), time.Now()
				for i := 0; ; i++ {
					first.d = nodes[i%3]
					second := &holder{t: t, d: nodes[i%3], id: id("agt", 2)}
					for end := time.Now().Add(tt.term); time.Now().Before(end); time.Sleep(250 * time.Millisecond) {
						if !tt.dead && time.Since(last) >= 5*time.Second {
							last = time.Now()
							if first.renew(); !first.held() {
								t.Fatal("the holder was cut off")
							}
						}
						if second.renew(); second.held() {
							stop()
							if took := time.Since(began); took > tt.most || took < TTL {
								t.Fatalf("taken over %s after the last renewal", took)
							}
							return
						}
					}
					stop()
					if tt.most == 0 && time.Since(began) > 2*time.Minute {
						return
					}
					if tt.most > 0 && time.Since(began) > tt.most {
						t.Fatalf("nobody took over in %s", tt.most)
					}
					time.Sleep(time.Second) // an election
					stop = lead(nodes[(i+1)%3])
				}
			})
		})
	}
}

// A holder that was silent and is back is not cut off, and is not acknowledged
// before the log has let go of its silence.
func TestHolderIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		stop := lead(d)
		first := renew(t, d, id("agt", 1))
		time.Sleep(secondMark + time.Second)
		if s.count("mark_silence") != 2 {
			t.Fatalf("%d marks", s.count("mark_silence"))
		}
		s.block("clear_silence", metal.Errorf(metal.CodeUnknownOutcome, "who knows"))
		if l, err := d.RenewLease(context.Background(), id("agt", 1), rack1); metal.CodeOf(err) != metal.CodeUnknownOutcome {
			t.Fatalf("acknowledged %+v (%v) though the mark may still be there", l, err)
		}
		s.block("clear_silence", nil)
		release := s.hold("clear_silence")
		answers := make(chan Lease, 2)
		for range 2 { // the agent asks again, at another node
			go func() { answers <- renew(t, d, id("agt", 1)) }()
		}
		time.Sleep(TTL + Skew - secondMark) // by now it has run out
		if l := renew(t, d, id("agt", 2)); l.Held || l.Holder != id("agt", 1) {
			t.Fatalf("granted beside a renewal that is under way: %+v", l)
		}
		release()
		for range 2 {
			if l := <-answers; !l.Held || l.Epoch != first.Epoch {
				t.Fatalf("got %+v", l)
			}
		}
		if n := s.count("clear_silence"); n != 1 {
			t.Errorf("%d clears", n)
		}
		if l := renew(t, d, id("agt", 1)); !l.Held || s.count("clear_silence") != 1 {
			t.Error("a second renewal had something to clear")
		}
		stop()
		d = New(s, nil)
		defer lead(d)()
		began := time.Now()
		if took := awaitTakeover(t, d, time.Minute).Sub(began); took < TTL+Skew {
			t.Errorf("the next leader let another in after %s", took)
		}
	})
}

// A mark that is on its way to the log comes before the clear.
func TestRenewalWaitsForTheMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCluster(t)
		d := New(s, nil)
		defer lead(d)()
		renew(t, d, id("agt", 1))
		release := s.hold("mark_silence")
		time.Sleep(firstMark + time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if l, err := d.RenewLease(ctx, id("agt", 1), rack1); err == nil {
			t.Fatalf("acknowledged %+v while a mark is on its way", l)
		}
		answer := make(chan Lease, 1)
		go func() { answer <- renew(t, d, id("agt", 1)) }()
		synctest.Wait()
		release()
		if l := <-answer; !l.Held {
			t.Fatalf("got %+v", l)
		}
		if r, _ := s.View().Rack(rack1); r.Lease.Silent != 0 {
			t.Errorf("the state says %s", r.Lease.Silent)
		}
	})
}
