//go:build e2e

package lab

import (
	"context"
	"testing"
	"time"

	bmcv1 "bmc/api/bmc/v1"
)

// TestStoppedLeader: a leader whose process is stopped is replaced within the time
// that an election takes, and who asks one of the others hears of it as soon, though
// nothing says that the stopped one is there no more.
func TestStoppedLeader(t *testing.T) {
	r := startReal(t, func(c *Config) { c.Servers = 0 })
	for round := range 6 {
		var leads string
		eventually(t, 20*time.Second, "a leader", func() (err error) {
			leads, err = r.leader("cp1")
			return err
		})
		id := r.fault(FaultSpec{Kind: FaultStop, Targets: []string{leads}})
		begin := time.Now()
		wrote := make(chan time.Duration, 1)
		go func() {
			if _, err := r.any.Cluster.CreateJoinToken(context.WithoutCancel(t.Context()), &bmcv1.CreateJoinTokenRequest{Role: "node"}); err != nil {
				t.Errorf("a write: %v", err)
			}
			wrote <- time.Since(begin)
		}()
		eventually(t, 20*time.Second, "another leader", func() error {
			now, err := r.leader(r.other(leads))
			if err == nil && now == leads {
				err = context.DeadlineExceeded
			}
			return err
		})
		seen := time.Since(begin)
		t.Logf("round %d: another leads than %s after %s, a write took %s", round, leads, seen.Round(time.Millisecond), (<-wrote).Round(time.Millisecond))
		if seen > 6*time.Second {
			t.Errorf("another is known to lead only after %s", seen)
		}
		r.heal(id)
	}
}
