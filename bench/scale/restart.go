package main

import (
	"context"
	"fmt"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
	"bmc/bench/process"
)

// restarted is one kill -9 of a follower and its start.
type restarted struct {
	answers time.Duration // from exec until it answers a linearizable read
	replay  uint64        // entries of its log after its snapshot
	rss     int64         // bytes, once it serves
}

// restart kills a node that does not lead and starts it again.
func restart(ctx context.Context, c *cluster.Cluster, skip int) (r restarted, err error) {
	leader, err := c.Leader(ctx)
	if err != nil {
		return r, err
	}
	var n *cluster.Node
	for i := range c.Nodes {
		if o := c.Nodes[(i+skip)%len(c.Nodes)]; o != leader || len(c.Nodes) == 1 {
			n = o
			break
		}
	}
	s, err := c.Client.Cluster.Status(ctx, &bmcv1.StatusRequest{})
	if err != nil {
		return r, err
	}
	if err := n.Child().End(); err != nil {
		return r, err
	}
	r.replay = s.GetAppliedIndex() - min(n.LastSnapshot(), s.GetAppliedIndex())
	began := time.Now()
	if err := c.Restart(n); err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := reads(ctx, c, n)
		if err == nil {
			r.answers = time.Since(began)
			r.rss, _ = process.RSS(n.Child().PID())
			return r, c.Ready(ctx)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-n.Child().Done():
			return r, fmt.Errorf("%s ended after its restart: see its log", n.Name)
		case <-ctx.Done():
			return r, fmt.Errorf("%s does not serve: %w", n.Name, err)
		}
	}
}

// reads asks one node for a read that holds all acknowledged writes.
func reads(ctx context.Context, c *cluster.Cluster, n *cluster.Node) error {
	cl, err := c.ClientOf(n)
	if err != nil {
		return err
	}
	defer func() { _ = cl.Close() }() // it only reads
	_, err = cl.Keys.ListKeys(ctx, &bmcv1.ListKeysRequest{})
	return err
}
