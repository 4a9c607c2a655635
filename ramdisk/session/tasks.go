package session

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/pause"
	"bmc/metal"
)

const (
	reportEvery  = 700 * time.Millisecond // progress and heartbeat of a running task
	idlePause    = 200 * time.Millisecond // against an agent that answers at once with nothing
	keepResults  = 64
	expiryMargin = 5 * time.Minute
)

// Progress tells how far a task is, in bytes or units; total 0: unknown. It
// does not block and may be called from several goroutines.
type Progress func(done, total uint64, message string)

var (
	errCancelled = metal.Errorf(metal.CodeCancelled, "cancelled by the agent")
	errOver      = errors.New("no agent has work for this boot any more")
)

// Serve asks for tasks and does them until one ends the session, ctx ends or
// the certificate is about to expire. A boot whose operation has ended, and that
// waits for no tenant, has no task to come: it ends by itself, by PowerOff.
func (s *Session) Serve(ctx context.Context) (End, error) {
	if s.cert == nil {
		return "", errors.New("serve before hello")
	}
	for {
		end, err := s.serveOne(ctx)
		if errors.Is(err, errOver) {
			s.cfg.Log.Info("nobody has work for this boot any more", "refusals", s.refusals, "minutes", int(s.cfg.Now().Sub(s.since).Minutes()))
			return PowerOff, nil
		}
		if end != "" || err != nil {
			return end, err
		}
		s.renew(ctx)
	}
}

// serveOne asks for one task, and does it if there is one. The certificate's life
// bounds both.
func (s *Session) serveOne(ctx context.Context) (End, error) {
	ctx, cancel := context.WithTimeout(ctx, s.expires.Add(-expiryMargin).Sub(s.cfg.Now()))
	defer cancel()
	asked := time.Now()
	task, err := s.nextTask(ctx)
	if err != nil {
		return "", err
	}
	if task == nil {
		// An agent that has held the call, and then let it go, wants another at once.
		if wait := idlePause - time.Since(asked); wait > 0 && pause.For(ctx, wait) != nil {
			return "", ctx.Err()
		}
		return "", nil
	}
	result, again := s.results.get(task.GetId())
	if !again {
		result = s.do(ctx, task)
		s.results.put(result)
	}
	taken, err := s.complete(ctx, result)
	if err != nil || !taken { // who does not want the result does not want its consequence
		return "", err
	}
	switch task.GetKind().(type) {
	case *agentv1.Task_Reboot:
		return Reboot, nil
	case *agentv1.Task_PowerOff:
		return PowerOff, nil
	case *agentv1.Task_Kexec:
		if result.GetReason() == "" { // else the agent says how to go on
			return Kexec, nil
		}
	}
	return "", nil
}

// nextTask takes no single refusal as final: an operation that has ended is
// followed by the power going off, as a rule, and who refuses may not know yet what
// the control plane does. Silence ends nothing, however long. Rebooting unasked might
// start an image that was never verified.
func (s *Session) nextTask(ctx context.Context) (*agentv1.Task, error) {
	var resp *agentv1.NextTaskResponse
	over := func(err error) bool {
		return refused(err) && s.refusals >= overRefusals && s.cfg.Now().Sub(s.since) >= overFor
	}
	err := s.call(ctx, nextTaskFor, over, func(ctx context.Context) (err error) {
		resp, err = s.client.NextTask(ctx, &agentv1.NextTaskRequest{BootId: s.cfg.BootID, LastTask: s.results.last()})
		switch {
		case err == nil:
			s.refusals = 0
		case refused(err):
			if s.refusals++; s.refusals == 1 {
				s.since = s.cfg.Now()
			}
		}
		return err
	})
	switch {
	case err != nil && ctx.Err() == nil && over(err):
		return nil, errOver
	case err != nil:
		return nil, fmt.Errorf("ask for a task: %w", err)
	}
	s.learn(resp.GetAgents())
	if resp.GetTask().GetId() == "" {
		return nil, nil
	}
	return resp.GetTask(), nil
}

// complete sends a result until it is taken. A refusal means that the agent
// has given the task up; there is nobody left to tell, and the machine stays
// where it is until it gets another task or loses its power.
func (s *Session) complete(ctx context.Context, result *agentv1.CompleteTaskRequest) (taken bool, err error) {
	err = s.call(ctx, callFor, refused, func(ctx context.Context) error {
		_, err := s.client.CompleteTask(ctx, result)
		return err
	})
	if err != nil && refused(err) {
		s.cfg.Log.Warn("agent refused the result", "task", result.GetTaskId(), "err", brief(err))
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("report task %s: %w", result.GetTaskId(), err)
	}
	return true, nil
}

// do runs one task, reporting its progress meanwhile.
func (s *Session) do(ctx context.Context, task *agentv1.Task) *agentv1.CompleteTaskRequest {
	s.cfg.Log.Info("task started", "task", task.GetId())
	start := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	var latest latest
	var wg sync.WaitGroup
	wg.Go(func() { s.report(ctx, cancel, task.GetId(), &latest) })
	result, err := s.run(ctx, task, latest.set)
	if err != nil && errors.Is(context.Cause(ctx), errCancelled) {
		err = errCancelled
	}
	cancel(nil)
	wg.Wait()
	if result == nil {
		result = &agentv1.CompleteTaskRequest{}
	}
	result.TaskId, result.BootId = task.GetId(), s.cfg.BootID
	seconds := time.Since(start).Seconds()
	if err != nil {
		result.Reason = string(metal.CodeOf(err))
		result.Message = err.Error()
		s.cfg.Log.Error("task failed", "task", task.GetId(), "reason", result.Reason, "err", err, "seconds", int(seconds))
	} else {
		s.cfg.Log.Info("task done", "task", task.GetId(), "seconds", fmt.Sprintf("%.1f", seconds))
	}
	return result
}

// run contains a task's panic: the machine must live on to tell.
func (s *Session) run(ctx context.Context, task *agentv1.Task, p Progress) (result *agentv1.CompleteTaskRequest, err error) {
	defer func() {
		if r := recover(); r != nil {
			s.cfg.Log.Error("task panicked", "task", task.GetId(), "err", r, "stack", string(debug.Stack()))
			err = metal.Errorf(metal.CodeInternal, "the ramdisk's program failed: %v", r)
		}
	}()
	switch task.GetKind().(type) {
	case *agentv1.Task_Reboot, *agentv1.Task_PowerOff:
		return nil, nil // done by whoever called Serve, once the agent knows
	}
	return s.cfg.Run(ctx, task, p)
}

// report sends the latest progress until ctx ends, to whichever agent takes it:
// the one that has taken the operation over learns by it that the task is under
// way. What cannot be sent is superseded soon; an answer may cancel the task.
func (s *Session) report(ctx context.Context, cancel context.CancelCauseFunc, id string, l *latest) {
	for pause.For(ctx, reportEvery) == nil {
		req := l.get()
		req.TaskId, req.BootId = id, s.cfg.BootID
		var resp *agentv1.TaskProgressResponse
		err := s.once(ctx, progressFor, never, func(ctx context.Context) (err error) {
			resp, err = s.client.TaskProgress(ctx, req)
			return err
		})
		if err != nil {
			if !s.pause(ctx) {
				return
			}
			continue
		}
		s.learn(resp.GetAgents())
		if url := resp.GetChunkUrl(); url != "" && s.cfg.ChunkURL != nil {
			s.cfg.ChunkURL(url)
		}
		if resp.GetCancel() {
			cancel(errCancelled)
		}
	}
}

func never(error) bool { return false }

type latest struct {
	mu          sync.Mutex
	done, total uint64
	message     string
}

func (l *latest) set(done, total uint64, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done, l.total, l.message = done, total, message
}

func (l *latest) get() *agentv1.TaskProgressRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &agentv1.TaskProgressRequest{Done: l.done, Total: l.total, Message: l.message}
}

// results remembers what finished tasks had to say, newest last.
type results []*agentv1.CompleteTaskRequest

func (r results) get(id string) (*agentv1.CompleteTaskRequest, bool) {
	for _, c := range r {
		if c.GetTaskId() == id {
			return c, true
		}
	}
	return nil, false
}

// last is the ID of the newest; "" when there is none.
func (r results) last() string {
	if len(r) == 0 {
		return ""
	}
	return r[len(r)-1].GetTaskId()
}

func (r *results) put(c *agentv1.CompleteTaskRequest) {
	if *r = append(*r, c); len(*r) > keepResults {
		*r = (*r)[1:]
	}
}
