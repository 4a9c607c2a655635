package controlplane

import (
	"context"
	"errors"
	"time"
)

// Bounds of a shutdown, in order. Their sum stays below the 90 s that systemd
// gives a service.
const (
	handOnWait = 5 * time.Second  // for another leader
	drainWait  = 5 * time.Second  // for calls under way
	raftWait   = 15 * time.Second // for raft
)

// Close stops a node in order: leadership is handed on first, so that others
// lead while this one finishes its calls; then calls and streams end; then
// gossip and raft; files last. It works on a node that was opened half, too.
func (n *Node) Close() error {
	if n.closing.Swap(true) {
		return nil
	}
	n.log.Info("node stops", "node", n.id.NodeID)
	n.handOn()
	if n.grpcUp != nil {
		n.grpcUp.Shutdown() // every service: NOT_SERVING
	}
	n.stopServers()
	n.cancel()
	var errs []error
	if n.gossip != nil {
		errs = append(errs, n.gossip.Close())
	}
	if n.raft != nil {
		ctx, cancel := context.WithTimeout(context.Background(), raftWait)
		errs = append(errs, n.raft.Close(ctx))
		cancel()
	}
	if n.peers != nil {
		errs = append(errs, n.peers.Close())
	}
	if n.mux != nil {
		n.mux.close()
	}
	if n.transport != nil {
		errs = append(errs, n.transport.Close())
	}
	n.wg.Wait()
	if n.images != nil {
		n.images.Close()
	}
	if n.stores != nil {
		errs = append(errs, n.stores.Close())
	}
	return errors.Join(errs...)
}

func (n *Node) handOn() {
	if n.raft == nil || !n.raft.IsLeader() || len(n.raft.Members()) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), handOnWait)
	defer cancel()
	if err := n.raft.TransferLeadership(ctx, ""); err != nil {
		n.log.Warn("leadership was not handed on", "err", err)
	}
}

func (n *Node) stopServers() {
	if n.api != nil {
		n.api.Close() // ends streams, which GracefulStop would wait for
	}
	if n.grpc != nil {
		done := make(chan struct{})
		go func() { defer close(done); n.grpc.GracefulStop() }()
		timer := time.NewTimer(drainWait)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
			n.grpc.Stop()
			<-done
		}
	}
	if n.http != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainWait)
		defer cancel()
		if err := n.http.Shutdown(ctx); err != nil {
			_ = n.http.Close()
		}
	}
}
