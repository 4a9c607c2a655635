package consensus

import (
	"slices"
	"testing"
	"time"
)

// How long a cluster is without a leader when its leader dies. Raft's timers
// alone need one to three election timeouts, and more when two stand at once.
func TestDeadLeaderIsReplacedSoon(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		var gaps []time.Duration
		for range 40 {
			time.Sleep(10 * time.Second)
			old := c.leader()
			c.isolate(old)
			began := time.Now()
			fresh := c.leader(c.others(old)...)
			gap := time.Since(began)
			if gap < 800*time.Millisecond { // heartbeats come every 100 to 200 ms
				t.Fatalf("a leader was given up after %v: nobody may stand within the election timeout", gap)
			}
			gaps = append(gaps, gap)
			c.propose(fresh, project("p-"+string(rune('a'+len(gaps)%26))+string(rune('a'+len(gaps)/26))))
			c.heal()
			c.await("the old one follows", func() bool { id, _ := old.Leader(); return id == fresh.id })
		}
		slices.Sort(gaps)
		t.Logf("p50 %v, p90 %v, max %v", gaps[20], gaps[36], gaps[39])
		if gaps[20] > 1500*time.Millisecond || gaps[39] > 4*time.Second {
			t.Errorf("p50 %v, max %v: want at most 1.5 s and 4 s", gaps[20], gaps[39])
		}
	})
}

// A leader that can be heard is never given up, however long that lasts.
func TestLivingLeaderStays(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		old, term := c.leader(), c.leader().Term()
		time.Sleep(time.Hour)
		if c.leader() != old || old.Term() != term {
			t.Errorf("%s led in term %d; now %s in %d", old.id, term, c.leader().id, c.leader().Term())
		}
	})
}
