package client

import (
	"context"
	"time"

	"bmc/internal/pause"
	"bmc/metal"
)

// Again makes a call with a stream, and makes it anew while the node that took it
// knows no leader, as long as calls without a stream are repeated. The stream of a
// node that refuses is left for the next node. The call must be one that may be
// made twice, and begin from the start each time.
func (c *Client) Again(ctx context.Context, call func() error) error {
	start := time.Now()
	for n := 0; ; n++ {
		err := call()
		if metal.CodeOf(err) != metal.CodeNoLeader || ctx.Err() != nil || time.Since(start) >= c.conn.cfg.Patience {
			return err
		}
		if n == 0 && c.conn.cfg.OnRetry != nil {
			c.conn.cfg.OnRetry(why(err))
		}
		if pause.For(ctx, min(firstPause<<min(n, 4), time.Second)) != nil {
			return err
		}
	}
}
