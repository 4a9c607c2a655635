package rpc

import (
	"testing"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/metal"

	"google.golang.org/grpc/codes"
)

// unknown makes proposals end without an answer; applied says whether they are
// done all the same.
func (b *bed) unknown(applied bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.beforePropose = func(*logpb.Command) (bool, error) {
		return applied, metal.Errorf(metal.CodeUnknownOutcome, "the leader went away")
	}
}

func (b *bed) answering() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.beforePropose = nil
}

// A create whose outcome nobody knows is sent again by another node, with its
// request ID, to another leader: one server is taken, one operation exists.
func TestUnknownOutcomeByAnotherNode(t *testing.T) {
	for name, applied := range map[string]bool{"it had happened": true, "it had not happened": false} {
		t.Run(name, func(t *testing.T) {
			b, _ := rentable(t, 3)
			req := &bmcv1.CreateServerRequest{RequestId: uuidV7(b.now(), [10]byte{7}), Name: "web-1"}
			b.unknown(applied)
			_, err := b.user(1).CreateServer(b.admin(), req)
			refused(t, err, codes.Unavailable, metal.CodeUnknownOutcome, "same request ID")
			b.answering()
			b.lead(2)
			op, err := b.user(0).CreateServer(b.admin(), req)
			if err != nil {
				t.Fatal(err)
			}
			again, err := b.user(1).CreateServer(b.admin(), req)
			if err != nil || again.GetId() != op.GetId() {
				t.Fatalf("%s, then %s: %v", op.GetId(), again.GetId(), err)
			}
			creates := 0
			for o := range b.fsm.View().Operations("") {
				if o.Kind == metal.KindDeploy {
					creates++
				}
			}
			if creates != 1 {
				t.Errorf("%d operations came of one request", creates)
			}
			// The same ID for something else is no retry.
			_, err = b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{RequestId: req.GetRequestId(), Name: "web-2"})
			refused(t, err, codes.InvalidArgument, metal.CodeRequestReused, "")
		})
	}
}

// A stale read that names a revision waits for it, and not for ever.
func TestMinRevision(t *testing.T) {
	b := newBed(t, 2)
	b.inventory("r1", 1, 1)
	get := func(least uint64) error {
		_, err := b.user(1).GetServer(b.admin(), &bmcv1.GetServerRequest{Ref: "r1-u01", AllowStale: true, MinRevision: least})
		return err
	}
	b.admin() // makes the token, a revision of its own
	now := b.fsm.View().Revision()
	if err := get(now); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	refused(t, get(now+1), codes.DeadlineExceeded, metal.CodeDeadline, "")
	if d := time.Since(began); d < b.nodes[1].api.LeaderWait || d > 20*b.nodes[1].api.LeaderWait {
		t.Errorf("it waited for %v", d)
	}
	done := make(chan error, 1)
	go func() { done <- get(now + 1) }()
	b.inventory("r2", 2, 1)
	if err := <-done; err != nil {
		t.Errorf("the revision came, and the read says %v", err)
	}
	// Without a leader a stale read with a revision that is there is answered.
	b.lead(-1)
	if err := get(now); err != nil {
		t.Error(err)
	}
}

// A follower's read holds what was acknowledged before it, whoever leads.
func TestFollowerReads(t *testing.T) {
	b := newBed(t, 3)
	for i, leader := range []int{0, 1, 2, 0} {
		b.lead(leader)
		name := []string{"r1", "r2", "r3", "r4"}[i]
		b.inventory(name, i+1, 1)
		for node := range 3 {
			if _, err := b.user(node).GetServer(b.admin(), &bmcv1.GetServerRequest{Ref: name + "-u01"}); err != nil {
				t.Errorf("led by %d, node %d: %v", leader, node, err)
			}
		}
	}
}
