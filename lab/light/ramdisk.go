package light

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

const (
	reportEvery = 700 * time.Millisecond
	idlePause   = 200 * time.Millisecond // against an agent that answers at once with nothing
	keepResults = 64
)

var errCancelled = errors.New("cancelled by the agent")

// ramdisk is what runs after the kernel: hello, then one task after the other.
// It returns nil when the machine starts again.
func (l *life) ramdisk(ctx context.Context, raw []byte) error {
	if err := l.sleep(ctx, l.m.cfg.Timing.Kernel); err != nil {
		return err
	}
	l.bootID = newBootID()
	s, err := l.newSession(raw)
	if err != nil {
		l.failed("seed", err)
		return nil
	}
	defer s.close()
	if _, err := l.systemDHCP(ctx, "ramdisk", noAddr); err != nil {
		return err
	}
	if s.seed.Discover {
		return s.discover(ctx)
	}
	if err := s.hello(ctx); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		l.record(HelloLost, "", err.Error())
		return l.sleep(ctx, backoffMax) // then again, from the firmware on
	}
	l.record(Hello, "", s.agent())
	for {
		asked := time.Now()
		task, err := s.next(ctx)
		if err != nil {
			return err
		}
		if task == nil {
			if err := pause(ctx, max(0, idlePause-time.Since(asked))); err != nil { // one that has held the call wants another
				return err
			}
			continue
		}
		if taken, err := s.work(ctx, task); err != nil {
			return err
		} else if !taken {
			continue // given up: nobody asks for its consequence either
		}
		switch task.GetKind().(type) {
		case *agentv1.Task_Reboot:
			return nil
		case *agentv1.Task_PowerOff:
			return errGuestOff
		case *agentv1.Task_Kexec:
			if s.results[task.GetId()].GetReason() == "" {
				s.close()
				return l.kexec(ctx)
			}
		}
	}
}

// kexec leaves the ramdisk for the operating system, which knows nothing of its
// address or connections.
func (l *life) kexec(ctx context.Context) error {
	l.record(Kexec, "", "")
	l.bootID = ""
	l.nic.cutConns()
	if err := l.nic.setAddr(noAddr); err != nil {
		return err
	}
	return l.bootDisk(ctx)
}

// discover tells what the machine is, and switches it off, or starts it again.
func (s *session) discover(ctx context.Context) error {
	req := &agentv1.DiscoverRequest{Mac: s.seed.MAC, Token: s.seed.Token, Hardware: s.l.hardware(), Version: "light", BootId: s.l.bootID}
	tellCtx, cancel := context.WithTimeoutCause(ctx, helloFor, errors.New("no answer to the report"))
	defer cancel()
	var resp *agentv1.DiscoverResponse
	err := s.call(tellCtx, callFor, func(n int) bool { return n >= helloNo }, func(ctx context.Context, c agentv1.RamdiskClient) (err error) {
		resp, err = c.Discover(ctx, req)
		return err
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		s.l.record(HelloLost, "", err.Error())
		return errGuestOff
	}
	s.l.record(Told, "", resp.GetOutcome()+" "+resp.GetName())
	if resp.GetReboot() {
		return nil
	}
	return errGuestOff
}

func (s *session) next(ctx context.Context) (*agentv1.Task, error) {
	var resp *agentv1.NextTaskResponse
	never := func(int) bool { return false }
	err := s.call(ctx, nextTaskFor, never, func(ctx context.Context, c agentv1.RamdiskClient) (err error) {
		resp, err = c.NextTask(ctx, &agentv1.NextTaskRequest{BootId: s.l.bootID, LastTask: s.last})
		return err
	})
	if err != nil {
		return nil, err
	}
	s.heard(resp.GetAgents())
	if resp.GetTask().GetId() == "" {
		return nil, nil
	}
	return resp.GetTask(), nil
}

// work does a task, or sends the result of the time when it was done.
func (s *session) work(ctx context.Context, task *agentv1.Task) (taken bool, err error) {
	id := task.GetId()
	result := s.results[id]
	if result != nil {
		s.l.record(TaskAgain, id, s.agent())
	} else {
		s.l.record(TaskStart, id, s.agent())
		if result = s.do(ctx, task); ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		s.l.record(TaskEnd, id, result.GetReason())
		if len(s.results) >= keepResults {
			clear(s.results)
		}
		s.results[id] = result
	}
	s.last = id
	err = s.call(ctx, callFor, func(n int) bool { return n >= resultNo*len(s.agents) }, func(ctx context.Context, c agentv1.RamdiskClient) error {
		_, err := c.CompleteTask(ctx, result)
		return err
	})
	if err != nil && ctx.Err() == nil {
		s.l.record(ResultLost, id, err.Error())
		return false, nil
	}
	return err == nil, err
}

// running is a task under way, as its reporter sees it.
type running struct {
	done, total atomic.Uint64
	chunkURL    atomic.Pointer[string]
}

func (s *session) do(ctx context.Context, task *agentv1.Task) *agentv1.CompleteTaskRequest {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &running{}
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		s.report(ctx, cancel, task.GetId(), r)
	}()
	result, err := s.l.perform(ctx, task, r)
	if errors.Is(context.Cause(ctx), errCancelled) {
		err = metal.Errorf(metal.CodeCancelled, "cancelled by the agent")
	}
	cancel(nil)
	<-reported
	if result == nil || err != nil {
		result = &agentv1.CompleteTaskRequest{}
	}
	result.TaskId, result.BootId = task.GetId(), s.l.bootID
	if err != nil {
		result.Reason, result.Message = string(metal.CodeOf(err)), err.Error()
	}
	return result
}

// report tells how a task comes along, to whichever agent hears it.
func (s *session) report(ctx context.Context, cancel context.CancelCauseFunc, id string, r *running) {
	for pause(ctx, reportEvery) == nil {
		req := &agentv1.TaskProgressRequest{TaskId: id, Done: r.done.Load(), Total: r.total.Load(), BootId: s.l.bootID}
		err := s.once(ctx, callFor, func(ctx context.Context, c agentv1.RamdiskClient) error {
			resp, err := c.TaskProgress(ctx, req)
			if err == nil && resp.GetCancel() {
				cancel(errCancelled)
			}
			if u := resp.GetChunkUrl(); u != "" {
				r.chunkURL.Store(&u)
			}
			return err
		})
		if err != nil && ctx.Err() == nil {
			s.turn()
		}
	}
}

// hardware is what an inspection would find.
func (l *life) hardware() *agentv1.Hardware {
	c := &l.m.cfg
	return &agentv1.Hardware{
		Serial: c.Serial, Uuid: c.UUID, Vendor: "bmc", Product: "lab-light", Firmware: c.Firmware, FirmwareVersion: "light",
		CpuModel: "none: a light machine", CpuThreads: c.CPUs, MemoryBytes: c.Memory, Arch: "x86_64",
		Disks: []*agentv1.Disk{{Name: diskName, SizeBytes: uint64(c.DiskBytes), Kind: "virtual", Serial: c.diskSerial(), Model: "light", SectorSize: sectorSize}},
		Nics:  []*agentv1.NIC{{Name: "eth0", Mac: macText(c.MAC), Link: true, SpeedMbps: 10000, Driver: "light"}},
	}
}

const diskName = "vda"

func (c *Config) diskSerial() string { return c.Serial + "-0" }

func macText(m [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
