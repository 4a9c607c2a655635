package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"

	"bmc/membership"
)

const (
	stopGrace = 3 * time.Second // for calls of ramdisks under way
	// stopLimit is for what is being written (a busy disk takes a second), machines' HTTP
	// responses (netboot/httpboot gives them 5 s), and what operations say to a controller.
	stopLimit = 15 * time.Second
)

// errDiskHangs ends an agent that gave up waiting for its disk. Its journals are read
// again at the next start, as after a crash.
var errDiskHangs = errors.New("the disk does not finish what is being written: the agent ends without it")

// stop ends what answers machines first: an agent that was removed must not go on
// answering them from what it knew, and a process that a hung disk keeps from ending
// keeps the sockets that it has not closed. Operations end next, which leaves their
// ramdisks at work, and the controllers' sessions last. Nothing of it waits for the
// disk for longer than seams.stop.
func (a *Agent) stop(cancel context.CancelFunc, server *grpc.Server, gossip *membership.Membership) error {
	a.log.Info("agent stops")
	cancel()
	var calls sync.WaitGroup
	calls.Go(func() { drain(server) }) // no new ones from here on
	limit, done := context.WithTimeout(context.Background(), a.seams.stop)
	defer done()
	ended := within(limit, a.ops.Close)
	ended = within(limit, calls.Wait) && ended // a call may wait for a journal
	if gossip != nil {
		if err := gossip.Close(); err != nil {
			a.log.Debug("gossip did not end cleanly", "err", err)
		}
	}
	ended = within(limit, func() { a.wg.Wait(); a.cache.Close() }) && ended
	a.nodes.close()
	ctx, closed := context.WithTimeout(context.Background(), stopGrace)
	defer closed()
	a.pool.Close(ctx)
	switch {
	case !ended && a.ops.Writing():
		a.log.Error("agent ends without waiting for its disk", "waited", a.seams.stop)
		return errDiskHangs
	case !ended: // a controller, or a client
		a.log.Warn("agent ends without waiting for all that it does", "waited", a.seams.stop)
		return nil
	}
	a.log.Info("agent has stopped")
	return nil
}

// drain gives calls under way a moment.
func drain(server *grpc.Server) {
	stopped := make(chan struct{})
	go func() { // ends with Stop at the latest
		defer close(stopped)
		server.GracefulStop()
	}()
	t := time.NewTimer(stopGrace)
	defer t.Stop()
	select {
	case <-stopped:
	case <-t.C:
		server.Stop()
		<-stopped
	}
}

// within says whether f ended before ctx did. Else f goes on: a system call that waits
// for a disk cannot be called off.
func within(ctx context.Context, f func()) bool {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f()
	}()
	select {
	case <-ended:
		return true
	case <-ctx.Done():
	}
	select {
	case <-ended: // both
		return true
	default:
		return false
	}
}
