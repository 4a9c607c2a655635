package main

import (
	"context"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
)

// fillLog writes until the log has that many entries.
func fillLog(ctx context.Context, c *cluster.Cluster, entries uint64, n int, r *recorded) (d time.Duration, writes int, err error) {
	began := time.Now()
	w, err := r.start(ctx, c, n, "log", 0)
	if err != nil {
		return 0, 0, err
	}
	for {
		s, statusErr := c.Client.Cluster.Status(ctx, &bmcv1.StatusRequest{})
		if err = statusErr; err != nil || s.GetAppliedIndex() >= entries {
			break
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			break
		}
	}
	if stopErr := w.stop(); err == nil {
		err = stopErr
	}
	return time.Since(began), len(w.cut()), err
}
