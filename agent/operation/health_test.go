package operation

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"bmc/metal"
)

// A full disk, or one that hangs, is told to who waits for the operation, and the
// agent says that another one should have the rack's lease, until its journal has
// been writable for a while.
func TestJournalThatCannotBeWritten(t *testing.T) {
	for _, tt := range []struct {
		name string
		hung bool
		open bool // it hangs already when a new journal is made
		want string
	}{
		{"full", false, false, "the rack's agent cannot write its journal: no space left on device"},
		{"hung", true, false, hangs},
		{"hung at a new operation", true, true, hangs},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.shutdown()
				w.machine.on, w.machine.forGood = true, "disk"
				heal := make(chan struct{})
				w.crash = func(_ Record, written bool) error {
					if written || tt.hung {
						<-heal
						return nil
					}
					return fmt.Errorf("append: %w", syscall.ENOSPC)
				}
				m := w.start()
				defer m.Close()
				if tt.open {
					m.deps.opening = func() { <-heal }
				}
				if u := m.Unfit(); u != "" {
					t.Errorf("unfit before: %s", u)
				}
				a := w.assignment(metal.KindPower)
				m.Assign(a)
				time.Sleep(hungAfter + healthLook)
				synctest.Wait()
				if u := m.Unfit(); u != tt.want {
					t.Errorf("unfit: %q, want %q", u, tt.want)
				}
				told := w.words()
				if len(told) == 0 {
					t.Fatal("nobody was told")
				}
				if p := told[len(told)-1]; p.Operation != a.GetOperationId() || p.Step != metal.Plan(metal.KindPower)[0] || p.Message != tt.want {
					t.Errorf("told %+v", p)
				}
				w.mu.Lock()
				w.crash = nil
				w.mu.Unlock()
				close(heal)
				time.Sleep(unfitFor + 2*healthLook) // nobody writes; a trial shows that it works again
				synctest.Wait()
				if u := m.Unfit(); u != "" {
					t.Errorf("unfit after: %s", u)
				}
				m.Assign(a)
				waitEnd(t, m, a)
			})
		})
	}
}

// What is wrong with one journal's content is not the disk's doing.
func TestHealthOfAnotherError(t *testing.T) {
	h := newHealth(discard(), time.Now)
	_, _, err := decode([]byte("not a journal at all"))
	h.begin(nil)(ofDisk(err))
	if u := h.trouble(); err == nil || u != "" {
		t.Errorf("%v: %q", err, u)
	}
	h.begin(nil)(ofDisk(fmt.Errorf("open: %w", syscall.EROFS)))
	if u := h.trouble(); !strings.Contains(u, "read-only") {
		t.Errorf("%q", u)
	}
}

// What is seen of a machine while its operation waits is told to who watches that, and
// to nobody else.
func TestTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.shutdown()
		hold := make(chan struct{})
		w.crash = func(Record, bool) error { <-hold; return nil }
		m := w.start()
		defer m.Close()
		a := w.assignment(metal.KindPower)
		m.Assign(a)
		synctest.Wait()
		m.Tell("another", "no")
		m.Tell(a.GetServerId(), "its address is taken")
		if told := w.words(); len(told) != 1 || told[0].Message != "its address is taken" || told[0].Operation != a.GetOperationId() {
			t.Errorf("told %+v", told)
		}
		close(hold)
	})
}
