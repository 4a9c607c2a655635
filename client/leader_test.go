package client

import (
	"testing"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

// A client that is told who leads sends such calls there, and comes back when the
// leader has gone. Other methods stay where they were.
func TestCallsGoToTheLeader(t *testing.T) {
	ok := func(int) error { return nil }
	gone := false
	leader := &node{answer: func(int) error {
		if gone {
			return refused(metal.CodeNoLeader)
		}
		return nil
	}}
	leaderAddr := start(t, leader)
	follower := &node{answer: ok, leader: leaderAddr}
	c := dial(t, Config{Addresses: []string{start(t, follower), leaderAddr}})
	create := func(wantFollower, wantLeader int) {
		t.Helper()
		if _, err := c.Servers.CreateServer(t.Context(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
			t.Fatal(err)
		}
		if len(follower.calls) != wantFollower || len(leader.calls) != wantLeader {
			t.Fatalf("the follower has got %d calls, the leader %d; want %d and %d", len(follower.calls), len(leader.calls), wantFollower, wantLeader)
		}
	}
	create(1, 0)
	create(1, 1)
	create(1, 2)
	if at := c.conn.first("/bmc.v1.Servers/GetServer"); at != -1 {
		t.Errorf("a method that was never forwarded begins at node %d", at)
	}
	gone = true
	follower.leader = ""
	create(2, 3) // refused there, done here
	create(3, 3)
}
