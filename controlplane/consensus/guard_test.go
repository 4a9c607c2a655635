package consensus

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"bmc/metal"
)

// slowStore is a disk that can hang.
type slowStore struct {
	raft.LogStore
	m *member
}

func (s *slowStore) StoreLogs(l []*raft.Log) error {
	s.m.stuckMu.Lock()
	stuck, full := s.m.stuck, s.m.full
	s.m.stuckMu.Unlock()
	if full {
		return syscall.ENOSPC
	}
	if stuck != nil {
		<-stuck
	}
	return s.LogStore.StoreLogs(l)
}

// fill makes the disk of the log full, or empties it.
func (m *member) fill(full bool) {
	m.stuckMu.Lock()
	m.full = full
	m.stuckMu.Unlock()
}

func (m *member) hang() (release func()) {
	m.stuckMu.Lock()
	defer m.stuckMu.Unlock()
	ch := make(chan struct{})
	m.stuck = ch
	return func() {
		m.stuckMu.Lock()
		m.stuck = nil
		m.stuckMu.Unlock()
		close(ch)
	}
}

// A leader whose disk hangs keeps sending heartbeats in plain raft. Here it
// falls silent, another leads, and it follows when the disk is back.
func TestHungLogStoreStepsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		old := c.leader()
		release := old.hang()
		done := make(chan error, 1)
		go func() {
			_, err := old.Propose(c.ctx(20*time.Second), system(project("stuck")))
			done <- err
		}()
		next := c.leader(c.others(old)...)
		if old.IsLeader() {
			t.Error("two leaders")
		}
		if id, _ := old.Leader(); id == old.id {
			t.Error("the hung node says that it leads")
		}
		c.propose(next, project("meanwhile"))
		release()
		if err := <-done; metal.CodeOf(err) != metal.CodeUnknownOutcome && metal.CodeOf(err) != metal.CodeNoLeader {
			t.Errorf("the write that hung: %v", err)
		}
		c.await("the old leader follows", func() bool { return has(old.StaleView(), "meanwhile") })
		if old.Hung() {
			t.Error("it is still silent")
		}
		c.propose(c.leader(), project("after"))
		c.await("all agree", func() bool {
			for _, m := range c.members {
				if m.StaleView().Hash() != c.members[0].StaleView().Hash() {
					return false
				}
			}
			return true
		})
	})
}

func TestFullDiskIsFatalForVotes(t *testing.T) {
	var got error
	v := &votes{StableStore: fullDisk{}, fatal: func(err error) { got = err }}
	if err := v.SetUint64([]byte("CurrentTerm"), 2); !errors.Is(err, syscall.ENOSPC) || got == nil {
		t.Fatalf("%v, fatal %v", err, got)
	}
}

type fullDisk struct{ raft.StableStore }

func (fullDisk) SetUint64([]byte, uint64) error { return syscall.ENOSPC }
