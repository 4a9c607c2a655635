package boot

import (
	"context"
	"crypto/subtle"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/mutant"
	"bmc/metal"
)

// Grant gives the machine a task, once: the grant is journalled before the
// ramdisk can see it, and granting the same ID again only renews its content,
// which a restart of the agent has lost. A second task before the first is
// complete is refused.
func (s *Session) Grant(task *agentv1.Task) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failure != nil:
		return s.failure
	case s.greeted == nil:
		return metal.Errorf(metal.CodeNoNetboot, "%s has not booted the ramdisk", s.Name)
	case mutant.On("grant-again"):
	case s.results[task.GetId()] != nil:
		return nil
	case s.granted != "" && s.granted != task.GetId():
		return metal.Errorf(metal.CodeInternal, "%s is still at task %s", s.Name, s.granted)
	}
	s.moved = s.service.cfg.Now()
	s.task = task
	if s.granted == task.GetId() {
		s.signal()
		return nil
	}
	return s.commit(Event{Kind: Granted, Task: task.GetId()})
}

// Result is what the machine said on completing a task, or nil before.
func (s *Session) Result(taskID string) *agentv1.CompleteTaskRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.results[taskID]
}

// LastProgress is the newest progress, and when it last changed.
func (s *Session) LastProgress() (Progress, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.moved
}

// LastSeen is when the ramdisk last called; zero when it has not since the
// agent started.
func (s *Session) LastSeen() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastSeen
}

// next waits for a task that is granted and not complete. Nothing within ctx is
// an answer too: nil.
func (s *Session) next(ctx context.Context, req *agentv1.NextTaskRequest, key []byte) (*agentv1.Task, error) {
	polls, err := s.calls(req.GetBootId(), key)
	if err != nil {
		return nil, err
	}
	var task *agentv1.Task
	err = s.wait(ctx, func() bool {
		task = s.task
		v := s.front.look()
		return task != nil || s.polls != polls || v.ended || s.detached || v.aside || s.failure != nil
	})
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // ask again
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The end of a wait is no call: whoever asked may be dead by now, and who
	// wakes the waits wants to know just that.
	called := s.lastSeen
	err = s.current(req.GetBootId(), key)
	s.lastSeen = called
	if err != nil {
		return nil, err
	}
	return task, s.attended()
}

func (s *Session) calls(bootID string, key []byte) (polls int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.current(bootID, key); err != nil {
		return 0, err
	}
	return s.polls, s.attended()
}

// attended sends a machine on to the lease's holder.
func (s *Session) attended() error {
	if s.front.look().aside {
		return errDetached
	}
	return nil
}

// current notes that the ramdisk lives, and refuses one from another boot. One
// that has said hello to another agent, in the boot that the log knows, is
// this session's from its first call on, and so is the key of its certificate,
// which each later call must show. The lock is held.
func (s *Session) current(bootID string, key []byte) error {
	v := s.front.look()
	switch {
	case s.detached:
		return errDetached
	case v.ended:
		return metal.Errorf(metal.CodeCancelled, "the operation has ended")
	case s.failure != nil:
		return s.failure
	case bootID == "":
		return metal.Errorf(metal.CodeDenied, "the call does not say of which boot it is")
	case s.greeted != nil && s.greeted.BootID == bootID:
		if len(s.greeted.Public) > 0 && subtle.ConstantTimeCompare(s.greeted.Public, key) != 1 {
			return metal.Errorf(metal.CodeDenied, "another key than this boot's")
		}
	case v.aside:
		return errDetached
	case s.expects != "" && s.expects == bootID:
		if err := s.commit(Event{Kind: Adopted, BootID: bootID, Public: key}); err != nil {
			return err
		}
	default:
		return metal.Errorf(metal.CodeDenied, "this boot has not said hello")
	}
	s.lastSeen = s.service.cfg.Now()
	if !s.called {
		s.called = true
		s.signal()
	}
	return nil
}

// underWay says whether a task may be: it was granted here, or by the agent
// from which the ramdisk was adopted. The lock is held.
func (s *Session) underWay(taskID string) bool {
	if s.granted != "" {
		return s.granted == taskID
	}
	return s.greeted != nil && s.greeted.Kind == Adopted && strings.HasPrefix(taskID, fmt.Sprintf("%s/%d/", s.Operation, s.Attempt))
}

// progress notes how far a task is.
func (s *Session) progress(req *agentv1.TaskProgressRequest, key []byte) (*agentv1.TaskProgressResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stop := &agentv1.TaskProgressResponse{Cancel: true}
	if s.front.look().ended || s.failure != nil {
		return stop, nil
	}
	if err := s.current(req.GetBootId(), key); err != nil {
		return nil, err
	}
	if !s.underWay(req.GetTaskId()) {
		return stop, nil
	}
	p := Progress{Task: req.GetTaskId(), Done: req.GetDone(), Total: req.GetTotal(), Message: clip(req.GetMessage())}
	if p != s.last {
		s.last, s.moved = p, s.service.cfg.Now()
		s.signal()
	}
	resp := &agentv1.TaskProgressResponse{}
	if s.task.GetId() == req.GetTaskId() {
		resp.ChunkUrl = s.task.GetWriteImage().GetChunkUrl()
	}
	return resp, s.attended()
}

// complete keeps a task's result. One that is known already is fine.
func (s *Session) complete(req *agentv1.CompleteTaskRequest, key []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.current(req.GetBootId(), key); err != nil {
		return err
	}
	if s.results[req.GetTaskId()] != nil {
		return s.attended()
	}
	if !s.underWay(req.GetTaskId()) {
		return metal.Errorf(metal.CodeStaleAttempt, "this task is not under way")
	}
	req = proto.CloneOf(req)
	req.Message = clip(req.GetMessage())
	if tooLarge(req) {
		return metal.Invalid("result", "too large")
	}
	result, err := proto.Marshal(req)
	if err != nil {
		return metal.Invalid("result", "%v", err)
	}
	if err := s.commit(Event{Kind: Finished, Task: req.GetTaskId(), Result: result}); err != nil {
		return err
	}
	return s.attended()
}

// clip bounds what a machine may put into messages and logs.
func clip(s string) string {
	const limit = 1024
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}
