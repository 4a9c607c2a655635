package cache

import (
	"context"
	"time"
)

// SetLinger is for fetches that begin afterwards.
func (c *Cache) SetLinger(d time.Duration) { c.linger = d }

// Wait is a piece's wait for its turn.
func (p *Pacer) Wait(ctx context.Context, server string, n int) error { return p.wait(ctx, server, n) }

// Weight is how much an agent is the one for a chunk.
var Weight = weight
