package operation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	agentv1 "bmc/api/agent/v1"
)

// keepJournals is how many journals of ended attempts stay, so that a node that
// is behind cannot start one of them again.
const keepJournals = 200

// Manager runs a rack agent's operations, one attempt of each at a time.
type Manager struct {
	deps Deps
	dir  string

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	runs map[string]*run // by operation
	idle map[*idle]bool
}

// idle is something that is done while no operation is at a server.
type idle struct {
	server string
	end    context.CancelFunc
}

// errWithdrawn ends a run whose operation is no longer this agent's.
var errWithdrawn = errors.New("operation withdrawn")

// NewManager keeps its journals in dir, which it makes.
func NewManager(dir string, deps Deps) (*Manager, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Progress == nil {
		deps.Progress = func(Progress) {}
	}
	deps.Timing, deps.gates, deps.health = deps.Timing.withDefaults(), newGates(), newHealth(deps.Log, deps.Now)
	m := &Manager{deps: deps, dir: dir, runs: make(map[string]*run), idle: make(map[*idle]bool)}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.wg.Go(func() { m.deps.health.run(m.ctx, dir) })
	return m, prune(dir)
}

// Unfit says why this agent cannot run operations; "": it can.
func (m *Manager) Unfit() string { return m.deps.health.trouble() }

// Writing says whether a write of a journal is under way.
func (m *Manager) Writing() bool { return m.deps.health.writing() }

// Assign runs an assignment. One that runs already only learns its epoch. A
// newer attempt waits for the former to stop, and an operation for every other on
// its server, which has been withdrawn, or will be: the last thing that it told
// the controller may still be on its way.
func (m *Manager) Assign(a *agentv1.Assignment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return
	}
	former := m.runs[a.GetOperationId()]
	if former != nil {
		if former.attempt == a.GetAttempt() && former.renew(a) || former.attempt > a.GetAttempt() {
			return
		}
		former.stop(errWithdrawn)
	}
	r := newRun(m.deps, m.path(a), a)
	formers := m.on(r.server)
	m.runs[a.GetOperationId()] = r
	for i := range m.idle {
		if i.server == r.server {
			i.end()
		}
	}
	m.wg.Go(func() {
		for _, f := range formers {
			<-f.finished
		}
		r.main(m.ctx)
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.runs[r.operation] == r && (!r.isEnded() || r.isWithdrawn()) {
			delete(m.runs, r.operation) // a later assignment may resume it
		}
	})
}

// on is every run on a server that has not finished; the lock is held. One that
// was replaced has not either before its successor.
func (m *Manager) on(serverID string) []*run {
	var out []*run
	for _, r := range m.runs {
		if r.server == serverID && !r.isFinished() {
			out = append(out, r)
		}
	}
	return out
}

// Withdraw stops an operation that is no longer assigned. What its ramdisk
// does at the moment runs to its end; nothing new starts.
func (m *Manager) Withdraw(operationID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.runs[operationID]; r != nil {
		r.stop(errWithdrawn)
		if r.isEnded() {
			delete(m.runs, operationID)
		}
	}
}

// Keep withdraws every operation of a rack's servers that is not in the list.
func (m *Manager) Keep(operationIDs []string, ours func(serverID string) bool) {
	m.mu.Lock()
	var gone []string
	for id, r := range m.runs {
		if ours(r.server) && !slices.Contains(operationIDs, id) {
			gone = append(gone, id)
		}
	}
	m.mu.Unlock()
	for _, id := range gone {
		m.Withdraw(id)
	}
}

// Busy says whether an operation runs on a server.
func (m *Manager) Busy(serverID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.on(serverID)) > 0
}

// Tell has people read what was seen of a server that an operation waits for. It does not
// block.
func (m *Manager) Tell(serverID, message string) {
	m.mu.Lock()
	runs := m.on(serverID)
	m.mu.Unlock()
	for _, r := range runs {
		r.tell(message)
	}
}

// WhileIdle returns a context that ends when an operation comes to a server, and
// has ended where one is. The caller calls done, as of context.WithCancel.
func (m *Manager) WhileIdle(ctx context.Context, serverID string) (_ context.Context, done context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	i := &idle{server: serverID, end: cancel}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.idle[i] = true; len(m.on(serverID)) > 0 {
		cancel()
	}
	return ctx, func() {
		cancel()
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.idle, i)
	}
}

// Close stops every run at its next wait and returns when all have. They
// resume from their journals.
func (m *Manager) Close() {
	m.mu.Lock()
	m.cancel()
	m.mu.Unlock()
	m.wg.Wait()
}

func (m *Manager) path(a *agentv1.Assignment) string {
	return filepath.Join(m.dir, fmt.Sprintf("%s.%d.journal", filepath.Base(a.GetOperationId()), a.GetAttempt()))
}

// prune removes the oldest journals beyond keepJournals.
func prune(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type aged struct {
		path string
		at   time.Time
	}
	var files []aged
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasSuffix(e.Name(), ".journal") {
			continue // gone, or not ours
		}
		files = append(files, aged{filepath.Join(dir, e.Name()), info.ModTime()})
	}
	slices.SortFunc(files, func(a, b aged) int { return b.at.Compare(a.at) })
	for len(files) > keepJournals {
		last := files[len(files)-1]
		if err := os.Remove(last.path); err != nil {
			return err
		}
		files = files[:len(files)-1]
	}
	return nil
}

func (r *run) logger() *slog.Logger {
	return r.deps.Log.With("operation", r.operation, "attempt", r.attempt, "server", r.server)
}
