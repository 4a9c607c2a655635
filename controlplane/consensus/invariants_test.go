package consensus

import (
	"io"
	"log/slog"
	"testing"
	"time"

	"bmc/chaos/check"
	"bmc/chaos/history"
	"bmc/fsm/logpb"
	"bmc/metal"
)

// What was acknowledged is there after a restart from the disk.
func TestInvariantAcknowledgedIsKept(t *testing.T) {
	c := &cluster{t: t, cut: map[[2]string]bool{}}
	dir := t.TempDir()
	e := &check.Evidence{}
	for start := range 2 {
		m := c.make("node-a")
		c.members = []*member{m}
		stores, err := OpenStores(dir, "", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		conf := c.config(m)
		conf.Logs, conf.Stable, conf.Snapshots = stores.Logs, stores.Stable, stores.Snapshots
		if start == 0 {
			if err := Bootstrap(conf); err != nil {
				t.Fatal(err)
			}
		}
		if m.Node, err = Open(conf); err != nil {
			t.Fatal(err)
		}
		c.await("it leads", m.IsLeader)
		if start == 0 {
			c.propose(m, &logpb.Command{Command: &logpb.Command_InitCluster{InitCluster: &logpb.InitCluster{
				ClusterId: "cluster-a", Project: &logpb.Project{Id: "prj-default", Name: "default"}}}})
			e.Start = time.Now() // what is asked from here on is in the audit's reach
			for i, id := range []string{requestID(1), requestID(2)} {
				cmd := system(project("p" + id[len(id)-1:]))
				cmd.Header.RequestId, cmd.Header.RequestMac = id, []byte("mac")
				res, err := m.Propose(c.ctx(10*time.Second), cmd)
				if err != nil || res.Err != nil {
					t.Fatal(err, res.Err)
				}
				e.Calls = append(e.Calls, history.Call{ID: i + 1, Kind: history.Create, RequestID: id, Begin: int64(i), End: int64(i + 1), Outcome: history.OK, Revision: res.Revision})
			}
		}
		e.View(m.StaleView())
		c.stop(m)
		if err := stores.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range check.Of(e, "I1") {
		t.Errorf("violated %s", v)
	}
}

// requestID is a version 7 UUID.
func requestID(n byte) string {
	const digits = "0123456789"
	return "019a0000-0000-7000-8000-00000000000" + digits[n:n+1]
}

// A follower that is behind answers nothing older than what was acknowledged. A
// project stands for a server here: to the history it is a name that was taken.
func TestInvariantFollowerReads(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		leader := c.leader()
		slow := c.others(leader)[0]
		slow.fsm.pause()
		rec := history.NewRecorder(io.Discard, 1)
		time.Sleep(time.Second) // a call that ends at 0 has not ended
		take := rec.Begin(history.Call{Client: 1, Kind: history.Create, Name: "new", RequestID: requestID(1)})
		c.propose(leader, project("new"))
		rec.End(take, func(a *history.Call) {
			a.Outcome, a.Servers = history.OK, []history.Server{{ID: "prj-new", Rental: "new"}}
		})
		answered := 0
		for range 2 {
			time.Sleep(time.Second)
			read := rec.Begin(history.Call{Client: 2, Kind: history.Get, Name: "new"})
			v, err := slow.LinearizableView(c.ctx(time.Minute))
			rec.End(read, func(a *history.Call) {
				switch {
				case err != nil:
					a.Outcome = history.Unknown // it did not answer, which is right while it is paused
				case has(v, "new"):
					a.Outcome, a.Servers = history.OK, []history.Server{{ID: "prj-new", Rental: "new"}}
					answered++
				default:
					a.Outcome, a.Code = history.Refused, string(metal.CodeNotFound)
				}
			})
			if answered == 0 && err != nil {
				slow.fsm.resume()
			}
		}
		for _, v := range check.Of(&check.Evidence{Calls: rec.Calls()}, "I2") {
			t.Errorf("violated %s", v)
		}
		if answered == 0 {
			t.Error("the follower never answered")
			slow.fsm.resume()
		}
	})
}
