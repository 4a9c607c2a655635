package boot

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

// taken is a desk that has taken an operation over from another agent, whose
// ramdisk the log knows as boot-1.
func taken(t *testing.T) (*desk, context.Context) {
	d := newDesk(t)
	b := binding
	b.BootID = "boot-1"
	d.openAs(b, nil)
	return d, as(t.Context(), server)
}

func codeOf(err error) metal.Code {
	if err == nil {
		return ""
	}
	e, ok := rpcerr.Decode(err)
	if !ok {
		return metal.CodeInternal
	}
	return e.Code
}

var write = &agentv1.Task{Id: "op-a/1/write-image", Kind: &agentv1.Task_WriteImage{WriteImage: &agentv1.WriteImageTask{ChunkUrl: "http://10.77.0.2/%s"}}}

func TestAdoption(t *testing.T) {
	d, ctx := taken(t)
	if d.session.Alive() || !d.session.Adoptable() || d.session.BootID() != "" {
		t.Fatal("adopted before it has called")
	}
	for _, boot := range []string{"", "boot-2"} {
		if _, err := d.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: boot}); codeOf(err) != metal.CodeDenied {
			t.Errorf("another boot asks: %v", err)
		}
		if _, err := d.service.TaskProgress(ctx, &agentv1.TaskProgressRequest{BootId: boot, TaskId: write.Id}); codeOf(err) != metal.CodeDenied {
			t.Errorf("another boot's progress: %v", err)
		}
		if _, err := d.service.CompleteTask(ctx, &agentv1.CompleteTaskRequest{BootId: boot, TaskId: write.Id}); codeOf(err) != metal.CodeDenied {
			t.Errorf("another boot's result: %v", err)
		}
	}
	if _, err := d.service.NextTask(as(t.Context(), "srv-b"), &agentv1.NextTaskRequest{BootId: "boot-1"}); codeOf(err) != metal.CodeNoLeader {
		t.Errorf("another server: %v", err)
	}
	d.full = true
	if _, err := d.service.TaskProgress(ctx, &agentv1.TaskProgressRequest{BootId: "boot-1", TaskId: write.Id}); codeOf(err) != metal.CodeInternal || d.session.Alive() {
		t.Errorf("adopted without a journal: %v", err)
	}
	d.full = false

	// The write that the other agent granted goes on, before it is granted here.
	resp, err := d.service.TaskProgress(ctx, &agentv1.TaskProgressRequest{BootId: "boot-1", TaskId: write.Id, Done: 7})
	if err != nil || resp.GetCancel() || !slices.Equal(resp.GetAgents(), []string{"10.77.0.1:8443"}) {
		t.Fatalf("%v, %v", resp, err)
	}
	if !d.session.Alive() || d.session.Adoptable() || d.session.BootID() != "boot-1" {
		t.Fatal("not adopted")
	}
	if p, _ := d.session.LastProgress(); p.Task != write.Id || p.Done != 7 {
		t.Errorf("progress %v", p)
	}
	if err := d.session.Grant(write); err != nil {
		t.Fatal(err)
	}
	if resp, err := d.service.TaskProgress(ctx, &agentv1.TaskProgressRequest{BootId: "boot-1", TaskId: write.Id, Done: 8}); err != nil || resp.GetChunkUrl() != "http://10.77.0.2/%s" {
		t.Errorf("where the chunks are now: %v, %v", resp, err)
	}
	if resp, err := d.service.TaskProgress(ctx, &agentv1.TaskProgressRequest{BootId: "boot-1", TaskId: "op-a/1/wipe"}); err != nil || !resp.GetCancel() {
		t.Errorf("another task: %v, %v", resp, err)
	}

	// A restart of this agent remembers.
	d.session.Detach()
	d.open(slices.Clone(d.journal))
	if !d.session.Alive() || d.session.BootID() != "boot-1" {
		t.Error("the adoption was forgotten")
	}
	if _, err := d.service.CompleteTask(ctx, &agentv1.CompleteTaskRequest{BootId: "boot-1", TaskId: write.Id}); err != nil {
		t.Error(err)
	}
}

// A result that the other agent took, or never got, comes before any grant.
func TestResultOfAnAdopted(t *testing.T) {
	d, ctx := taken(t)
	for _, id := range []string{"op-a/2/write-image", "op-b/1/write-image"} {
		if _, err := d.service.CompleteTask(ctx, &agentv1.CompleteTaskRequest{BootId: "boot-1", TaskId: id}); codeOf(err) != metal.CodeStaleAttempt {
			t.Errorf("%s: %v", id, err)
		}
	}
	done := &agentv1.CompleteTaskRequest{BootId: "boot-1", TaskId: write.Id, Message: "written"}
	for range 2 {
		if _, err := d.service.CompleteTask(ctx, done); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.session.Grant(write); err != nil || d.session.Result(write.Id).GetMessage() != "written" {
		t.Errorf("%v, result %v", err, d.session.Result(write.Id))
	}
	if n := len(d.journal); n != 2 { // adopted, finished; no grant
		t.Errorf("%d events", n)
	}
}

// A boot intent of our own ends the wait for the other agent's ramdisk, also
// after a restart.
func TestArmEndsAdoption(t *testing.T) {
	d, ctx := taken(t)
	d.armed()
	b := d.session.Binding
	d.openAs(b, slices.Clone(d.journal))
	if _, err := d.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: "boot-1"}); codeOf(err) != metal.CodeDenied || d.session.Adoptable() {
		t.Errorf("a boot of before: %v", err)
	}
}

// An agent without the lease sends ramdisks on, at once even in the middle of a
// wait, and remembers what they bring.
func TestWithoutTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.armed()
		if code := d.hello(d.seed(), "key"); code != "" {
			t.Fatal(code)
		}
		ctx := as(t.Context(), server)
		asked := make(chan error, 1)
		go func() {
			_, err := d.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: "boot-1"})
			asked <- err
		}()
		synctest.Wait()
		began := time.Now()
		d.session.Attend(false)
		if err := <-asked; codeOf(err) != metal.CodeNoLeader || time.Since(began) > time.Second {
			t.Errorf("the wait for a task: %v after %s", err, time.Since(began))
		}
		if err := d.session.Grant(write); err != nil {
			t.Fatal(err)
		}
		_, err := d.service.TaskProgress(ctx, &agentv1.TaskProgressRequest{BootId: "boot-1", TaskId: write.Id, Done: 3})
		if p, _ := d.session.LastProgress(); codeOf(err) != metal.CodeNoLeader || p.Done != 3 {
			t.Errorf("progress: %v, %v", err, p)
		}
		_, err = d.service.CompleteTask(ctx, &agentv1.CompleteTaskRequest{BootId: "boot-1", TaskId: write.Id})
		if codeOf(err) != metal.CodeNoLeader || d.session.Result(write.Id) == nil {
			t.Errorf("result: %v", err)
		}
		d.session.Attend(true)
		if _, err = d.service.CompleteTask(ctx, &agentv1.CompleteTaskRequest{BootId: "boot-1", TaskId: write.Id}); err != nil {
			t.Error(err)
		}

		// One that has taken the operation over, but lost the lease, adopts nobody.
		d, ctx = taken(t)
		d.session.Attend(false)
		if _, err := d.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: "boot-1"}); codeOf(err) != metal.CodeNoLeader || d.session.Alive() {
			t.Errorf("adopted without a lease: %v", err)
		}
		if _, err := d.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: "boot-2"}); codeOf(err) != metal.CodeNoLeader {
			t.Errorf("who it is, the holder says: %v", err)
		}
	})
}

// A machine that lost its power in the middle of a wait calls no more, though
// its wait ends here when the waits are cut short: an enrolment proves by that
// silence that its controller is its own.
func TestTheEndOfAWaitIsNoCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, ctx := taken(t)
		answered := make(chan error)
		go func() {
			_, err := d.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: "boot-1"})
			answered <- err
		}()
		synctest.Wait()
		called := d.session.LastSeen()
		time.Sleep(time.Second)
		d.session.Poll()
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		if seen := d.session.LastSeen(); called.IsZero() || !seen.Equal(called) {
			t.Errorf("seen at %s, it called at %s", seen, called)
		}
	})
}
